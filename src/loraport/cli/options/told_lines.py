"""Tell another program how a command goes: messages and progress as JSON Lines on stderr, where it asks for them.

It asks by the environment variable LORAPORT_PROGRESS=json. Each report is a line that is one object: `{"step": ...}`,
`{"advance": ...}` or `{"note": ...}`; every other line is text for people, the reason for a refusal among it.
"""

from __future__ import annotations

import os
import time
from typing import Any

from loraport.console import Terminal
from loraport.plain_json import json_text
from loraport.progress import ASKED_FOR_LINES

_OFTEN = 0.1
"""Seconds between two reports of the same work."""


def is_asked_for() -> bool:
    """Return whether the program that started this one wants lines instead of a bar."""
    return os.environ.get(ASKED_FOR_LINES) == "json"


class ToldLines(Terminal):
    """Writes reports as lines, instead of drawing them."""

    def __init__(self, *, quiet: bool = False, verbose: bool = False) -> None:
        super().__init__(quiet=quiet, verbose=verbose)
        self._last = ("", 0.0)

    def __enter__(self) -> ToldLines:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def step(self, text: str, done: int, total: int) -> None:
        """Tell which of several longer steps begins."""
        self._tell(step=text, done=done, total=total)

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Tell how far the work is, a few times a second, and at its begin and end."""
        before, then = self._last
        now = time.monotonic()
        if text == before and 0 < done < total and now - then < _OFTEN:
            return
        self._last = text, now
        self._tell(advance=text, done=done, total=total, part=part)

    def note(self, text: str) -> None:
        """Tell something worth reading."""
        self._tell(note=text)

    def _tell(self, **report: Any) -> None:
        if not self.quiet:
            self.console.file.write(json_text(report) + "\n")
            self.console.file.flush()
