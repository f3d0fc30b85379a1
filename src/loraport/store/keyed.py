"""Tensors and facts on disk, by key: one safetensors file an entry, whole or absent, checked when it is read back.

Four stores stand on it, which differ in what they do about an entry that cannot be used or written: the cache of bases
(`bases`), the samples, the journal of a transfer, and the parts of a lab run. Libraries for caches keep values
in a database or as pickles, for one program; an entry here has up to gigabytes, and any reader of safetensors opens it.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from loraport.errors import FileFormatError, InputError
from loraport.files.disk.atomic import TEMPORARY
from loraport.files.formats.safetensors_read import read_all
from loraport.files.formats.safetensors_write import Pending, save_safetensors

Seal = Callable[[str, Mapping[str, Tensor]], Mapping[str, str]]
"""What an entry says of itself, made of its key and tensors: when it is read back, it has to say the same."""

LEFT_OVER = re.compile(rf"{TEMPORARY.pattern}|\.loraport-.*\.tmp|\.[0-9a-f]{{64}}\.safetensors\.[0-9a-f]+\.part")
"""Names of what killed processes leave; the last two are those of earlier versions."""
_ENTRY = re.compile(r"[0-9a-f]{64}\.safetensors")
_FACTS = "facts"


@dataclass(frozen=True)
class Entry:
    """What lies under one key: tensors, and plain facts about them (what JSON can hold)."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoreFile:
    """The file of an entry."""

    path: Path
    bytes: int

    @property
    def key(self) -> str:
        """The key of the entry."""
        return self.path.stem

    @property
    def is_entry(self) -> bool:
        """Whether it is an entry, and not what a killed process left behind."""
        return _ENTRY.fullmatch(self.path.name) is not None


def by_key(key: str, tensors: Mapping[str, Tensor]) -> Mapping[str, str]:
    """Return the least seal: the key, so that a file that was renamed or copied does not pass for another entry.

    A key is a digest of all that the entry's values follow from, and the stem of its file's name.
    """
    return {"key": key}


@dataclass(frozen=True)
class KeyedStore:
    """The entries in one folder, which the first of them creates. Keys are hexadecimal digests."""

    folder: Path
    seal: Seal = by_key
    flat: bool = False
    """All files in the folder itself; else in subfolders by the first two letters, since a cache grows for years."""
    private: bool = False
    """Whether files and folders are their owner's alone."""

    def path(self, key: str) -> Path:
        """Where the entry of a key lies."""
        return (self.folder if self.flat else self.folder / key[:2]) / f"{key}.safetensors"

    def put(self, key: str, entry: Entry) -> None:
        """Write an entry; one that is there is replaced. Raises OutputError, OSError."""
        path, facts = self.path(key), {_FACTS: json.dumps(dict(entry.facts))} if entry.facts else {}
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700 if self.private else 0o777)
        pending = {name: Pending.of(tensor) for name, tensor in entry.tensors.items()}
        save_safetensors(path, pending, {**self.seal(key, entry.tensors), **facts}, private=self.private)

    def get(self, key: str) -> Entry | None:
        """Return an entry, or None: what is damaged or another's counts as absent, and so does what cannot be read."""
        if not self.path(key).is_file():
            return None
        try:
            return self.read(key)
        except (InputError, OSError):  # torn, or removed by another process in this moment
            return None

    def read(self, key: str, *, pinned: bool = False) -> Entry:
        """Return an entry that is there; `pinned`: in memory that a card copies from.

        Raises FileFormatError for a damaged or another's, InputError, OSError.
        """
        path = self.path(key)
        tensors, metadata = read_all(path, pinned=pinned)
        text = metadata.pop(_FACTS, "{}")
        if metadata != self.seal(key, tensors):
            raise FileFormatError(f"{path} does not match its checksum; remove it")
        try:
            facts = json.loads(text)
        except ValueError as error:
            raise FileFormatError(f"{path} has facts that are not JSON; remove it") from error
        if not isinstance(facts, dict):
            raise FileFormatError(f"{path} has facts that are not a table; remove it")
        return Entry(tensors, facts)


def store_files(root: Path, names: str) -> tuple[StoreFile, ...]:
    """Return the files of the stores in a folder whose names fit a pattern, by path; the stores are not flat.

    What killed processes left behind is among them; links and files of other names are not, since they are not ours.
    """
    files = []
    for path in sorted(root.glob(f"{names}/[0-9a-f][0-9a-f]/*")):
        if path.parent.is_symlink() or path.parent.parent.is_symlink():
            continue
        with contextlib.suppress(FileNotFoundError):  # another process was faster
            file = StoreFile(path, path.stat().st_size)
            if (file.is_entry or LEFT_OVER.fullmatch(path.name)) and path.is_file() and not path.is_symlink():
                files.append(file)
    return tuple(files)


def remove_files(files: Sequence[StoreFile]) -> tuple[int, int]:
    """Remove files of a store and the folders that are empty then; return how many files and bytes that were."""
    for file in files:
        file.path.unlink(missing_ok=True)
    for folder in {file.path.parent for file in files}:
        with contextlib.suppress(OSError):  # not empty: another process writes, or something there is not ours
            folder.rmdir()
    return len(files), sum(file.bytes for file in files)
