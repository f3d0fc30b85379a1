"""The cache of singular bases: the same weight is decomposed once, whatever file it lies in.

An entry is a file `v5/ab/<key>.safetensors` with a checksum that every read verifies; processes may share the folder
and die in it, and all of it is safe to delete. How matrices are packed: `packing`.

What is used is always the entry as it reads back, in the run that computed it as in every later one, with a cache or
without: a cold, a warm and an interrupted run give the same bytes. Only the user's own files are trusted: a folder or
an entry that belongs to somebody else, or that others may write, is not used, and an entry has to agree with the weight
that it is asked for.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from loraport.digests import content_hash, text_digest
from loraport.errors import FileFormatError, InputError, OutputError
from loraport.files.disk.user_paths import expand_home
from loraport.lazy_property import lazy_property
from loraport.progress import NO_PROGRESS, Progress
from loraport.spectral.basis import Basis
from loraport.store.behind import WriteBehind, start_to_host
from loraport.store.cache_folder import check_ours, distrust, mark
from loraport.store.keyed import Entry, KeyedStore, StoreFile, remove_files, store_files
from loraport.store.packing import checked_basis, is_whole, pack_basis, unpack_basis

VERSION = 5
"""Of the entries' layout and meaning; part of every key and of the folder's name."""

Value = TypeVar("Value")
Unpack = Callable[[Mapping[str, Tensor]], Value]
"""Returns what the tensors of an entry stand for; one that checks returns instead, as a sentence, what is wrong."""
Fetched = Mapping[str, Mapping[str, Tensor] | None]
"""Key -> the entry that was read before it was needed; None where there is none."""
NOTHING_FETCHED: Fetched = {}


def entry_key(fingerprint: str, algorithm: str = "thin svd") -> str:
    """Return the key of a basis or a routing: a digest of what it is made of (dtype, shape, bytes) and of how.

    The empty last line ends the one before it; without it, entries that users have would be under other keys.
    """
    return text_digest(f"loraport basis {VERSION}", algorithm, fingerprint, "")


@dataclass(frozen=True)
class CachedBasis:
    """A basis as it is stored, and whether it was there before."""

    basis: Basis
    found: bool


class BasisCache:
    """The bases in one folder; without a folder nothing is kept, and the values are the same.

    The folder is created by the first `put`. Raises InputError where the folder exists and holds anything else. A run
    goes on where an entry cannot be read or written; `notes` says so.
    """

    def __init__(self, folder: str | Path | None) -> None:
        self.folder = None if folder is None else expand_home(folder)
        if self.folder is not None:
            check_ours(self.folder)
        self._refused: Counter[str] = Counter()
        self._not_kept: set[str] = set()
        self._behind = WriteBehind()

    @property
    def notes(self) -> tuple[str, ...]:
        """What the cache was not used for, and why."""
        self.finish()
        unwritten = (f"bases were not kept in the cache: {why}" for why in sorted(self._not_kept))
        refused = (f"{count} entries of the cache were made anew: {why}" for why, count in self._refused.items())
        return (*unwritten, *((distrusted,) if (distrusted := self._distrust) else ()), *sorted(refused))

    @lazy_property
    def _distrust(self) -> str | None:
        """Why the folder is not used, decided once for as long as the cache is open."""
        if self.folder is None or not (why := distrust(self.folder)):
            return None
        return f"the cache {self.folder} was not used: {why}; make it your own alone (chmod go-w), or give another"

    @lazy_property
    def _store(self) -> KeyedStore | None:
        """Where the entries are; None where nothing is kept, or the folder is not trusted."""
        if self.folder is None or self._distrust:
            return None
        return KeyedStore(self.folder / f"v{VERSION}", _seal, private=True)

    def get(self, key: str, W: Tensor) -> Basis | None:
        """Return the basis of a weight on its device, or None. A damaged or foreign entry is absent, and is removed."""
        return self._get(key, lambda stored: checked_basis(stored, W, key))

    def put(self, key: str, basis: Basis) -> None:
        """Write an entry; an existing one is replaced. `notes` says why where it cannot be written."""
        self._put(key, pack_basis(basis))
        self._behind.finish(key)

    def get_or_compute(
        self, key: str, W: Tensor, compute: Callable[[Tensor], Basis], fetched: Fetched = NOTHING_FETCHED
    ) -> CachedBasis:
        """Return the stored basis of a weight, or the computed one rounded, stored and restored: the same values."""
        basis, found = self.get_or_make(
            key,
            lambda: pack_basis(compute(W)),
            lambda made: unpack_basis(made, W),
            lambda stored: checked_basis(stored, W, key),
            fetched,
        )
        return CachedBasis(basis, found)

    def get_or_make(
        self,
        key: str,
        make: Callable[[], dict[str, Tensor]],
        unpack: Unpack[Value],
        unpack_checked: Unpack[Value | str],
        fetched: Fetched = NOTHING_FETCHED,
    ) -> tuple[Value, bool]:
        """Return what a key stands for, stored or made now and written, and whether it was there.

        `fetched`: entries that `fetch` has read before, on another thread.
        """
        if (value := self._get(key, unpack_checked, fetched)) is not None:
            return value, True
        made = make()
        self._put(key, made)
        return unpack(made), False

    def fetch(self, key: str, *, pinned: bool = False) -> Mapping[str, Tensor] | None:
        """Return the tensors of an entry whose checksum is right, or None; what they are of shows when they are used.

        `pinned`: into memory that a card copies from.
        """
        self._behind.finish(key)
        if self._store is None or not (path := self._store.path(key)).is_file():
            return None
        try:
            if why := distrust(path):
                self._refused[why] += 1
                return None
            return self._store.read(key, pinned=pinned).tensors
        except FileFormatError:
            with contextlib.suppress(OSError):
                path.unlink()
        except (InputError, OSError):
            pass  # removed by another process, or not ours to read: absent either way
        return None

    def _get(self, key: str, unpack_checked: Unpack[Value | str], fetched: Fetched = NOTHING_FETCHED) -> Value | None:
        tensors = fetched[key] if key in fetched else self.fetch(key)
        if tensors is None or self._store is None:
            return None
        value = unpack_checked(tensors)
        if not isinstance(value, str):
            return value
        self._refused[value] += 1
        with contextlib.suppress(OSError):
            self._store.path(key).unlink()
        return None

    def finish(self) -> None:
        """Wait until all entries are written."""
        self._behind.finish()

    def _put(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        if self.folder is not None and self._store is not None:
            copied = start_to_host(tensors)
            self._behind.submit(key, lambda: self._write(key, copied()))

    def _write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        if self.folder is None or self._store is None:
            return
        try:
            mark(self.folder)
            self._store.put(key, Entry(tensors))
        except (OSError, OutputError) as error:
            cause = error.__cause__ if isinstance(error, OutputError) else error
            self._not_kept.add(f"{self.folder}: {getattr(cause, 'strerror', None) or error}")

    def list(self) -> tuple[StoreFile, ...]:
        """Return the files of the entries, by key."""
        return tuple(file for file in self._files() if file.is_entry and file.path.parts[-3] == f"v{VERSION}")

    def total_bytes(self) -> int:
        """Return the bytes of all files, leftovers of interrupted writes and of earlier versions included."""
        return sum(file.bytes for file in self._files())

    def verify(self, progress: Progress = NO_PROGRESS) -> tuple[tuple[StoreFile, str], ...]:
        """Return the entries that are torn, altered or not the user's own, each with what is wrong; none is removed.

        Whether a basis is that of its weight shows when a run has the weight at hand, and is checked then.
        """
        if self.folder is None:
            return ()
        broken = []
        files, store = self.list(), KeyedStore(self.folder / f"v{VERSION}", _seal, private=True)
        progress.advance("verifying", 0, len(files))
        for number, file in enumerate(files, 1):
            progress.advance("verifying", number, len(files))
            try:
                tensors = store.read(file.key).tensors
                if why := distrust(file.path) or _incomplete(tensors):
                    broken.append((file, f"{file.path}: {why}"))
            except (InputError, OSError) as error:
                broken.append((file, str(error)))
        return tuple(broken)

    def clear(self) -> tuple[int, int]:
        """Remove all entries and leftovers, of every version, and nothing else; return how many files and bytes."""
        return remove_files(self._files())

    def _files(self) -> tuple[StoreFile, ...]:
        """Our files of every version."""
        self.finish()
        return () if self.folder is None else store_files(self.folder, "v[0-9]")


def _incomplete(tensors: Mapping[str, Tensor]) -> str | None:
    """Return what an entry lacks although its checksum is right: a part of a basis. `C` is a routing's."""
    return None if "C" in tensors or is_whole(tensors) else "it lacks parts of a basis, or has others"


def _seal(key: str, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Return the format, the version and a checksum over the key and all that is stored."""
    digest = content_hash(key)
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return {"format": "loraport basis", "version": str(VERSION), "blake3": digest.hexdigest()}
