"""The workers of this machine: a process each, started again when one dies, listened to until the run is over."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from loraport.errors import InputError
from loraport.workers.local.process import FLUSH, Orders

DEATHS = 5
"""Deaths one after the other, without a part or a result between them, after which a worker is not started again."""
Hear = Callable[[str, dict[str, Any]], None]


@dataclass(eq=False)
class _Process:
    """One worker's process and what is known of it."""

    orders: Orders
    events: queue.SimpleQueue[tuple[_Process, str]]
    child: subprocess.Popen[str] = field(init=False)
    deaths: int = 0
    left: bool = False
    """Whether it said that it ends."""
    reason: str = ""
    """Why it cannot work."""

    def start(self) -> None:
        """Start it, and listen."""
        threads = {name: "1" for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS") if name not in os.environ}
        self.child = subprocess.Popen(
            [sys.executable, "-m", "loraport.workers.local.process"], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            text=True, encoding="utf-8", env={**os.environ, **threads},
        )  # fmt: skip
        self.left = False
        threading.Thread(target=self._listen, args=(self.child,), daemon=True).start()
        try:
            assert self.child.stdin is not None
            self.child.stdin.write(self.orders.line())
            self.child.stdin.flush()
        except OSError:
            return  # dead already, which is heard

    def _listen(self, child: subprocess.Popen[str]) -> None:
        if child.stdout is not None:
            for line in child.stdout:
                self.events.put((self, line))
        self.events.put((self, ""))

    def end(self) -> None:
        """Let it finish what it is at, and leave."""
        if self.child.poll() is None:
            self.child.terminate()

    def close(self) -> None:
        """Let go of its pipes."""
        for pipe in (self.child.stdin, self.child.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError:
                    continue


def run_workers(orders: Sequence[Orders], hear: Hear) -> bool:
    """Run workers until each has left, and return whether the run is over; `hear` gets their events.

    One that dies is started again, and another one makes what it had in work. Raises InputError where no worker can
    work, with the reason of the first. Stopped by a signal, it stops the workers, who finish what they are at.
    """
    events: queue.SimpleQueue[tuple[_Process, str]] = queue.SimpleQueue()
    working = [_Process(one, events) for one in orders]
    everyone, over = list(working), False
    try:
        for one in working:
            one.start()
        while working:
            one, line = _next(events)
            if line:
                event = _parsed(line)
                kind = str(event.pop("event", ""))
                if kind in ("part", "made"):
                    one.deaths = 0
                if kind == "left":
                    one.left, over = True, over or bool(event["over"])
                if kind in ("error", "fault"):
                    one.reason = str(event["reason"])
                hear(kind, {**event, "worker": one.orders.number})
                continue
            if one not in working:
                continue
            code = one.child.wait()
            if one.left or one.reason:
                working.remove(one)
                continue
            one.deaths += 1
            hear("died", {"worker": one.orders.number, "code": code, "deaths": one.deaths})
            one.close()
            if one.deaths >= DEATHS:
                one.reason = f"a worker died {one.deaths} times without finishing a part (exit {code})"
                working.remove(one)
                continue
            one.start()
    finally:
        _stop(everyone)
    reasons = [one.reason for one in everyone if one.reason]
    if not over and len(reasons) == len(everyone):
        raise InputError(reasons[0])
    return over


def _next(events: queue.SimpleQueue[tuple[_Process, str]]) -> tuple[_Process, str]:
    """Return the next event; signals are heard while it waits."""
    while True:
        try:
            return events.get(timeout=1.0)
        except queue.Empty:
            continue


def _parsed(line: str) -> dict[str, Any]:
    """Return an event; of a line that a death has torn, none."""
    try:
        value = json.loads(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _stop(processes: Sequence[_Process]) -> None:
    """Stop what still runs: what it has in work is finished, if that is soon."""
    started = [one for one in processes if hasattr(one, "child")]
    for one in started:
        one.end()
    until = time.monotonic() + FLUSH + 1.0
    for one in started:
        try:
            one.child.wait(max(0.1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            one.child.kill()
            one.child.wait()
        one.close()
