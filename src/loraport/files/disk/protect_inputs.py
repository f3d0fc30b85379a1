"""Refuse an output that would overwrite one of its inputs: one check for every command, before the work."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from loraport.errors import OutputError
from loraport.files.disk.user_paths import check_output, expand_home

LONGEST = 240
"""Bytes of an output's name; file systems allow 255, and the longest ending that is added is `-counter-drift`."""


Identity = tuple[int, int]
"""Of a file or folder on a disk, under whatever names."""


class ProtectedInputs:
    """The inputs of one run or of many, looked up once: checking an output then costs no more with a thousand of them.

    Links are followed, and files are compared by what their names lead to, so that upper and lower case count only
    where the file system tells them apart. An input that is not here (a name on the Hub, None) is passed over.
    """

    def __init__(self, inputs: Iterable[Path | str | None]) -> None:
        self._inputs: dict[Identity, str] = {}
        self._holders: dict[Identity, str] = {}
        """The folders that inputs lie in, however deep -> one of these inputs."""
        seen: set[Path] = set()
        for given in inputs:
            real = None if given is None else Path(os.path.realpath(expand_home(given)))
            identity = None if real is None else _identity(real)
            if real is None or identity is None:
                continue
            self._inputs.setdefault(identity, str(given))
            for folder in real.parents:
                if folder in seen:
                    break  # and so are those above it
                seen.add(folder)
                if (holder := _identity(folder)) is not None:
                    self._holders.setdefault(holder, str(given))

    def check(self, output: Path | str) -> None:
        """Raise OutputError as `protect_inputs`."""
        check_output(expand_home(output))
        target = Path(os.path.realpath(expand_home(output)))
        if len(os.fsencode(name := Path(output).name)) > LONGEST:
            raise OutputError(f"the name {name} has more than {LONGEST} bytes; give the result a shorter one")
        if (own := _identity(target)) in self._inputs:
            raise OutputError(f"{output} is an input of this run; give the result another name")
        for folder in target.parents:
            if given := self._inputs.get(_identity(folder) or (-1, -1)):
                raise OutputError(f"{output} lies inside {given}, an input of this run; give the result another place")
        if given := self._holders.get(own or (-1, -1)):
            raise OutputError(f"{output} holds {given}, an input of this run; give the result another place")


def protect_inputs(output: Path | str, inputs: Iterable[Path | str | None]) -> None:
    """Raise OutputError where an output is one of the inputs, lies in one that is a folder, holds one, or has a name
    too long for what stands beside it while it is made, or is a pipe, a socket or a device.
    """
    ProtectedInputs(inputs).check(output)


def _identity(path: Path) -> Identity | None:
    try:
        facts = path.stat()
    except (OSError, ValueError):  # not there, or not to be looked at
        return None
    return facts.st_dev, facts.st_ino
