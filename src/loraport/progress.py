"""How long work reports while it runs: a protocol, and what ignores reports. `console.Terminal` draws the bar."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from loraport.errors import SettingsError

ASKED_FOR_LINES = "LORAPORT_PROGRESS"
"""The variable of the environment by which a program that starts the command line asks for reports as JSON Lines."""


class Progress(Protocol):
    """Receives reports of a run as it goes: steps, shares of a step, and notes.

    Any object with some of these methods can be passed to a run; what it has no method for is not reported to it.
    """

    def step(self, text: str, done: int, total: int) -> None:
        """Report that a step begins; `done` of `total` are over."""

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Report that `done` of `total` units of the work `text` are done; `part` names what came last.

        The first report says what was done before the work began (nothing, or by an earlier start): it is not speed.
        """

    def note(self, text: str) -> None:
        """Report something that the user should read."""


class NoProgress:
    """Ignores all reports."""

    def step(self, text: str, done: int, total: int) -> None:
        """Do nothing."""

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


NO_PROGRESS: Progress = NoProgress()
_METHODS = ("step", "advance", "note")


class _Observer(NoProgress):
    """Passes on what an object with some of the methods wants to know."""

    def __init__(self, methods: Mapping[str, Callable[..., None]]) -> None:
        self.__dict__.update(methods)


def observer(progress: object) -> Progress:
    """Return an object as one that has all methods. Raises SettingsError for one that has none of them."""
    methods = {name: method for name in _METHODS if callable(method := getattr(progress, name, None))}
    if not methods:
        raise SettingsError(
            f"progress is a {type(progress).__name__} without any of the methods {', '.join(_METHODS)}; give it one"
        )
    return _Observer(methods)


def counter(progress: Progress, text: str, total: int, done: int = 0, part: str = "") -> Callable[..., None]:
    """Return a function that adds an amount (and the name of a part) to what is done of `text`, and reports it.

    `done` was done before, by an earlier start: reported at once, with the name of what it was.
    """
    progress.advance(text, done, total, part)

    def add(amount: int, part: str = "") -> None:
        nonlocal done
        done += amount
        progress.advance(text, done, total, part)

    return add


IN_WORK = 0.33
"""What counts as done of the parts in work, of a part of the usual size: none is with one at a time, up to a whole one
with two at a time, whose reports come in pairs."""


class Pace:
    """How long the rest of a work takes, by how much of it was done since its first report."""

    def __init__(self, done: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._start, self._before = clock, clock(), done
        self._last, self._done, self._parts = self._start, done, 0

    def report(self, done: int) -> None:
        """Take a report in."""
        if done > self._done:
            self._last, self._done, self._parts = self._clock(), done, self._parts + 1

    def seconds_left(self, total: int) -> float | None:
        """Return how many seconds are left of `total`, counting down between reports; None before the first part."""
        done = self._done - self._before
        if not done:
            return None
        in_work = IN_WORK * done / self._parts
        rest = max(0.0, total - self._done - in_work)
        left = (self._last - self._start) * rest / (done + in_work)
        return max(0.0, left - (self._clock() - self._last))
