"""The folder beside an output in which candidates wait for the verdict; a list in it says what in it is ours."""

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
def waiting_room(folder: Path, names: Iterable[str]) -> Iterator[None]:
    """The folder, made, or as an earlier run has left it; removed at a good end, and where nothing has come into it.

    `names` are the files and folders that will be written. Raises OutputError where another run has it, or it holds
    anything that neither this run nor the one that left it has listed; nothing is touched then.
    """
    mine = {*names, *_listed(folder)}
    known = {LIST, LOCK, *mine, *(f"{name}.partial" for name in mine)}
    found = {path.name for path in folder.iterdir()} if folder.is_dir() else {folder.name} if folder.exists() else set()
    foreign = sorted(name for name in found - known if not _UNFINISHED.fullmatch(name))
    if foreign:
        raise OutputError(f"{folder} is in the way of the candidates: {foreign[0]} is not of a transfer; move it away")
    lock = Lock(folder / LOCK)
    try:
        lock.take(str(folder))
    except OSError as error:
        raise OutputError(f"{folder} cannot be written: {error.strerror or error}; choose another place") from error
    try:
        write_whole(folder / LIST, ("\n".join(sorted(mine)) + "\n").encode())
        yield
    except BaseException:
        if not any(path.name in mine or path.name.endswith(".partial") for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        lock.release()


def _listed(folder: Path) -> tuple[str, ...]:
    place = folder / LIST
    return tuple(place.read_text(encoding="utf-8", errors="replace").splitlines()) if place.is_file() else ()
