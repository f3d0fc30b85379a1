"""How long a store that fails for the moment is asked again, and with which pauses between."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from loraport.errors import SettingsError

_SAID_AFTER = 5.0
"""Seconds of waiting after which a user is told."""


@dataclass(frozen=True)
class Patience:
    """Asks again after pauses that double, each a little different from that of others, until a time is over."""

    seconds: float = 120.0
    """From the first failure on; 0 asks once."""
    first_pause: float = 0.2
    longest_pause: float = 15.0
    note: Callable[[str], None] | None = None
    """Is told once where a wait becomes long enough to be noticed."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    sleep: Callable[[float], None] = field(default=time.sleep, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.seconds < float("inf"):
            raise SettingsError(f"a store is asked again for {self.seconds} seconds; give a number from 0 on")

    def pauses(self, what: str) -> Iterator[float]:
        """Wait, and yield the seconds waited so far, until the time is over; `what` is said where it takes long."""
        start, pause, told = self.clock(), self.first_pause, False
        while (left := self.seconds - (self.clock() - start)) > 0:
            # Many workers that failed at the same moment must not all come back at the same moment.
            self.sleep(min(left, pause * random.uniform(0.5, 1.0)))
            waited = self.clock() - start
            if not told and waited >= _SAID_AFTER and self.note is not None:
                told = True
                self.note(f"{what}; it is asked again for {self.seconds:.0f} seconds")
            yield waited
            pause = min(2 * pause, self.longest_pause)
