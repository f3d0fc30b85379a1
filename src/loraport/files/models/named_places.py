"""Names that other installed packages give to models and LoRAs: `toy:base` of the package loraport-lab.

They are entry points of the group `loraport.pairs`; the name of an entry point is the prefix.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from typing import Any

from loraport.errors import SettingsError

GROUP = "loraport.pairs"
LAB = "the package loraport-lab: pip install loraport-lab, or from a clone: pip install ./lab"
"""How to get the family behind `toy:`, the demo and the lab."""


def known_place(text: str) -> str:
    """Return the place that PREFIX:NAME means to an installed package; any other text as it is.

    Raises SettingsError for a prefix whose package is missing or broken.
    """
    prefix, colon, name = text.partition(":")
    if colon and (entry := named_entries().get(prefix)):
        try:
            provider = load(entry)
        except SettingsError as error:
            raise SettingsError(f"{text} {error}") from error
        return str(provider.locate(name))
    if colon and prefix == "toy":
        raise SettingsError(f"{text} is in {LAB}")
    return text


def load(entry: EntryPoint) -> Any:
    """Import what another package offers. Raises SettingsError where that fails, whatever the fault in the package."""
    try:
        return entry.load()
    except Exception as error:  # another's code, imported at our start: none of its faults may be ours
        name = entry.dist.name if entry.dist is not None else entry.value
        raise SettingsError(
            f"cannot be loaded from the package {name}, install that again: {type(error).__name__}: {error}"
        ) from error


def named_entries() -> dict[str, EntryPoint]:
    """Return what installed packages offer, by prefix."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}
