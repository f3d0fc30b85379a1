"""The process of one worker: its orders come as a line of JSON on stdin, its events go as lines of JSON to stdout.

It ends when the work is done, when it gets a SIGTERM, and when stdin ends: then whoever started it is dead. Stopped, it
finishes the part in work if that takes no longer than `FLUSH` seconds, and gives its leases back.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any

from loraport.errors import LoraportError
from loraport.plain_json import json_text

FLUSH = 7.0
"""Seconds that a stopped worker has for the part in work."""
IDLE = 3
"""Looks, five a second, at a stopped worker that has no part in work; then it is not waited for."""


@dataclass(frozen=True)
class Orders:
    """What a worker's process has to know."""

    url: str
    run: str
    number: int = 0
    of: int = 1
    """Which of the workers of this machine it is."""
    shard: str | None = None
    """The share of the machine, where the run is divided in advance."""
    wait: float | None = 0.5
    device: str = "auto"
    cache: str | None = None
    sharing: int = 1
    """How many workers of this machine have the same card."""
    beat: float = 15.0
    patience: float = 75.0

    def line(self) -> str:
        """Return them as a line of JSON."""
        return json_text(asdict(self)) + "\n"


class Events:
    """Writes events as lines to stdout, from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._out = os.fdopen(os.dup(1), "w", encoding="utf-8", errors="backslashreplace")
        os.dup2(2, 1)  # whatever a library prints is no event

    def tell(self, event: str, **facts: Any) -> None:
        """Write an event; where nobody reads it any more, nothing is written."""
        with self._lock:
            try:
                self._out.write(json_text({"event": event, **facts}) + "\n")
                self._out.flush()
            except (OSError, ValueError):
                return


def work(orders: Orders, events: Events, stop: threading.Event) -> None:
    """Work until the run is over or the stop is set. Raises LoraportError."""
    from loraport.objects.open import open_objects
    from loraport.workers.claims import Claims
    from loraport.workers.machine import Machine
    from loraport.workers.models import OpenModels, room_for_layers
    from loraport.workers.note import WorkerNote
    from loraport.workers.records import Records
    from loraport.workers.share import Share
    from loraport.workers.work import Worker

    store = open_objects(orders.url)
    plan = Records(store).plan(orders.run)
    machine = Machine.here(orders.device, plan.machine.threads)
    machine.check(plan.machine, f"the run in {store.url}")
    share = None if orders.shard is None else Share.parse(orders.shard)
    room = room_for_layers(orders.device, orders.sharing)
    models = OpenModels(plan, device=orders.device, cache=orders.cache, resident_bytes=room)
    claims = Claims(store, beat=orders.beat, patience=orders.patience, also=lambda: note.write(store))
    note = WorkerNote.here(claims.who, plan.id, orders.shard or "", machine.device)

    def tell(event: str, **facts: Any) -> None:
        nonlocal note
        note = note.after(event, facts)
        events.tell(event, **facts)

    worker = Worker(
        store, plan, models, share=share, prefer=Share(orders.number, orders.of), claims=claims, tell=tell, stop=stop
    )
    _WORKERS.append(worker)
    events.tell("began", who=claims.who)
    note.write(store)
    try:
        over = worker.run(wait=orders.wait)
    finally:
        claims.close()
    note.write(store, "done" if over else "stopped")
    events.tell("left", over=over)


_WORKERS: list[Any] = []
"""The worker in this process."""


def main() -> None:
    """Run one worker, and end the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; whoever started us says what to do
    stop, done = threading.Event(), threading.Event()
    signal.signal(signal.SIGTERM, lambda number, frame: stop.set())
    events, codes = Events(), [0]
    orders = Orders(**json.loads(sys.stdin.readline()))

    def working() -> None:
        try:
            work(orders, events, stop)
        except LoraportError as error:
            codes[0] = 2
            events.tell("error", reason=str(error))
        except OSError as error:
            codes[0] = 2
            events.tell("error", reason=_sentence(error))
        except BaseException as fault:
            import traceback

            codes[0] = 1
            traceback.print_exc()
            events.tell("fault", reason=f"{type(fault).__name__}: {fault}")
        finally:
            done.set()
            stop.set()

    threading.Thread(target=working, name="loraport-work", daemon=True).start()
    threading.Thread(target=_until_alone, args=(stop,), daemon=True).start()
    while not stop.wait(1.0):
        pass
    until = time.monotonic() + FLUSH
    idle = 0
    while not done.wait(0.2) and time.monotonic() < until and idle < IDLE:
        idle = 0 if any(worker.busy for worker in _WORKERS) else idle + 1
    if not done.is_set():  # it opens files, which nobody needs any more, or is in a long layer, which is made again
        for worker in _WORKERS:
            worker.claims.close()
    sys.stderr.flush()
    os._exit(codes[0])  # libraries may be in the middle of something, which nobody needs any more


def _until_alone(stop: threading.Event) -> None:
    """Wait until whoever started us closes the pipe, on purpose or by its death."""
    while os.read(0, 4096):
        pass
    stop.set()


def _sentence(error: OSError) -> str:
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror or error}"


if __name__ == "__main__":
    main()
