"""How the program ends early: by a signal, or because the system refuses something."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

KEPT = "nothing half-written is left; the same command goes on from what is finished, or begins again"


class Stopped(BaseException):
    """The program was stopped. Not an Exception, so that no handler on the way takes it for a fault."""

    def __init__(self, number: int) -> None:
        self.signal = number
        super().__init__(f"stopped by {signal.Signals(number).name}; {KEPT}")


@contextmanager
def listening() -> Iterator[None]:
    """Turn the first SIGINT or SIGTERM inside into Stopped; the next one ends the program at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, _stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _stop(number: int, frame: FrameType | None) -> None:
    for one in (signal.SIGINT, signal.SIGTERM):
        signal.signal(one, signal.SIG_DFL)
    raise Stopped(number)


def in_one_sentence(error: OSError) -> str:
    """Return what the system refused, and for which file."""
    places = [os.fsdecode(place) for place in (error.filename, error.filename2) if isinstance(place, (str, bytes))]
    why = error.strerror or str(error) or type(error).__name__
    if not places:
        return f"the system refused to go on: {why}"
    return f"{' and '.join(places)}: {why}"
