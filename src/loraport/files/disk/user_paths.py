"""Paths as users type them: `~` stands for a home folder; pipes, sockets and devices are refused."""

from __future__ import annotations

import os
import re
import stat
import sys
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
    """Raise OutputError for a pipe, a socket or a device, which a result would replace; and for a name that means
    something else, on Windows.
    """
    if kind := _special(path):
        raise OutputError(f"{path} is {kind}; give the result another name")
    if sys.platform == "win32" and (why := unusual_on_windows(path.name)):
        raise OutputError(f"{path} cannot be the name of a result: {why}; give it another name")


_DEVICE = re.compile(r"(con|prn|aux|nul|com[0-9¹²³]|lpt[0-9¹²³])( *\..*)?", re.IGNORECASE)
"""Names that stand for devices on Windows, whatever ending follows."""


def unusual_on_windows(name: str) -> str | None:
    """Return why a name does not mean a file of that name on Windows; None where it does."""
    if _DEVICE.fullmatch(name):
        return f"{name.partition('.')[0]} is a device of Windows"
    if wrong := re.search(r'[<>:"|?*\x00-\x1f]', name):
        return f"Windows has no files with {wrong[0]!r} in their names"
    return "Windows drops dots and spaces at the end of a name" if name != name.rstrip(". ") else None


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
