"""Find published pairs and accelerators by name: a model and what was distilled from it, or what speeds it up."""

from __future__ import annotations

from loraport.errors import SettingsError, near_miss
from loraport.files.presets.preset import AcceleratorPreset
from loraport.files.presets.table import ACCELERATORS, PRESETS

SOURCE = "source"
"""The word for the source itself in a target; a folder of this name is written ./source."""
_EXPERTS = ("-high", "-low")


def published_pair(name: str) -> tuple[str, str]:
    """Return source and target of a published pair: of a distilled model, or of an accelerator, by its preset.

    A shorter name is one that a preset has for itself (`fastwan`), or the start of a single one. `NAME` of two experts'
    presets `NAME-high` and `NAME-low` stands for both. Raises SettingsError for an unknown name, one of several, and a
    model that was distilled from none.
    """
    pairs = published_pairs()
    if name in pairs:
        return pairs[name]
    if name in PRESETS:
        raise SettingsError(
            f"{name} is a base, not one of a pair; give it as --source, or --for one of: "
            + (", ".join(own for own, (source, _) in pairs.items() if source == name) or "those of `loraport presets`")
        )
    starts = [own for own in pairs if own.startswith(name)]
    if len(starts) == 1:
        return pairs[starts[0]]
    if starts:
        raise SettingsError(f"{name} is the start of several pairs; give one of: {', '.join(starts)}")
    near = near_miss(name, pairs)
    asked = f"did you mean {near!r}? " if near else ""
    raise SettingsError(
        f"there is no published pair {name!r}; {asked}--for takes the names that `loraport presets` lists"
    )


def published_pairs() -> dict[str, tuple[str, str]]:
    """Return every pair by its names."""
    models = {one.name: (one.base, one.name) for one in PRESETS.values() if one.base is not None}
    shorter = {one.short: (one.base, one.name) for one in PRESETS.values() if one.short and one.base is not None}
    beside = {one.name: (one.models[0], f"{SOURCE}+{one.name}") for one in ACCELERATORS.values()}
    pairs = models | beside
    both = {
        name.removesuffix("-high"): (source.removesuffix("-high"), target.removesuffix("-high"))
        for name, (source, target) in pairs.items()
        if name.endswith("-high") and f"{name.removesuffix('-high')}-low" in pairs
    }
    return shorter | pairs | both


def named_accelerator(name: str, model: str) -> AcceleratorPreset | None:
    """Return the accelerator of a name; by its kind alone (`lightx2v`) the one for a model that is a preset.

    Of two experts' accelerators, where the name or the model stands for both, the high-noise one. None for a text that
    is no name of one. Raises SettingsError where a kind has none for the model, or several.
    """
    if found := ACCELERATORS.get(name) or ACCELERATORS.get(f"{name}-high"):
        return found
    kinds = [one for one in ACCELERATORS.values() if one.kind == name]
    if not kinds:
        return None
    fitting = [one for one in kinds if {model, f"{model}-high"} & set(one.models)]
    if len(fitting) == 1:
        return fitting[0]
    listed = ", ".join(one.name for one in fitting or kinds)
    if model in PRESETS:
        raise SettingsError(f"there is no {name} for {model} under a name; there are {listed}, or give a file")
    raise SettingsError(f"{name} is a kind of accelerators, one for each model; give one of: {listed}")
