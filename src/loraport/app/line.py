"""The line of jobs: one works, a bounded number waits, each knows its place.

All of it happens in the server's one event loop, so nothing is locked.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field

from loraport.errors import InputError


@dataclass(eq=False)
class Ticket:
    """A job's place in the line."""

    line: Line
    moved: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def before(self) -> int:
        """How many jobs come first; 0 is this one's turn."""
        return self.line.tickets.index(self)

    async def wait(self, seconds: float) -> None:
        """Wait until the place changes, or so long."""
        self.moved.clear()
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self.moved.wait(), seconds)

    def leave(self) -> None:
        """Leave the line, done or not; those behind move up."""
        if self in self.line.tickets:
            self.line.tickets.remove(self)
            for other in self.line.tickets:
                other.moved.set()


@dataclass
class Line:
    """Jobs in the order in which they came."""

    waiting: int
    """How many may wait behind the one that works."""
    tickets: list[Ticket] = field(default_factory=list)

    def join(self) -> Ticket:
        """Return a place at the end. Raises InputError where the line is as long as it may be."""
        if len(self.tickets) > self.waiting:
            raise InputError(
                f"{len(self.tickets)} jobs are in the line already, as many as this page takes; try again when some "
                "are done"
            )
        ticket = Ticket(self)
        self.tickets.append(ticket)
        return ticket
