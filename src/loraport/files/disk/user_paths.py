"""Paths as users type them: `~` stands for a home folder; pipes, sockets and devices are refused."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from loraport.errors import InputError, OutputError, UnreadableError

_KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def expand_home(path: str | Path) -> Path:
    """Return the path with `~` and `~user` as home folders; unchanged where there is no such user, or no home."""
    return Path(os.path.expanduser(path))


def check_input(path: Path) -> None:
    """Raise InputError for a pipe, a socket or a device: inputs are read in pieces, more than once."""
    if kind := _special(path):
        raise InputError(f"{path} is {kind}, which cannot be read in pieces; give a file or a folder")


def check_output(path: Path) -> None:
    """Raise OutputError for a pipe, a socket or a device, which a result would replace."""
    if kind := _special(path):
        raise OutputError(f"{path} is {kind}; give the result another name")


@contextmanager
def open_regular_file(path: Path) -> Iterator[BufferedReader]:
    """Open a file to read. Raises UnreadableError for a pipe, on which opening would wait for ever, and OSError."""
    if kind := _special(path):
        raise UnreadableError(f"{path} is {kind}, where a file of weights belongs; remove it or give another place")
    with path.open("rb") as file:
        yield file


def _special(path: Path) -> str | None:
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(path).st_mode))
    except (OSError, ValueError):  # not there, or not to be looked at: said when it is opened
        return None
