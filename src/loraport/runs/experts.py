"""Models of two experts (Wan 2.2 A14B): the places that one place stands for, and a run for each.

diffusers keeps the high-noise expert in `transformer/`, the low-noise one in `transformer_2/`. Wan's own repositories
and LightX2V's have folders `high_noise_model/` and `low_noise_model/`, or files with these words in their names. So has
what is written here: LightX2V and ComfyUI's users tell the two by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import SettingsError
from loraport.runs.accelerator import SOURCE, split_target
from loraport.runs.presets import PRESETS

HIGH, LOW = "high_noise", "low_noise"
FOLDERS = (("transformer", "transformer_2"), (f"{HIGH}_model", f"{LOW}_model"))
"""Where the two lie inside a model."""

Places = tuple[str, str]
"""Of the high-noise expert, and of the low-noise one."""


@dataclass(frozen=True)
class Expert:
    """One of the two: its models, and the LoRA that is moved from one to the other."""

    name: str
    lora: str
    source: str
    target: str

    def named(self, output: str) -> str:
        """An output's name with the expert's in it: `style-high_noise.safetensors` of `style.safetensors`."""
        if HIGH in Path(output).name:
            return _replaced(output, self.name)
        suffix = ".safetensors" if output.endswith(".safetensors") else ""
        return f"{output.removesuffix(suffix)}-{self.name}{suffix}"


def experts(loras: Sequence[str], source: str, target: str) -> tuple[Expert, Expert]:
    """Both experts of a pair of models. One LoRA is for both, unless `high_noise` in its name says that it has a twin.

    Raises SettingsError for a model that shows no two experts, for more than two LoRAs, and for two in the wrong order.
    """
    if len(loras) > 2:
        raise SettingsError(
            f"two experts take one LoRA or two, but there are {len(loras)}; run them one after the other"
        )
    if len(loras) == 2 and (LOW in Path(loras[0]).name or HIGH in Path(loras[1]).name):
        raise SettingsError(f"the first LoRA is the high-noise expert's, the second the other's: {loras[1]} {loras[0]}")
    high, low = loras if len(loras) == 2 else _twins(loras[0]) or (loras[0], loras[0])
    sources, targets = both(source), _targets(target)
    return Expert(HIGH, high, sources[0], targets[0]), Expert(LOW, low, sources[1], targets[1])


def both(model: str) -> Places:
    """The places of the two experts: a folder with both inside, a preset's name without `-high`, or the one's place.

    Of one place the other's is the same with the other word in it. Raises SettingsError where none of this is so.
    """
    if f"{model}-high" in PRESETS:
        return f"{model}-high", f"{model}-low"
    folder = Path(model).expanduser()
    for high, low in FOLDERS:
        if (folder / high).is_dir() and (folder / low).is_dir():
            return str(folder / high), str(folder / low)
    if found := _twins(model):
        return found
    raise SettingsError(
        f"{model} shows no two experts; give a folder with transformer/ and transformer_2/, or with {HIGH}_model/ and "
        f"{LOW}_model/, a preset's name such as wan2.2-t2v-a14b, or a place of the high-noise expert with {HIGH} in it"
    )


def _targets(target: str) -> Places:
    """The same for a target: of an accelerator that has no twin, the one for both."""
    pair = split_target(target)
    if pair is None:
        return both(target)
    models = (SOURCE, SOURCE) if pair[0] == SOURCE else both(pair[0])
    beside = _twins(pair[1]) or (pair[1], pair[1])
    return f"{models[0]}+{beside[0]}", f"{models[1]}+{beside[1]}"


def _twins(place: str) -> Places | None:
    if HIGH in place:
        return place, _replaced(place, LOW)
    if place in PRESETS and place.endswith("-high"):
        return place, f"{place.removesuffix('-high')}-low"
    return (place, f"{place}_2") if place.endswith((":transformer", "/transformer")) else None


def _replaced(place: str, name: str) -> str:
    return place.replace(HIGH, name)
