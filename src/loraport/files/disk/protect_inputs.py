"""Refuse an output that would overwrite one of its inputs: one check for every command, before the work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from loraport.errors import OutputError
from loraport.files.disk.user_paths import check_output, expand_home

LONGEST = 240
"""Bytes of an output's name; file systems allow 255, and the longest ending that is added is `-counter-drift`."""


def protect_inputs(output: Path | str, inputs: Iterable[Path | str | None]) -> None:
    """Raise OutputError where an output is one of the inputs, lies in one that is a folder, holds one, or has a name
    too long for what stands beside it while it is made, or is a pipe, a socket or a device.

    Links are followed, and names are compared by what they lead to, so that upper and lower case count only where the
    file system tells them apart. An input that is not here (a name on the Hub, None) is passed over.
    """
    check_output(expand_home(output))
    target = Path(os.path.realpath(expand_home(output)))
    if len(os.fsencode(Path(output).name)) > LONGEST:
        raise OutputError(f"the name {Path(output).name} has more than {LONGEST} bytes; give the result a shorter one")
    for given in inputs:
        real = None if given is None else Path(os.path.realpath(expand_home(given)))
        if real is None or not os.path.exists(real):
            continue
        if _same(target, real):
            raise OutputError(f"{output} is an input of this run; give the result another name")
        if any(_same(folder, real) for folder in target.parents):
            raise OutputError(f"{output} lies inside {given}, an input of this run; give the result another place")
        if any(_same(target, folder) for folder in real.parents):
            raise OutputError(f"{output} holds {given}, an input of this run; give the result another place")


def _same(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:  # one of them is not there, or cannot be looked at
        return False
