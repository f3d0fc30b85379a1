"""Files in a store as paths: what readers do with a file on a disk, they do with one that lies behind a URL.

A header costs two requests and a tensor its own bytes, whatever else is in the file. Nothing is written this way.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from loraport.objects.network import FsspecFolder
from loraport.objects.open import is_url, local_path, open_objects
from loraport.objects.store import MissingObjectError, ObjectStore

PIECE, AHEAD = 16 << 20, 4
"""Bytes of one request where much is read, and how many of them are under way at once."""


def path_of(place: str | Path) -> Path:
    """Return a place as a path: of a URL one that reads behind it, of `file://` and all else the one on the disk."""
    if isinstance(place, str) and is_url(place):
        return local_path(place) if place.lower().startswith("file://") else UrlPath(place)
    return Path(place)


class UrlPath(type(Path())):  # type: ignore[misc]
    """A file or a folder behind a URL; it can be looked at and read."""

    def __str__(self) -> str:
        return super().__str__().replace("\\", "/").replace(":/", "://", 1)

    __fspath__ = __str__

    def stat(self, *, follow_symlinks: bool = True) -> os.stat_result:
        """Return kind and size; the numbers that tell a file from another come from its version. Raises OSError."""
        try:
            facts = _store(str(self.parent)).facts(self.name)
        except MissingObjectError as error:
            raise FileNotFoundError(2, "No such file in the store", str(self)) from error
        kind = stat.S_IFDIR if facts.is_folder else stat.S_IFREG
        number = int.from_bytes(hashlib.sha256(facts.version.encode()).digest()[:6], "little")
        times = (number, number, number, float(number), float(number), float(number))
        return os.stat_result((kind | 0o444, number, 0, 1, 0, 0, facts.size, *times))

    def exists(self, **_: Any) -> bool:
        """Return whether there is one."""
        return self._mode() != 0

    def is_file(self, **_: Any) -> bool:
        """Return whether it is one object."""
        return stat.S_ISREG(self._mode())

    def is_dir(self, **_: Any) -> bool:
        """Return whether objects lie below it."""
        return stat.S_ISDIR(self._mode())

    def iterdir(self) -> Iterator[UrlPath]:
        """Yield what lies directly in it."""
        for name in _store(str(self)).entries():
            yield self / name

    def open(self, mode: str = "r", buffering: int = -1, *words: Any, **named: Any) -> Any:
        """Open it to read bytes. Raises OSError, and ValueError for any other way."""
        if mode != "rb":
            raise ValueError(f"{self} can only be read, as bytes")
        raw = RangeFile(_store(str(self.parent)), self)
        return raw if buffering == 0 else io.BufferedReader(raw, 1 << 16)

    def read_bytes(self) -> bytes:
        """Return all of it. Raises OSError."""
        with self.open("rb") as file:
            content: bytes = file.read()
        return content

    def _mode(self) -> int:
        try:
            return self.stat().st_mode
        except OSError:
            return 0


class RangeFile(io.RawIOBase):
    """An object that is read by ranges."""

    def __init__(self, store: ObjectStore, path: UrlPath) -> None:
        self._store, self._path, self._place = store, path, 0
        self._size = path.stat().st_size
        self._span = (0, 0)
        self._pieces: dict[int, Future[bytes]] = {}
        self._pool: ThreadPoolExecutor | None = None

    def stat(self) -> os.stat_result:
        """Return what the object is now."""
        return self._path.stat()

    def expect(self, start: int, stop: int) -> None:
        """Say what will be read from now on, so that it comes in large pieces and ahead."""
        self._span = (start, min(stop, self._size))

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        self._place = offset + (0, self._place, self._size)[whence]
        return self._place

    def tell(self) -> int:
        """Return the place."""
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read bytes from the place on; 0 at the end. Raises LoraportError for the store."""
        view = memoryview(buffer).cast("B")
        count = min(len(view), max(0, self._size - self._place))
        if not count:
            return 0
        content = self._at(self._place, count)
        view[: len(content)] = content
        self._place += len(content)
        return len(content)

    def close(self) -> None:
        """Let go of what is under way."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
        super().close()

    def _at(self, place: int, count: int) -> bytes:
        start, stop = self._span
        if not start <= place < stop or stop - start <= count:
            return self._store.read_range(self._path.name, place, place + count)
        if self._pool is None:
            self._pool = ThreadPoolExecutor(AHEAD, "loraport-ranges")
        number = (place - start) // PIECE
        for ahead in range(number, number + AHEAD):
            begin = start + ahead * PIECE
            if begin < stop and ahead not in self._pieces:
                end = min(stop, begin + PIECE)
                self._pieces[ahead] = self._pool.submit(self._store.read_range, self._path.name, begin, end)
        for before in [one for one in self._pieces if one < number]:
            del self._pieces[before]
        inside = place - start - number * PIECE
        return self._pieces[number].result()[inside : inside + count]


@lru_cache(64)
def _store(folder: str) -> ObjectStore:
    """Return the store whose objects are the files of a folder, under the names that whoever wrote them gave them."""
    store = open_objects(folder)
    if not isinstance(store.backend, FsspecFolder):
        raise ValueError(f"{folder} is no folder behind a URL")
    return ObjectStore(store.backend, store.patience, as_they_are=True)
