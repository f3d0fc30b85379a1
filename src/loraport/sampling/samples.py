"""Samples kept by what they depend on: an interrupted score goes on where it was, a second adapter reuses the first's.

One file per batch, `samples/ab/<key>.safetensors` in the cache, safe to delete at any time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from loraport.digests import text_digest
from loraport.errors import OutputError
from loraport.files.disk.user_paths import expand_home
from loraport.store.cache_folder import mark
from loraport.store.keyed import Entry, KeyedStore, StoreFile, remove_files, store_files

VERSION = 2
"""Of what is sampled and how it is laid out; part of every key."""


class SampleStore:
    """The samples in one folder; without a folder nothing is kept. What is not readable is made again."""

    name: ClassVar[str] = "samples"
    """Of the folder in the cache's own."""
    what: ClassVar[str] = "other samples"
    """What a file of another name holds, for the sentence that says so."""

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else expand_home(folder)
        self.found = self.made = 0
        self._store = None if self.folder is None else KeyedStore(self.folder / self.name)

    def list(self) -> tuple[StoreFile, ...]:
        """Return the files that hold samples, by key."""
        return tuple(file for file in self._files() if file.is_entry)

    def total_bytes(self) -> int:
        """Return the bytes of all files, those that an interrupted write left behind included."""
        return sum(file.bytes for file in self._files())

    def verify(self) -> tuple[tuple[Path, str], ...]:
        """Return the files that are torn or not what their name says, with the reason; nothing is removed."""
        reason = f"cannot be read, or holds {self.what} than its name says; remove it"
        broken = (file.path for file in self.list() if self._store is None or self._store.get(file.key) is None)
        return tuple((path, f"{path} {reason}") for path in broken)

    def clear(self) -> tuple[int, int]:
        """Remove all samples and leftovers and nothing else; return how many files and bytes that were."""
        return remove_files(self._files())

    def _files(self) -> tuple[StoreFile, ...]:
        return () if self.folder is None else store_files(self.folder, self.name)

    def recall(self, what: str, make: Callable[[], dict[str, Tensor]]) -> Mapping[str, Tensor]:
        """Return the tensors that belong to the text `what`, stored, or made now and kept, in float32.

        Raises OutputError where they cannot be kept: unlike a basis, a sample costs minutes.
        """
        key = text_digest(f"loraport samples {VERSION}", what)
        if self._store is not None and (entry := self._store.get(key)) is not None:
            self.found += 1
            return entry.tensors
        self.made += 1
        tensors = {name: tensor.detach().float().cpu().contiguous() for name, tensor in make().items()}
        self._keep(key, Entry(tensors))
        return tensors

    def _keep(self, key: str, entry: Entry) -> None:
        if self.folder is not None and self._store is not None:
            try:
                mark(self.folder)
                self._store.put(key, entry)
            except OSError as error:
                why = error.strerror or error
                raise OutputError(f"{self.folder} cannot be written: {why}; give another --cache") from error
