"""Writes that go on behind the work: the work waits only where too many of them would wait for the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from loraport.parallel.streams import copying_stream

MOST = 2
"""Writes that may wait: what they hold stays in memory so long."""


class WriteBehind:
    """One thread that writes what it is given, in order. What has been given is written even if the program ends."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._waiting: deque[tuple[str, Future[None]]] = deque()

    def submit(self, key: str, write: Callable[[], None]) -> None:
        """Write it soon. Raises what an earlier write raised."""
        with self._lock:
            while len(self._waiting) >= MOST:
                self._next()
            if self._pool is None:
                self._pool = ThreadPoolExecutor(1, "loraport-write")
            self._waiting.append((key, self._pool.submit(write)))

    def finish(self, key: str | None = None) -> None:
        """Wait until all is written, or what was given under this key. Raises what a write raised."""
        if not self._waiting:
            return
        with self._lock:
            while self._waiting and (key is None or any(key == waiting for waiting, _ in self._waiting)):
                self._next()

    def _next(self) -> None:
        self._waiting.popleft()[1].result()


def start_to_host(tensors: Mapping[str, Tensor]) -> Callable[[], Mapping[str, Tensor]]:
    """Begin to copy tensors to main memory; the function that is returned waits for them, on any thread.

    A card copies beside its other work, into memory that it reaches without the processor, when the stream of the
    calling thread has made them. Several threads may copy at once: each waits for its own stream.
    """
    on_card = [X for X in tensors.values() if X.device.type == "cuda"]
    if not on_card:
        return lambda: tensors
    device = on_card[0].device
    beside = copying_stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    copies = {}
    with torch.cuda.stream(beside):
        for name, X in tensors.items():
            copies[name] = torch.empty(X.shape, dtype=X.dtype, pin_memory=True).copy_(X, non_blocking=True)
            if X.device.type == "cuda":
                X.record_stream(beside)  # its memory is not given to others before it is copied
        copied = torch.cuda.Event()  # type: ignore[no-untyped-call]
        copied.record(beside)

    def wait() -> Mapping[str, Tensor]:
        copied.synchronize()
        return copies

    return wait
