"""Measure how long each stage of a run takes, over all of its threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

STAGES = ("read", "basis", "routing", "transfer")
"""Weights and drift from files; bases, made or fetched; the drift in their coordinates; the work for each LoRA."""


class Stopwatch:
    """Seconds of each stage. Nested stages are excluded from their parent; times of threads are summed, so that the
    total may be more than the clock shows. On a card each stage waits for what it has started.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds = dict.fromkeys(STAGES, 0.0)
        self._card = device if device.type == "cuda" else None
        self._lock, self._of_thread = threading.Lock(), threading.local()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to this stage. Raises KeyError for an unknown stage."""
        inner: list[float] = self._of_thread.__dict__.setdefault("inner", [])
        inner.append(0.0)
        start = self._now()
        try:
            yield
        finally:
            passed = self._now() - start
            own = passed - inner.pop()
            if inner:
                inner[-1] += passed
            with self._lock:
                self.seconds[name] += own

    def _now(self) -> float:
        if self._card is not None:
            torch.cuda.synchronize(self._card)
        return time.perf_counter()
