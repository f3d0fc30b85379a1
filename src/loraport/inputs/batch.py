"""The runs of one command: several LoRAs, several methods, an update in two files; and the name of each output."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from loraport.errors import InputError, OutputError
from loraport.files.disk.user_paths import expand_home
from loraport.files.lora.locate import lora_keys
from loraport.files.lora.write import written_as_folder
from loraport.files.models.shards import PICKLES, SAFETENSORS
from loraport.inputs.config import Part, RankRule, TransferConfig
from loraport.methods.recipes import Recipe

COUNTER_DRIFT = "-counter-drift"
"""Added to the name of the second output."""


def one_or_many(
    template: TransferConfig,
    loras: Sequence[str],
    recipes: Sequence[Recipe],
    *,
    rank: RankRule | None = None,
    split: bool = False,
    in_folder: bool = False,
) -> tuple[TransferConfig, ...]:
    """Return the runs of one command: each LoRA by each recipe, in two parts where `split`.

    `template` has everything else. One LoRA by one method is written to its output; of several, that is a folder with
    a file `LORA-METHOD.safetensors` each (a folder `LORA-METHOD` in PEFT's format), where a colon in the method becomes
    a dash; `in_folder` makes it one for a single run, too. The counter-drift of a split goes beside it, with
    `-counter-drift` behind its name. `rank` None takes the rank of each recipe's preset. Raises OutputError where the
    folder is a file, and as TransferConfig does.
    """
    output, several = template.output, in_folder or len(loras) * len(recipes) > 1
    if several and expand_home(output).exists() and not expand_home(output).is_dir():
        raise OutputError(f"{output} is a file, but several LoRAs or methods need a folder; name one")
    if several and Path(output).suffix == ".safetensors":
        raise OutputError(f"{output} is the name of a file, but several LoRAs or methods need a folder; name one")
    configs: list[TransferConfig] = []
    for lora in loras:
        for recipe in recipes:
            config = replace(
                template, lora=lora, method=recipe.name, settings=recipe.settings, rank=rank or RankRule.of(recipe),
                output=str(Path(output) / output_name(lora, recipe.name)) if several else output,
            )  # fmt: skip
            if several and not becomes_folder(config):
                config = replace(config, output=f"{config.output}.safetensors")
            configs += in_parts(config) if split else [config]
    return tuple(configs)


def output_name(lora: str, method: str) -> str:
    """Return `style-casa` for `loras/style.safetensors` and `casa`; of a Hub id, its file or repository counts."""
    path = expand_home(lora)
    file = path if path.exists() else Path(lora.rpartition(":")[2].rstrip("/"))  # a file or folder in a repository
    if file.suffix.lower() in (*SAFETENSORS, *PICKLES):
        name = file.stem
    else:
        name = file.resolve().name if path.exists() else file.name  # `.` and `..` have a name of their own
    return f"{name}-{method.replace(':', '-')}"


def in_parts(config: TransferConfig) -> list[TransferConfig]:
    """Return the runs that write both parts of one update."""
    parts: dict[Part, str] = {"adapter": config.output, "counter-drift": str(counter_drift_place(config.output))}
    return [replace(config, part=part, output=place) for part, place in parts.items()]


def counter_drift_place(output: str) -> Path:
    """Return where the second output of a split goes: beside the first, with `-counter-drift` added to its name."""
    path = Path(output)
    suffix = path.suffix if path.suffix == ".safetensors" else ""
    return path.with_name(path.name.removesuffix(suffix) + COUNTER_DRIFT + suffix)


def becomes_folder(config: TransferConfig) -> bool:
    """Return whether a run writes PEFT's folder, no file; a LoRA that cannot be read is refused when it is opened."""
    try:
        return not config.as_diff and written_as_folder(lora_keys(config.lora), config.format)
    except InputError:
        return False
