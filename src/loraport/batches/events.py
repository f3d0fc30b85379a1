"""Tell another program how many transfers go: JSON Lines, one event a line, written when it happens."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from loraport.errors import OutputError
from loraport.files.disk.protect_inputs import ProtectedInputs
from loraport.files.disk.user_paths import expand_home
from loraport.plain_json import json_text
from loraport.progress import Progress

_SHARE = 0.01
"""The least share of a work between two reports of its progress."""


class EventLog:
    """Appends events to a file, or writes them into a pipe; without a path it does nothing.

    Each line is an object with `event`, `time` (seconds since 1970) and what the event is about. A restart appends to
    what is there. Where the file takes no more, that is said once, and the work goes on.
    """

    def __init__(self, path: str | None, inputs: Iterable[str | None] = ()) -> None:
        """Open the file. Raises OutputError where it cannot be written, is an input, or holds anything but events."""
        self.failure = ""
        """Why no more events are written."""
        self._lock = threading.Lock()
        self._file: IO[str] | None = None
        if path is None:
            return
        place = expand_home(path)
        try:
            if not place.exists() or stat.S_ISREG(place.stat().st_mode):
                ProtectedInputs(inputs).check(place)
                _check_events(place)
            self._file = place.open("a", encoding="utf-8", errors="replace")
        except OSError as error:
            raise OutputError(f"{path} takes no events: {error.strerror or error}; name another file") from error

    def tell(self, event: str, **facts: Any) -> None:
        """Write an event, at once and whole."""
        line = json_text({"event": event, "time": round(time.time(), 3), **facts}, ensure_ascii=False)
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write(line + "\n")
                self._file.flush()
            except OSError as error:
                self.failure = f"no more events are written: {error.strerror or error}"
                self._file = None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _check_events(place: Path) -> None:
    """Refuse a file of anything else, which appending would damage."""
    if not place.is_file() or place.stat().st_size == 0:
        return
    with place.open("rb") as file:
        first = file.readline(1 << 16)
    try:
        known = "event" in json.loads(first)
    except (ValueError, TypeError, RecursionError):
        known = False
    if not known:
        raise OutputError(f"{place} is there already and holds no events; name another file")


class EventProgress:
    """Passes reports on, and tells how far the work is: at most a hundred events for each."""

    def __init__(self, progress: Progress, events: EventLog) -> None:
        self._progress, self._events = progress, events
        self._last = ("", 0.0)
        self._said = ""

    def step(self, text: str, done: int, total: int) -> None:
        """Pass it on."""
        self._progress.step(text, done, total)

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Pass it on, and tell about it where enough has been done since the last time."""
        self._progress.advance(text, done, total, part)
        share = done / total if total else 1.0
        before, last = self._last
        if text != before or share < last or share - last >= _SHARE or done == total:
            self._last = text, share
            self._events.tell("progress", work=text, share=round(share, 4), part=part)
        if self._events.failure != self._said:
            self._said = self._events.failure
            self._progress.note(self._said)

    def note(self, text: str) -> None:
        """Pass it on."""
        self._progress.note(text)
