"""Tell whether a source is really the target's base, and whether the two were exchanged."""

from __future__ import annotations

import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from loraport.analysis.survey import UNRELATED
from loraport.diagnosis.look import LayerLook
from loraport.files.lora.header import shown_fields
from loraport.files.models.presets import PRESETS, Preset
from loraport.inputs.accelerator import SOURCE, split_target

LEAST_COSINE = 0.5
"""Of W_s and W_t in the median layer; below it they are strangers, whatever their sizes."""
BACKWARDS = (-1.25, -0.75)
"""Where the median layer's `along` lies if the drift was added to the target."""
BACKWARDS_LAYER = (-1.5, -0.5)
MOST_LAYERS = 0.75
FEWEST_LAYERS = 4
NO_DECAY = 0.8
"""Weight decay makes a drift point back along the source, too, by the same share of every weight. So where the drift of
layers differs, `along` must be more alike from layer to layer than that share, by at least this factor in spread."""
TOLD = 0.75
"""How sure that is: on the embedded family it told two of the five exchanged pairs and accused none of the five right
ones; one success and one failure are added."""
SEEN = 0.94
"""How sure a stranger is one: all 15 related pairs of the map lie above both limits; likewise."""


@dataclass(frozen=True)
class Relation:
    """What source and target are to each other."""

    is_base: bool
    swapped: bool
    words: str
    """How that is known, in a sentence or two"""
    sure: float = 1.0
    base: str = ""
    """The preset to give as the source instead, where names tell"""


def by_names(source: str, target: str, metadata: Mapping[str, str]) -> Relation | None:
    """Return what the names of presets, or the base that the LoRA names, say; None where they say nothing."""
    pair = split_target(target)
    if pair is not None and pair[0] == SOURCE:
        return None
    model = target if pair is None else pair[0]
    return _by_lineage(_preset(source), _preset(model)) or _by_training(source, model, metadata)


def _preset(text: str) -> Preset | None:
    known = (preset for preset in PRESETS.values() if preset.where.lower() == text.lower())
    return PRESETS.get(text) or next(known, None)


def _ancestors(preset: Preset) -> list[str]:
    found = []
    while preset.base is not None and preset.base in PRESETS:
        found.append(preset.base)
        preset = PRESETS[preset.base]
    return found


def _by_lineage(source: Preset | None, target: Preset | None) -> Relation | None:
    if source is None or target is None or source is target:
        return None
    if source.name in _ancestors(target):
        return Relation(True, False, f"{target.name} was distilled from {source.name}, as the list of presets has it")
    if target.name in _ancestors(source):
        words = f"source and target are exchanged: {source.name} was distilled from {target.name}, not the other way"
        return Relation(False, True, words)
    if target.base is not None:
        words = f"{target.name} was distilled from {target.base}, not from {source.name}"
        return Relation(False, False, words, base=target.base)
    return None


def _by_training(source: str, target: str, metadata: Mapping[str, str]) -> Relation | None:
    named = shown_fields(metadata).get("trained on", "")
    of_lora, of_source, of_target = (_identifying(text) for text in (named, source, target))
    if of_lora & of_target - of_source and not of_lora & of_source:
        words = (
            f"source and target are exchanged: the LoRA says that it was trained on {named!r}, which is the target here"
        )
        return Relation(False, True, words)
    if of_lora & of_source - of_target:
        return Relation(True, False, f"the LoRA says that it was trained on {named!r}, the source here")
    return None


_GENERIC = re.compile(
    r"(diffusion_pytorch_)?model.*|transformer(_\d)?|unet|.*noise_model|checkpoints?|models?|main|weights|base|source|"
    r"target|diffusion_models?|adapter_model|\d+|home|tmp|\.+|",
    re.IGNORECASE,
)
"""Names of files and folders that any model may have."""
_ENDINGS = re.compile(r"\.(safetensors|gguf|ckpt|pth?|bin)$|-diffusers$", re.IGNORECASE)


def _identifying(text: str) -> set[str]:
    """Return the words of a place or an id that identify a model: names of files, folders and repositories."""
    preset = PRESETS.get(text)
    parts = re.split(r"[/\\:@,;\s]+", text) + (re.split(r"[/:]", preset.where) if preset else [])
    stems = (_ENDINGS.sub("", _ENDINGS.sub("", part)).lower() for part in parts)
    return {stem for stem in stems if len(stem) > 3 and not _GENERIC.fullmatch(stem)}


def by_weights(looks: Sequence[LayerLook], *, beside: bool) -> Relation:
    """Return what the weights say; `beside`: the target is the source itself with an accelerator."""
    median = statistics.median(look.drift for look in looks)
    cosine = statistics.median(look.same for look in looks)
    unrelated = f"unrelated weights would differ by {100 * 2**0.5:.0f} % and have a cosine of 0"
    facts = f"in the median layer the weights differ by {_percent(median)}, with a cosine of {cosine:.3g}; {unrelated}"
    if beside:
        return Relation(True, False, "the target is the source itself with an accelerator beside it")
    if median > UNRELATED or cosine < LEAST_COSINE:
        return Relation(False, False, f"this source is not the target's base: {facts}", SEEN)
    if inside := _backwards(looks):
        words = (
            "source and target look exchanged: the drift points back along the source as if it had been added to the "
            f"target (in {inside} layers)"
        )
        return Relation(False, True, words, TOLD)
    return Relation(True, False, f"the target is a relative of this source: {facts}")


def _backwards(looks: Sequence[LayerLook]) -> str:
    """Return in how many of how many layers the drift points back along the source; "" where most do not."""
    moved = [(look.along, look.along * look.drift**2) for look in looks if look.along is not None]
    along, decay = [value for value, _ in moved], [value for _, value in moved]
    if len(along) < FEWEST_LAYERS or not BACKWARDS[0] <= statistics.median(along) <= BACKWARDS[1]:
        return ""
    inside = sum(BACKWARDS_LAYER[0] <= value <= BACKWARDS_LAYER[1] for value in along)
    if inside < MOST_LAYERS * len(along) or _spread(along) > NO_DECAY * _spread(decay):
        return ""
    return f"{inside} of {len(along)}"


def _spread(values: Sequence[float]) -> float:
    """Return the median deviation from the median, over the median."""
    middle = statistics.median(values)
    return statistics.median(abs(value / middle - 1) for value in values) if middle else float("inf")


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
