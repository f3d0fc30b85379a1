"""Places as people name them: `~` for a home folder, and nothing but files and folders behind them."""

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


def expand_home(place: str | Path) -> Path:
    """The path with `~` and `~user` as their home folders; where there is no such user, or no home, as it is."""
    return Path(os.path.expanduser(place))


def check_input(place: Path) -> None:
    """Raise InputError for a pipe, a socket or a device: what is read is read in several places, and again."""
    if kind := _special(place):
        raise InputError(f"{place} is {kind}, which cannot be read in pieces; give a file or a folder")


def check_output(place: Path) -> None:
    """Raise OutputError for a pipe, a socket or a device, which a result would replace."""
    if kind := _special(place):
        raise OutputError(f"{place} is {kind}; give the result another name")


@contextmanager
def open_regular_file(path: Path) -> Iterator[BufferedReader]:
    """A file to read from. Raises UnreadableError for a pipe, on which opening would wait for ever, and OSError."""
    if kind := _special(path):
        raise UnreadableError(f"{path} is {kind}, where a file of weights belongs; remove it or give another place")
    with path.open("rb") as file:
        yield file


def _special(place: Path) -> str | None:
    try:
        return _KINDS.get(stat.S_IFMT(os.stat(place).st_mode))
    except (OSError, ValueError):  # not there, or not to be looked at: said when it is opened
        return None
