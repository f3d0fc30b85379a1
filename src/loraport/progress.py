"""How long work reports while it runs: a protocol, and what ignores reports. `console.Terminal` draws the bar."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from loraport.errors import SettingsError


class Progress(Protocol):
    """Receives reports of a run as it goes: steps, shares of a step, and notes.

    Any object with some of these methods can be passed to a run; what it has no method for is not reported to it.
    """

    def step(self, text: str, done: int, total: int) -> None:
        """Report that a step begins; `done` of `total` are over."""

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Report that `done` of `total` units of the work `text` are done; `part` names what came last."""

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


def counter(progress: Progress, text: str, total: int) -> Callable[..., None]:
    """Return a function that adds an amount (and the name of a part) to what is done of `text`, and reports it."""
    done = 0

    def add(amount: int, part: str = "") -> None:
        nonlocal done
        done += amount
        progress.advance(text, done, total, part)

    return add
