"""Readings of clips, kept by what they depend on: the clip's content and the instrument's version.

One file for each clip and instrument, `readings/ab/<key>.safetensors` in the cache, safe to delete at any time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from loraport.digests import text_digest
from loraport.errors import UnreadableError
from loraport.evaluation.metrics.metric import Instrument, Readings
from loraport.evaluation.plain_folders import frame_files
from loraport.sampling.samples import SampleStore
from loraport.store.keyed import Entry

VERSION = 1
"""Of how clips are decoded and readings laid out; part of every key."""
_CHUNK = 1 << 20


class ReadingStore(SampleStore):
    """The readings in one folder; without a folder nothing is kept."""

    name: ClassVar[str] = "readings"
    what: ClassVar[str] = "other readings"

    def find(self, key: str) -> Entry | None:
        """Return the readings of a key with what was noted about the clip, or None."""
        entry = None if self._store is None else self._store.get(key)
        self.found += entry is not None
        return entry

    def keep(self, key: str, readings: Readings, notes: Sequence[str] = ()) -> Entry:
        """Keep readings, in float32. Raises OutputError where they cannot be kept: they may cost minutes."""
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in readings.items()}
        entry = Entry(tensors, {"notes": list(notes)} if notes else {})
        self.made += 1
        self._keep(key, entry)
        return entry


def reading_key(instrument: Instrument, weights: str, clip: str, reference: str | None, prompt: str | None) -> str:
    """Return what readings lie under: the instrument with its weights, the clip's digest, and what else it is shown."""
    shown = [clip, (reference or "") if instrument.beside else "", (prompt or "") if instrument.reads_prompt else ""]
    return text_digest(f"loraport readings {VERSION}", f"{instrument.name} {instrument.version}", weights, *shown)


def clip_digest(path: Path) -> str:
    """Return the SHA-256 of a clip's file; of a folder of frames, that of its files' names and digests.

    Raises UnreadableError.
    """
    try:
        if path.is_dir():
            return text_digest(*(f"{file.name} {_file_digest(file)}" for file in frame_files(path)))
        return _file_digest(path)
    except OSError as error:
        raise UnreadableError(f"{path} cannot be read: {error.strerror or error}") from error


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
