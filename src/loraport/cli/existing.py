"""What is there already is replaced only where that is asked for; before any work, by every command that writes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from loraport.errors import OutputError

_PAGE = "index.html"
_OF_PEFT = "adapter_model.safetensors"
_UNFINISHED = (".partial", ".candidates")
"""Behind the name of a result: what an earlier start has finished of it."""


def keep_existing(
    places: Iterable[str | Path | None],
    inputs: Iterable[str | Path | None],
    overwrite: bool,
    *,
    holding: str = _OF_PEFT,
) -> None:
    """Refuse results that are there already, files, or folders `holding` what fits; and, always, inputs as outputs.

    A run that goes on from an earlier start replaces what that start has written. Raises OutputError.
    """
    from loraport.files.disk.free_space import check_writable
    from loraport.files.disk.protect_inputs import protect_inputs
    from loraport.files.disk.user_paths import expand_home

    named, inputs = [expand_home(place) for place in places if place is not None], list(inputs)
    for place in named:
        protect_inputs(place, inputs)
        check_writable(place)
    if overwrite or any(os.path.exists(f"{place}{ending}") for place in named for ending in _UNFINISHED):
        return
    for place in named:
        if os.path.isfile(place) or _holds(place, holding):
            raise OutputError(f"{place} is there already; give --overwrite to replace it, or another name")


def earlier_transfers(places: Iterable[str | Path | None], overwrite: bool) -> list[Path]:
    """Those of the places at which a transfer of ours has left its result: it is made again, and that is said."""
    from loraport.errors import InputError
    from loraport.files.disk.user_paths import expand_home
    from loraport.files.formats.safetensors_read import read_safetensors
    from loraport.files.formats.safetensors_write import OWN_PREFIX

    def is_ours(place: Path) -> bool:
        file = place / _OF_PEFT if place.is_dir() else place
        try:
            return f"{OWN_PREFIX}target" in read_safetensors(file).metadata
        except (InputError, OSError):
            return False

    named = [expand_home(place) for place in places if place is not None]
    return [] if overwrite else [place for place in named if is_ours(place)]


def keep_analysis(folder: Path, ours: Iterable[str], inputs: Iterable[str | Path | None], overwrite: bool) -> None:
    """Refuse a folder with a page, of an earlier analysis or of somebody else, and one with other files named like
    `ours`, the first of which every analysis of ours leaves there; and, always, an input. Raises OutputError.
    """
    from loraport.files.disk.protect_inputs import protect_inputs

    protect_inputs(folder, inputs)
    if not overwrite and os.path.exists(folder / _PAGE):
        raise OutputError(f"{folder} has an {_PAGE} already; give --overwrite to replace it, or another folder")
    keep_foreign(folder, ours, overwrite)


def keep_foreign(folder: Path, ours: Iterable[str], overwrite: bool) -> None:
    """Refuse a folder in which somebody else's file would be replaced: an earlier run has left the first of `ours`.

    Raises OutputError.
    """
    mark, *others = ours
    if overwrite or os.path.isfile(folder / mark):
        return
    for name in (_PAGE, *others):
        if any(folder.glob(name)):
            raise OutputError(
                f"{folder} holds {name}, which no such run has written; name another folder, or give --overwrite to "
                "replace it"
            )


def _holds(folder: Path, pattern: str) -> bool:
    try:
        return any(entry.is_file() for entry in folder.glob(pattern))
    except OSError:  # a closed folder: said when it is written to
        return False
