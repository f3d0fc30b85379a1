"""A temporary folder for candidates beside an output, with a list of their names, so that only ours are deleted."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from loraport.errors import OutputError
from loraport.files.disk.atomic import write_whole
from loraport.files.disk.ownership import Lock

LIST, LOCK = "candidates.txt", "lock"
_UNFINISHED = re.compile(r"\..+\.part")


@contextmanager
def candidate_folder(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """Make the folder, or take it as an interrupted run has left it; remove it at the end, or where it stayed empty.

    `names` are the files and folders that will be written. Raises OutputError where another run uses the folder, or it
    holds anything that neither this run nor the interrupted one has listed; nothing is touched then.
    """
    listed = {*names, *_listed(folder)}
    known = {LIST, LOCK, *listed, *(f"{name}.partial" for name in listed)}
    present = (
        {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name} if folder.exists() else set()
    )
    foreign = sorted(name for name in present - known if not _UNFINISHED.fullmatch(name))
    if foreign:
        raise OutputError(f"{folder} is in the way of the candidates: {foreign[0]} is not of a transfer; move it away")
    lock = Lock(folder / LOCK)
    try:
        lock.take(str(folder))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}; choose another place") from error
    try:
        write_whole(folder / LIST, ("\n".join(sorted(listed)) + "\n").encode())
        yield
    except BaseException:
        if not any(path.name in listed or path.name.endswith(".partial") for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _listed(folder: Path) -> tuple[str, ...]:
    place = folder / LIST
    return tuple(place.read_text(encoding="utf-8", errors="replace").splitlines()) if place.is_file() else ()
