"""Where every key of a LoRA went, for the results of `transfer`, `convert` and `merge`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeyAccount:
    """How many keys of a LoRA went to each destination, and which were dropped, with the reason."""

    total: int
    """Keys that were read."""
    counts: Mapping[str, int]
    """Destination -> number of keys: `transferred` and `copied`, or `merged`."""
    dropped: tuple[tuple[str, str], ...] = ()
    """(key, reason)."""

    @classmethod
    def of(cls, dropped: Iterable[tuple[str, str]], **destinations: Iterable[str]) -> KeyAccount:
        """Count every key once: as dropped if it was, else for the first destination that names it."""
        reasons = tuple(sorted(set(dropped)))
        known, counts = {key for key, _ in reasons}, {}
        for destination, keys in destinations.items():
            new = set(keys) - known
            counts[destination] = len(new)
            known |= new
        return cls(len(known), counts, reasons)

    @classmethod
    def joined(cls, accounts: Sequence[tuple[str, KeyAccount]]) -> KeyAccount:
        """Add up the accounts of several files; where there are several, a dropped key is named with its file."""
        counts: dict[str, int] = {}
        dropped: list[tuple[str, str]] = []
        for file, account in accounts:
            for destination, number in account.counts.items():
                counts[destination] = counts.get(destination, 0) + number
            start = f"{file}: " if len(accounts) > 1 else ""
            dropped += [(f"{start}{key}", reason) for key, reason in account.dropped]
        return cls(sum(account.total for _, account in accounts), counts, tuple(dropped))

    def __str__(self) -> str:
        """Return `42 in: 40 transferred, 0 copied, 2 dropped`."""
        counts = {**self.counts, "dropped": len(self.dropped)}
        return f"{self.total} in: " + ", ".join(f"{number} {destination}" for destination, number in counts.items())

    def as_json(self) -> dict[str, Any]:
        """Return `{"in": 42, "transferred": 40, "copied": 0, "dropped": [[key, reason], …]}`."""
        return {"in": self.total, **self.counts, "dropped": [list(pair) for pair in self.dropped]}
