"""Measure how long each stage of a run takes, over all of its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

STAGES = ("read", "basis", "routing", "transfer")
"""Weights and drift from files; bases, made or fetched; the drift in their coordinates; the work for each LoRA."""


class Stopwatch:
    """Seconds of each stage. Nested stages are excluded from their parent; times of threads are summed, so that the
    total may be more than the clock shows. On a card moments are marked in the stream of each thread, and nothing waits
    for them; what several streams do side by side counts for each.
    """

    def __init__(self, device: torch.device) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._card = device if device.type == "cuda" else None
        self._lock, self._of_thread = threading.Lock(), threading.local()
        self._marked: list[tuple[str, str | None, torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds by stage; on a card when all that it was given is done."""
        with self._lock:
            if self._marked:
                torch.cuda.synchronize(self._card)
                self._count_passed()
            return dict(self._seconds)

    @contextmanager
    def stage(self, name: str, *, on_card: bool = True) -> Iterator[None]:
        """Add the time spent inside to this stage; `on_card` off for what the processor does even if there is a card.

        Raises KeyError for an unknown stage.
        """
        stages: list[str] = self._of_thread.__dict__.setdefault("stages", [])
        outer = stages[-1] if stages else None
        stages.append(name)
        finish = self._timer(name, outer, on_card and self._card is not None)
        try:
            yield
        finally:
            stages.pop()
            finish()

    def _timer(self, name: str, outer: str | None, on_card: bool) -> Callable[[], None]:
        if not on_card:
            start = time.perf_counter()
            return lambda: self._locked_add(name, outer, time.perf_counter() - start)
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record(torch.cuda.current_stream(self._card))

        def finish() -> None:
            end.record(torch.cuda.current_stream(self._card))
            with self._lock:
                self._marked.append((name, outer, begin, end))
                self._count_passed()

        return finish

    def _count_passed(self) -> None:
        """Add what the card has passed by now, so that marks do not pile up; a stream may be before another."""
        marked, self._marked = self._marked, []
        for mark in marked:
            name, outer, begin, end = mark
            if end.query():  # type: ignore[no-untyped-call]
                self._add(name, outer, begin.elapsed_time(end) / 1000)
            else:
                self._marked.append(mark)

    def _locked_add(self, name: str, outer: str | None, passed: float) -> None:
        with self._lock:
            self._add(name, outer, passed)

    def _add(self, name: str, outer: str | None, passed: float) -> None:
        self._seconds[name] += passed
        if outer is not None:
            self._seconds[outer] -= passed
