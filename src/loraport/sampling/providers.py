"""Pairs of models that other installed packages know how to sample: entry points of the group `loraport.pairs`.

The name of an entry point is a prefix on the command line: with the package `loraport-lab`, `toy:base` and
`toy:one-step` mean the base and a student of its embedded family.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from loraport.errors import SettingsError

if TYPE_CHECKING:
    from loraport.sampling.pair import Pair

GROUP = "loraport.pairs"
LAB = "the package loraport-lab: pip install loraport-lab, or from a clone: pip install ./lab"
"""How to get the family behind `toy:`, the demo and the lab."""


class PairProvider(Protocol):
    """What an entry point of `loraport.pairs` loads. It must import nothing heavy until it opens a pair."""

    def locate(self, name: str) -> str:
        """Return what PREFIX:name means as --source or --target take it. Raises InputError for an unknown name."""
        ...

    def owns(self, source: Path) -> bool:
        """Return whether a folder is one of its models."""
        ...

    def open(self, source: Path, target: Path) -> Pair:
        """Open a pair of two of its models. Raises MismatchError where they cannot be sampled together."""
        ...


def known_place(text: str) -> str:
    """Return the place that PREFIX:NAME means to an installed package; any other text as it is.

    Raises SettingsError for a prefix whose package is missing or broken.
    """
    prefix, colon, name = text.partition(":")
    if colon and (entry := _entries().get(prefix)):
        try:
            provider: PairProvider = load(entry)
        except SettingsError as error:
            raise SettingsError(f"{text} {error}") from error
        return provider.locate(name)
    if colon and prefix == "toy":
        raise SettingsError(f"{text} is in {LAB}")
    return text


def owner_of(source: Path) -> PairProvider | None:
    """Return the provider that a folder belongs to. One that cannot be loaded owns none: its prefix says why."""
    for entry in _entries().values():
        try:
            provider: PairProvider = load(entry)
        except SettingsError:
            continue
        if provider.owns(source):
            return provider
    return None


def load(entry: EntryPoint) -> Any:
    """Import what another package offers. Raises SettingsError where that fails, whatever the fault in the package."""
    try:
        return entry.load()
    except Exception as error:  # another's code, imported at our start: none of its faults may be ours
        name = entry.dist.name if entry.dist is not None else entry.value
        raise SettingsError(
            f"cannot be loaded from the package {name}, install that again: {type(error).__name__}: {error}"
        ) from error


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
