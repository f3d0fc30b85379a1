"""Which file a header was read from: its data has to come from the same file, unchanged."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import FileIO, IOBase
from pathlib import Path

from loraport.errors import UnreadableError


@dataclass(frozen=True)
class FileIdentity:
    """A file as it was when it was first opened; a file that takes its name, or other content, differs somewhere."""

    device: int
    inode: int
    size: int
    changed: int
    """Nanoseconds; when its content was last changed."""

    @classmethod
    def of(cls, file: IOBase) -> FileIdentity:
        """Return the identity of an open file; one that lies on no disk tells by itself what it is."""
        look = getattr(getattr(file, "raw", file), "stat", None)
        return cls._of(os.fstat(file.fileno()) if look is None else look())

    @classmethod
    def at(cls, path: Path) -> FileIdentity:
        """Return the identity of what lies under a name. Raises OSError."""
        return cls._of(path.stat())

    @classmethod
    def _of(cls, facts: os.stat_result) -> FileIdentity:
        return cls(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)

    @contextmanager
    def open(self, path: Path, span: tuple[int, int] | None = None) -> Iterator[FileIO]:
        """Open the file again, unbuffered; check that it is the same before and after what is done with it.

        `span`: the bytes that will be read, for files that are far away.

        Raises UnreadableError where it cannot be read, or is not the same any more.
        """
        try:
            with path.open("rb", buffering=0) as file:
                self._check(file, path)
                if span is not None and (expect := getattr(file, "expect", None)) is not None:
                    expect(*span)
                yield file
                self._check(file, path)
        except OSError as error:
            raise UnreadableError(f"{path} cannot be read: {error.strerror or error}") from error

    def check(self, path: Path) -> None:
        """Raise UnreadableError where another file, or another content, is under the name now."""
        try:
            if self.at(path) != self:
                raise self.replaced(path)
        except OSError as error:
            raise UnreadableError(f"{path} cannot be read: {error.strerror or error}") from error

    def _check(self, file: IOBase, path: Path) -> None:
        if self.of(file) != self:
            raise self.replaced(path)

    @staticmethod
    def replaced(path: Path) -> UnreadableError:
        """Return the error for a file that was replaced."""
        return UnreadableError(f"{path} was replaced while it was read; start again")
