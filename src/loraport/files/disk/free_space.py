"""Whether a result can be written where it shall be, as far as that can be known before the work."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from loraport.errors import OutputError
from loraport.files.disk.user_paths import expand_home


def check_free_space(needed: Mapping[Path, int]) -> None:
    """Raise OutputError where results (place -> the fewest bytes that it can have) do not fit together on one disk.

    What a disk does not tell is passed over. A result that is replaced makes no room: the new one is whole before.
    """
    on_one_disk: dict[int, list[Path]] = {}
    for place in needed:
        folder = nearest_folder(place)
        on_one_disk.setdefault(folder.stat().st_dev, []).append(place)
    for places in on_one_disk.values():
        free, least = _free(nearest_folder(places[0])), sum(needed[place] for place in places)
        if free is not None and least > free:
            others = f" with {len(places) - 1} more" if len(places) > 1 else ""
            raise OutputError(
                f"{places[0]} needs {_size(least)} at least{others}, and {_size(free)} are free there; make room, or "
                "name a place on another disk"
            )


def check_writable(place: Path) -> None:
    """Raise OutputError where the folder of a result, or the one that would hold it, takes no new files."""
    folder = nearest_folder(place)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"{place} cannot be written: {folder} takes no new files of yours; name another folder")


def nearest_folder(place: Path) -> Path:
    """The folder of a place, links followed; where it is not there, the one above it that is."""
    real = Path(os.path.realpath(expand_home(place)))
    return next(folder for folder in real.parents if folder.is_dir())


def _free(folder: Path) -> int | None:
    """The bytes that this user may still write; None where the file system does not say."""
    if not hasattr(os, "statvfs"):
        return shutil.disk_usage(folder).free
    facts = os.statvfs(folder)
    blocks = facts.f_bfree if os.geteuid() == 0 else facts.f_bavail  # what is set aside for root, root may use
    return blocks * facts.f_frsize if facts.f_blocks else None


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.2f} MB"
