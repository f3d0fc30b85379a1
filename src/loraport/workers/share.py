"""Who begins with which layers: the longest first, each to whoever has least, the same for all who ask."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraport.errors import SettingsError


@dataclass(frozen=True)
class Share:
    """One of several workers of a run, numbered from 0."""

    number: int = 0
    of: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.number < self.of:
            raise SettingsError(
                f"the shard is {self.number}/{self.of}, but shards are numbered 0/{self.of} to {self.of - 1}/{self.of}"
            )

    @classmethod
    def parse(cls, text: str) -> Share:
        """Return the share in `i/N`. Raises SettingsError for anything else."""
        number, slash, of = text.partition("/")
        if not (slash and number.isdecimal() and of.isdecimal()):
            raise SettingsError(f"the shard is {text!r}; write i/N, such as 0/8 to 7/8")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def own(self, seconds: Mapping[str, float]) -> frozenset[str]:
        """Return the layers of this share; `seconds`: what each takes.

        Layers of one kind take the same and follow each other, so that every share has as many of each kind, and a
        LoRA of few kinds is shared as evenly as one of all.
        """
        loads = [0.0] * self.of
        mine = []
        for name in longest_first(seconds):
            least = min(range(self.of), key=loads.__getitem__)
            loads[least] += seconds[name]
            if least == self.number:
                mine.append(name)
        return frozenset(mine)


def longest_first(seconds: Mapping[str, float]) -> list[str]:
    """Return the layers by what they take, the longest first; of two alike, as they stand by kind and name."""
    return sorted(seconds, key=lambda name: (-seconds[name], name.rpartition(".")[2], name))
