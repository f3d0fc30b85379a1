"""Refuse, before any work, to replace what is there already, unless the user asked for it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from loraport.errors import OutputError

_PAGE = "index.html"
_OF_PEFT = "adapter_model.safetensors"
_UNFINISHED = (".partial", ".candidates")
"""Added to the name of a result: what an interrupted run has finished of it."""


def keep_existing(
    places: Iterable[str | Path | None],
    inputs: Iterable[str | Path | None],
    overwrite: bool,
    *,
    holding: str = _OF_PEFT,
) -> None:
    """Refuse results that are there already, files, or folders `holding` what fits; and, always, inputs as outputs.

    A run that resumes an interrupted one replaces what that has written. Raises OutputError.
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
    """Return the places that hold the result of an earlier transfer: these are made again, and that is said."""
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
    """Refuse a folder that has a page, an input, and a folder in which files of somebody else would be replaced.

    `ours`: the files that an analysis writes; the first of them marks a folder as ours. Raises OutputError.
    """
    from loraport.files.disk.protect_inputs import protect_inputs

    protect_inputs(folder, inputs)
    if not overwrite and os.path.exists(folder / _PAGE):
        raise OutputError(f"{folder} has an {_PAGE} already; give --overwrite to replace it, or another folder")
    keep_foreign(folder, ours, overwrite)


def keep_foreign(folder: Path, ours: Iterable[str], overwrite: bool) -> None:
    """Refuse a folder in which files of somebody else would be replaced. Raises OutputError.

    `ours`: the files that the command writes; the first of them marks a folder as ours.
    """
    mark, *others = ours
    if overwrite or os.path.isfile(folder / mark):
        return
    for name in (_PAGE, *others):
        if any(folder.glob(name)):
            raise OutputError(
                f"{folder} holds {name}, which is not from an earlier run; name another folder, or give --overwrite to "
                "replace it"
            )


def _holds(folder: Path, pattern: str) -> bool:
    try:
        return any(entry.is_file() for entry in folder.glob(pattern))
    except OSError:  # not readable: said when it is written to
        return False
