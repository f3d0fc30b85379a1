"""The cache's folder: where it lies, whether it is ours, and whether others could have written what is in it."""

from __future__ import annotations

import os
from pathlib import Path

from loraport.errors import InputError, SettingsError
from loraport.files.disk.atomic import write_whole
from loraport.files.disk.user_paths import expand_home
from loraport.store.keyed import LEFT_OVER

MARKER = "CACHEDIR.TAG"
_MARKER_TEXT = (
    "Signature: 8a477f597d28d172789f06886806bc55\n"
    "# Singular bases of model weights, kept by loraport; safe to delete. For the signature see https://bford.info/cachedir/\n"
)


def default_folder() -> Path:
    """Return $LORAPORT_CACHE, else $XDG_CACHE_HOME/loraport, else ~/.cache/loraport.

    Raises SettingsError without a home. The same on every system, as for the Hub's cache and PyTorch's, beside which it
    lies: a library for folders by system would move existing caches on macOS and Windows and save three lines.
    """
    if own := os.environ.get("LORAPORT_CACHE"):
        return expand_home(own)
    folder = expand_home(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    if folder.parts[0].startswith("~"):
        raise SettingsError("there is no home folder for the cache; set HOME, or give --cache or --no-cache")
    return folder / "loraport"


def default_cache() -> str:
    """Return the folder in which the command line keeps singular bases, for the `cache` of a configuration.

        folder = loraport.default_cache()
        config = loraport.TransferConfig("style.safetensors", "wan/", "fastwan/", "cached.safetensors", cache=folder)

    It is made when the first basis is kept. Raises SettingsError without a home folder.
    """
    return str(default_folder())


def check_ours(folder: Path) -> None:
    """Raise InputError for a folder that is not marked as a cache of ours, not empty and not new."""
    if not _is_ours(folder):
        raise InputError(f"{folder} is not a cache of loraport and not empty; give another folder for the cache")


def mark(folder: Path) -> None:
    """Make the folder, and say in it that it is a cache of ours. Raises OSError, OutputError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not (folder / MARKER).is_file():
        write_whole(folder / MARKER, _MARKER_TEXT.encode(), private=True)


def distrust(path: Path) -> str | None:
    """Return why a file or folder is not trusted: it belongs to somebody else, or others may write it. None if it is.

    Where the system has no owners, everything is trusted.
    """
    if not hasattr(os, "geteuid") or not path.exists():
        return None
    state = path.stat()
    if state.st_uid != os.geteuid():
        return "it belongs to another user"
    if path.is_symlink() and path.is_file():
        return "it is a link"
    return "other users may write it" if state.st_mode & 0o022 else None


def _is_ours(folder: Path) -> bool:
    if not folder.exists():
        return True
    if not folder.is_dir():
        return False
    marker = folder / MARKER
    if marker.is_file():
        return "loraport" in marker.read_text(errors="replace")
    return all(LEFT_OVER.fullmatch(path.name) for path in folder.iterdir())  # killed before it was marked
