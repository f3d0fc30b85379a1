"""Accelerators that a target names by their presets: the files behind the name, each at its recommended strength."""

from __future__ import annotations

from contextlib import suppress

from loraport.errors import SettingsError, near_miss
from loraport.files.disk.user_paths import expand_home
from loraport.files.presets.pairs import named_accelerator
from loraport.files.presets.preset import AcceleratorPreset
from loraport.files.presets.table import ACCELERATORS
from loraport.files.strength import split_strength


def files_of(text: str, model: str) -> tuple[str, ...]:
    """Return `PLACE*STRENGTH` of each file that ACCELERATOR[*STRENGTH] means beside a model; other texts as they are.

    A strength that is typed takes the place of the recommended one. Raises SettingsError where it is typed for several
    LoRAs, where a file here has the name, and where no accelerator of a kind is for the model.
    """
    place, typed = split_strength(text)
    preset = named_accelerator(place, model)
    if preset is None:
        near = near_miss(place, ACCELERATORS) if "/" not in place and not expand_home(place).exists() else None
        if near:
            raise SettingsError(f"{place} does not exist, and is no preset; did you mean {near!r}?")
        return (text,)
    if expand_home(place).exists():
        raise SettingsError(
            f"{place!r} is a preset and also lies here; write ./{place} for the one here, {preset.files[0][0]} for the "
            "preset"
        )
    if text == place:
        return tuple(f"{where}*{strength:g}" for where, strength in preset.files)
    if len(preset.files) > 1:
        raise SettingsError(
            f"{place} is several LoRAs, at strengths {preset.strengths}, and {typed:g} is one number; name each by "
            f"itself with its strength: {'+'.join(f'{where}*{strength:g}' for where, strength in preset.files)}"
        )
    return (f"{preset.files[0][0]}*{typed:g}",)


def file_of(text: str) -> str:
    """Return the file that the name of a single accelerator means; any other text as it is.

    Raises SettingsError for a name that means several.
    """
    preset = ACCELERATORS.get(text)
    if preset is None or expand_home(text).exists():
        return text
    if len(preset.files) > 1:
        raise SettingsError(f"{text} is several files; name one: {', '.join(place for place, _ in preset.files)}")
    return preset.files[0][0]


def is_named(text: str) -> bool:
    """Return whether ACCELERATOR[*STRENGTH] names a preset, whatever the model."""
    try:
        return named_accelerator(split_strength(text)[0], "") is not None
    except SettingsError:
        return True


def fitted(target: str, source: str) -> str:
    """Return a target whose accelerators are named by their kind alone, as those for the source; others as they are.

    `source+lightx2v` says the kind only; which file that is depends on the source, where that is a preset.
    """
    model, plus, rest = target.partition("+")
    if not plus or model != "source":
        return target
    pieces = []
    for piece in rest.split("+"):
        name, star, strength = piece.rpartition("*") if "*" in piece else (piece, "", "")
        found: AcceleratorPreset | None = None
        with suppress(SettingsError):  # said where the pieces are taken
            found = named_accelerator(name, source)
        pieces.append(piece if found is None or expand_home(piece).exists() else f"{found.name}{star}{strength}")
    return "+".join((model, *pieces))
