"""Check before the work that a result can be written: there is room on the disk, and the folder takes new files."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from loraport.errors import OutputError
from loraport.files.disk.user_paths import expand_home


def check_free_space(needed: Mapping[Path, int]) -> None:
    """Raise OutputError where results (path -> the fewest bytes that it can have) do not fit together on one disk.

    What a disk does not tell is passed over. A result that is replaced frees nothing: the new one is written before.
    """
    on_one_disk: dict[int, list[Path]] = {}
    for path in needed:
        folder = nearest_folder(path)
        on_one_disk.setdefault(folder.stat().st_dev, []).append(path)
    for paths in on_one_disk.values():
        free, least = _free(nearest_folder(paths[0])), sum(needed[path] for path in paths)
        if free is not None and least > free:
            others = f" with {len(paths) - 1} more" if len(paths) > 1 else ""
            raise OutputError(
                f"{paths[0]} needs {_size(least)} at least{others}, and {_size(free)} are free there; make room, or "
                "name a folder on another disk"
            )


def check_writable(path: Path) -> None:
    """Raise OutputError where the folder of a result, or the one that would hold it, takes no new files."""
    folder = nearest_folder(path)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{path} cannot be written: {folder} takes no new files of yours; name another folder")


def nearest_folder(path: Path) -> Path:
    """Return the folder of a path, links followed; where it does not exist, the nearest one above it that does."""
    real = Path(os.path.realpath(expand_home(path)))
    return next(folder for folder in real.parents if folder.is_dir())


def _free(folder: Path) -> int | None:
    """Return the bytes that this user may still write; None where the file system does not say."""
    if not hasattr(os, "statvfs"):
        return shutil.disk_usage(folder).free
    facts = os.statvfs(folder)
    blocks = facts.f_bfree if os.geteuid() == 0 else facts.f_bavail  # what is set aside for root, root may use
    return blocks * facts.f_frsize if facts.f_blocks else None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
