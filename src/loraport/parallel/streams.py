"""The streams of a card: one for each thread that works on layers, and one that copies what they made to main memory.

A card does one stream's work in order, and that of several side by side. What a thread makes lies in its own stream's
memory, and is used there alone; three things cross over, and each is said to the card: what was there before the
threads began (they wait for it), what they made when they end (the caller waits for it), and what is copied behind
their work (`store.behind`). PyTorch gives each thread a cuBLAS and a cuSOLVER handle of its own, which is what NVIDIA
asks for so that the same product has the same bytes whatever runs beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache

import torch


@cache
def _stream(card: int, number: int) -> torch.cuda.Stream:
    # Kept for good: PyTorch keeps memory for each stream that was ever used, and of new ones there is no end.
    return torch.cuda.Stream(card)  # type: ignore[no-untyped-call]


def copying_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the stream by which a card copies to main memory beside its other work."""
    return _stream(_number(device), -1)


def stream_of_thread(device: torch.device | None = None) -> torch.cuda.Stream | None:
    """Return the stream that this thread gives its work to, on a card or on the usual one; None if none is in use."""
    if device is not None and device.type == "cuda":
        return torch.cuda.current_stream(device)
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.cuda.current_stream() if in_use else None


def enter(stream: torch.cuda.Stream | None) -> None:
    """Give all further work of this thread to a stream, and to the card that it belongs to."""
    if stream is not None:
        torch.cuda.set_stream(stream)


@contextmanager
def streams_for(device: torch.device, count: int) -> Iterator[Sequence[torch.cuda.Stream | None]]:
    """Yield a stream for each of several threads: they begin after what this thread has given the card until now, and
    what it gives the card afterwards begins after them. On a processor they have none but that of this thread: tensors
    may be read from a card.
    """
    if device.type != "cuda":
        yield [stream_of_thread()] * count
        return
    card = _number(device)
    streams, own = [_stream(card, number) for number in range(count)], torch.cuda.current_stream(card)
    for stream in streams:
        stream.wait_stream(own)
    try:
        yield streams
    finally:
        for stream in streams:
            own.wait_stream(stream)


def _number(device: torch.device) -> int:
    return torch.cuda.current_device() if device.index is None else device.index
