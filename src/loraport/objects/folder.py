"""Objects as files of a folder: written beside and moved, so that no reader and no kill ever sees half of one."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from loraport.errors import OutputError
from loraport.files.disk.atomic import can_create, create_whole, new_file
from loraport.files.disk.user_paths import open_regular_file
from loraport.objects.object_names import OURS

_Answer = TypeVar("_Answer")
_UNFINISHED = f"{OURS}unfinished"
"""The folder of files that are being written: one, so that the many folders of objects need not be searched."""


@dataclass(frozen=True)
class Folder:
    """A backend on a disk that several processes, or several machines, share."""

    path: Path

    @property
    def url(self) -> str:
        """The path as it was typed."""
        return str(self.path)

    def creates_atomically(self) -> bool:
        """Return whether the disk has hard links, or moves that replace nothing. Raises OutputError."""
        return can_create(self.path / _UNFINISHED)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> bytes:
        """Return a file's bytes, or those of a range. Raises OSError."""
        with open_regular_file(self._file(name)) as file:
            if start is None:
                return file.read()
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)

    def write(self, name: str, data: bytes) -> None:
        """Write a file. Raises OutputError."""

        def write() -> None:
            with new_file(self.path / name, workplace=self.path / _UNFINISHED) as file:
                file.write(data)

        _again_without_folder(write)

    def create(self, name: str, data: bytes) -> bool:
        """Write a file that is not there. Raises OutputError."""
        return _again_without_folder(lambda: create_whole(self.path / name, data, workplace=self.path / _UNFINISHED))

    def names(self, prefix: str) -> list[str]:
        """Return the names of all files under the folder that a prefix names. Raises OSError."""
        found = []
        root = os.fspath(self.path)
        for folder, folders, files in os.walk(os.path.join(root, prefix), onerror=_raise):
            folders[:] = [name for name in folders if not name.startswith(OURS)]
            inside = os.path.relpath(folder, root)
            below = "" if inside == "." else f"{inside}/" if os.sep == "/" else f"{inside.replace(os.sep, '/')}/"
            found += [f"{below}{name}" for name in files if not name.startswith(OURS)]
        return found

    def size(self, name: str) -> int:
        """Return a file's size. Raises OSError."""
        return self._file(name).stat().st_size

    def facts(self, name: str) -> tuple[int, str, bool]:
        """Return size, version, and whether it is a folder. Raises OSError."""
        facts = (self.path / name).stat()
        version = f"{facts.st_dev} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns}"
        return facts.st_size, version, stat.S_ISDIR(facts.st_mode)

    def entries(self) -> list[str]:
        """Return the names of files and folders in the folder. Raises OSError."""
        return [name for name in os.listdir(self.path) if not name.startswith(OURS)]

    def delete(self, name: str) -> None:
        """Remove a file. Raises OSError."""
        self._file(name).unlink()

    def _file(self, name: str) -> Path:
        """Return an object's file. Raises FileNotFoundError where the name is that of a folder."""
        path = self.path / name
        if path.is_dir():
            raise FileNotFoundError(path)
        return path


def _raise(error: OSError) -> None:
    """Pass on why a folder cannot be listed; one that is not there, or goes meanwhile, has no files."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _again_without_folder(write: Callable[[], _Answer]) -> _Answer:
    """Write once more where another process, whose own writing failed, removed the folder that was made for both."""
    try:
        return write()
    except OutputError as error:
        if not isinstance(error.__cause__, FileNotFoundError):
            raise
        return write()
