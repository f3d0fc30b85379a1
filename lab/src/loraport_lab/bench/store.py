"""Finished parts of a lab run on disk: a killed run goes on where it was, a second run repeats nothing."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraport.digests import text_digest
from loraport.store.keyed import Entry, KeyedStore


@dataclass(frozen=True)
class Store:
    """A folder of parts. What they were made from is in their names: other inputs or another program, other files."""

    folder: Path
    made_from: str

    def get(self, place: str, key: str) -> Entry | None:
        """Return what is stored under this place and key, or None; a damaged file counts as none."""
        return self._of(place).get(self._digest(place, key))

    def put(self, place: str, key: str, entry: Entry) -> None:
        """Keep it, whole or not at all."""
        self._of(place).put(self._digest(place, key), entry)

    def _of(self, place: str) -> KeyedStore:
        return KeyedStore(self.folder / place, flat=True)

    def _digest(self, place: str, key: str) -> str:
        return text_digest(self.made_from, place, key)[:20]
