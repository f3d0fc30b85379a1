"""Pairs of models that other installed packages know how to sample: entry points of the group `loraport.pairs`.

The name of an entry point is a prefix on the command line: with the package `loraport-lab`, `toy:base` and
`toy:one-step` mean the base and a student of its embedded family.
"""

from __future__ import annotations

from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from loraport.errors import SettingsError

if TYPE_CHECKING:
    from loraport.sampling.pair import Pair

GROUP = "loraport.pairs"
LAB = "the package loraport-lab: pip install loraport-lab, or from a clone: pip install ./lab"
"""How to get the family behind `toy:`, the demo and the lab."""


class PairProvider(Protocol):
    """What an entry point of `loraport.pairs` loads. It must import nothing heavy until it opens a pair."""

    def locate(self, name: str) -> str:
        """The place that PREFIX:name means, as --source or --target take it. Raises InputError for an unknown name."""
        ...

    def owns(self, source: Path) -> bool:
        """Whether a folder is one of its models."""
        ...

    def open(self, source: Path, target: Path) -> Pair:
        """The pair of two of its models. Raises MismatchError where they cannot be sampled together."""
        ...


def known_place(text: str) -> str:
    """The place that PREFIX:NAME means to an installed package; any other text as it is."""
    prefix, colon, name = text.partition(":")
    if colon and (entry := _entries().get(prefix)):
        return _load(entry).locate(name)
    if colon and prefix == "toy":
        raise SettingsError(f"{text} is in {LAB}")
    return text


def owner_of(source: Path) -> PairProvider | None:
    """The provider that a folder belongs to."""
    return next((owner for entry in _entries().values() if (owner := _load(entry)).owns(source)), None)


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(entry: EntryPoint) -> PairProvider:
    provider: PairProvider = entry.load()
    return provider
