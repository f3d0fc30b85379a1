"""Leases: who works at what, so that no two workers do the same. They only save work; nothing is wrong without them.

A lease is alive while its content changes. Whoever wants it watches it with a clock of its own, and takes it over when
it has stood still for long: the clocks of two machines are never compared. On one machine a dead process is known.
"""

from __future__ import annotations

import json
import os
import secrets
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from loraport.errors import LoraportError
from loraport.files.disk.ownership import HOST, is_running
from loraport.objects.store import MissingObjectError, ObjectStore
from loraport.plain_json import json_text

BEAT, PATIENCE = 15.0, 75.0
"""Seconds between the beats of a lease, and for how long one without any is watched before it is taken over."""


@dataclass(frozen=True)
class Lease:
    """A lease that is ours."""

    name: str
    after_death: bool
    """Whether the worker before us has died with it."""


class Claims:
    """The leases of one worker, kept alive on a thread beside the work."""

    def __init__(
        self, store: ObjectStore, *, beat: float = BEAT, patience: float = PATIENCE,
        clock: Callable[[], float] = time.monotonic, also: Callable[[], None] = lambda: None,
    ) -> None:  # fmt: skip
        """`also`: what is done with every beat, such as a note of the worker's own."""
        self.store, self._patience, self._clock, self._also = store, patience, clock, also
        self.who = f"{HOST}-{os.getpid()}-{secrets.token_hex(4)}"
        self._held: dict[str, Lease] = {}
        self._watched: dict[str, tuple[bytes, float]] = {}
        self._beats, self._lock, self._end = 0, threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._live, args=(beat,), name="loraport-leases", daemon=True)
        self._thread.start()

    def take(self, name: str) -> Lease | None:
        """Return the lease, or None while another worker that may be alive has it."""
        if self.store.create(name, self._content()):
            return self._keep(Lease(name, False))
        try:
            theirs = self.store.read(name)
        except MissingObjectError:  # given back at this moment
            return self._keep(Lease(name, False)) if self.store.create(name, self._content()) else None
        seen, since = self._watched.get(name, (b"", 0.0))
        if theirs != seen:
            self._watched[name] = theirs, self._clock()
            if not _is_dead(theirs):
                return None
        elif self._clock() - since < self._patience and not _is_dead(theirs):
            return None
        self.store.write(name, self._content())
        return self._keep(Lease(name, True))

    def release(self, lease: Lease) -> None:
        """Give a lease back."""
        with self._lock:
            self._held.pop(lease.name, None)
        self.store.delete(lease.name)

    def close(self) -> None:
        """Give all leases back, and beat no more."""
        self._end.set()
        with self._lock:
            held, self._held = list(self._held.values()), {}
        for lease in held:
            self.store.delete(lease.name)

    def _keep(self, lease: Lease) -> Lease:
        self._watched.pop(lease.name, None)
        with self._lock:
            self._held[lease.name] = lease
        return lease

    def _content(self) -> bytes:
        return json_text({"who": self.who, "host": HOST, "process": os.getpid(), "beat": self._beats}).encode()

    def _live(self, beat: float) -> None:
        while not self._end.wait(beat):
            self._beats += 1
            with self._lock:
                names = list(self._held)
            try:
                for name in names:
                    if not self._end.is_set():
                        self.store.write(name, self._content())
                self._also()
            except LoraportError:  # a store that does not answer stops no work: it shows when a part is written
                continue


def _is_dead(content: bytes) -> bool:
    """Return whether a lease is of a process of this machine that has ended; of one that cannot be read, too."""
    try:
        owner = json.loads(content)
        host, process = owner["host"], int(owner["process"])
    except (ValueError, TypeError, KeyError):
        return True
    return bool(host == HOST) and not is_running(process)
