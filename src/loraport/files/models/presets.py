"""Take models by their names: `presets` says which there are, `open_model` opens one by its name or by its place."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Protocol

from loraport.errors import SettingsError, near_miss, unknown_name
from loraport.files.disk.user_paths import expand_home
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
from loraport.files.presets.preset import AcceleratorPreset, Preset
from loraport.files.presets.table import ACCELERATORS, PRESETS

__all__ = [
    "PRESETS",
    "Opener",
    "Preset",
    "accelerator_tables",
    "chosen_accelerators",
    "chosen_presets",
    "is_local",
    "location",
    "open_model",
    "preset_tables",
    "presets",
]


def presets(family: str | None = None) -> dict[str, Preset]:
    """Return the named models, by name; those of one family, where one is given.

        for name, preset in loraport.presets("wan").items():
            print(name, preset.where, preset.base)

    Nothing is fetched. `where` of a preset is its Hub id, `base` the preset that it was distilled from. Raises
    SettingsError for an unknown family.
    """
    families = list(dict.fromkeys(preset.family for preset in PRESETS.values()))
    if family is not None and family not in families:
        raise unknown_name("family", family, families)
    return {preset.name: preset for preset in PRESETS.values() if family in (None, preset.family)}


def chosen_presets(names: Collection[str] = (), family: str | None = None) -> tuple[Preset, ...]:
    """Return the presets of these names, or all; of one family where it is given. Names of accelerators are none here.

    Raises SettingsError for a name that is neither.
    """
    kinds = {one.kind for one in ACCELERATORS.values()}
    for name in names:
        if name not in PRESETS and name not in ACCELERATORS and name not in kinds:
            near = near_miss(name, (*PRESETS, *ACCELERATORS, *kinds))
            asked = f"did you mean {near!r}? " if near else ""
            raise SettingsError(f"there is no preset {name!r}; {asked}`loraport presets` lists them all")
    of_family = presets(family)
    return tuple(of_family[name] for name in names or of_family if name in of_family)


def chosen_accelerators(names: Collection[str] = (), family: str | None = None) -> tuple[AcceleratorPreset, ...]:
    """Return the accelerators of these names or kinds (`lightx2v`), or all; of one family where it is given."""
    chosen = (one for one in ACCELERATORS.values() if not names or {one.name, one.kind} & set(names))
    return tuple(one for one in chosen if family in (None, one.family))


def accelerator_tables(chosen: Iterable[AcceleratorPreset]) -> dict[str, list[list[str]]]:
    """Return a table for each family, headings first: name, what it is for, strengths, steps."""
    tables: dict[str, list[list[str]]] = {}
    for one in chosen:
        rows = tables.setdefault(one.family, [["accelerator", "for", "strength", "steps"]])
        rows.append([one.name, one.models[0], one.strengths, str(one.steps or "")])
    return tables


def preset_tables(chosen: Iterable[Preset]) -> dict[str, list[list[str]]]:
    """Return a table for each family, headings first: name, base, size, and a star where something is not verified."""
    tables: dict[str, list[list[str]]] = {}
    for preset in chosen:
        rows = tables.setdefault(preset.family, [["name", "distilled from", "GB", ""]])
        size = f"{preset.gigabytes:g}" if preset.gigabytes else ""
        rows.append([preset.name, preset.base or "", size, "*" if preset.unverified else ""])
    return tables


def location(text: str) -> str:
    """Return the Hub id behind a preset's name; any other text as it is.

    Raises SettingsError where a file or folder here has the name of a preset: neither is taken silently.
    """
    preset = PRESETS.get(text)
    if preset is None:
        if "/" not in text and not expand_home(text).exists() and (near := near_miss(text, PRESETS)):
            raise SettingsError(
                f"{text} does not exist, and is no preset; did you mean {near!r}? `loraport presets` lists them"
            )
        return text
    if Path(text).exists():
        raise SettingsError(
            f"{text!r} is a preset and also lies here; write ./{text} for the one here, {preset.where} for the preset"
        )
    return preset.where


def is_local(text: str) -> bool:
    """Return whether a model lies here, so that reading more of it downloads nothing."""
    return Path(location(text)).exists()


class Opener(Protocol):
    """Opens a model by a preset's name or by its location, as `open_model` does."""

    def __call__(self, text: str, *, part: str | None = None, layers: Collection[str] | None = None) -> Checkpoint:
        """Return the opened model."""


def open_model(text: str, *, part: str | None = None, layers: Collection[str] | None = None) -> Checkpoint:
    """Open a model by a preset's name or by its location. Raises what `location` and `open_checkpoint` raise."""
    return open_checkpoint(location(text), part=part, layers=layers)
