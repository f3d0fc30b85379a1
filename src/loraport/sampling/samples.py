"""Samples kept by what they depend on: an interrupted score goes on where it was, a second adapter reuses the first's.

One safetensors file per batch, `samples/ab/<key>.safetensors` in the cache; written whole or not at all, marked with
its own key, safe to delete at any time.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from loraport.errors import InputError, OutputError
from loraport.files.disk.atomic import TEMPORARY
from loraport.files.disk.user_paths import expand_home
from loraport.files.formats.safetensors_read import read_all
from loraport.files.formats.safetensors_write import Pending, save_safetensors
from loraport.store.bases import files_named, mark, remove

VERSION = 1
"""Of what is sampled and how it is laid out; part of every key."""
_ENTRY = re.compile(r"([0-9a-f]{64})\.safetensors")
_PARTIAL = re.compile(rf"\.[0-9a-f]{{64}}\.safetensors\.[0-9a-f]+\.part|{TEMPORARY.pattern}")
"""Leftovers of killed processes, of earlier versions too."""


class SampleStore:
    """The samples in one folder; without a folder nothing is kept. What is not readable is made again."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else expand_home(folder)
        self.found = self.made = 0

    def list(self) -> tuple[tuple[Path, int], ...]:
        """The files that hold samples, and their sizes, in the order of their names."""
        return tuple(file for file in self._files() if _ENTRY.fullmatch(file[0].name))

    def total_bytes(self) -> int:
        """Bytes of all files, those that an interrupted write left behind included."""
        return sum(size for _, size in self._files())

    def verify(self) -> tuple[tuple[Path, str], ...]:
        """The files that are torn or not what their name says, with the reason; nothing is removed."""
        reason = "cannot be read, or holds other samples than its name says; remove it"
        return tuple((path, f"{path} {reason}") for path, _ in self.list() if _read(path, path.stem) is None)

    def clear(self) -> tuple[int, int]:
        """Remove all samples and leftovers and nothing else; returns how many files and bytes that were."""
        return remove(self._files())

    def _files(self) -> tuple[tuple[Path, int], ...]:
        return () if self.folder is None else files_named(self.folder, "samples", _ENTRY, _PARTIAL)

    def recall(self, what: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that belong to the text `what`, from the store, or made now and kept, in float32."""
        key = hashlib.sha256(f"loraport samples {VERSION}\n{what}".encode()).hexdigest()
        path = None if self.folder is None else self.folder / "samples" / key[:2] / f"{key}.safetensors"
        kept = None if path is None else _read(path, key)
        if kept is not None:
            self.found += 1
            return kept
        self.made += 1
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in make().items()}
        if path is not None and self.folder is not None:
            _write(self.folder, path, key, tensors)
        return tensors


def _read(path: Path, key: str) -> dict[str, Tensor] | None:
    if not path.is_file():
        return None
    try:
        tensors, metadata = read_all(path)
        return tensors if metadata.get("key") == key else None
    except (InputError, OSError):
        return None  # torn, or removed by another process: made again


def _write(folder: Path, path: Path, key: str, tensors: dict[str, Tensor]) -> None:
    try:
        mark(folder)
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}; give another --cache") from error
    save_safetensors(path, {name: Pending.of(tensor) for name, tensor in tensors.items()}, {"key": key})
