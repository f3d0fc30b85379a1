"""A card that is not there: streams that write down what is given to them, so that a test sees what waits for what.

It shows the program's own part, in which order threads, streams and events are joined. What a real card makes of it
can only be measured on one.
"""

import threading
from dataclasses import dataclass, field

import torch


@dataclass(eq=False)
class Stream:
    """A stream's list of what it does, in order: names of work, and (stream, how much of its list) that it awaits."""

    card: int = 0
    todo: list = field(default_factory=list)

    def wait_stream(self, other):
        self.todo.append((other, len(other.todo)))

    def comes_after(self, other, name) -> bool:
        """Whether all that this stream gets from now on is done after a named work of another one."""
        return self._sees(len(self.todo), other, name)

    def _sees(self, until, other, name) -> bool:
        if self is other:
            return name in self.todo[:until]
        awaited = [entry for entry in self.todo[:until] if isinstance(entry, tuple)]
        return any(stream._sees(count, other, name) for stream, count in awaited)


class Card:
    """What of `torch.cuda` the program asks for: each thread has a stream, the usual one until it enters another."""

    def __init__(self, monkeypatch, free=140 * 10**9):
        from loraport.parallel import streams

        self.usual, self.of_thread, self.made, self.free = Stream(), threading.local(), [], free
        monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(torch.cuda, "current_stream", lambda card=None: self.current)
        monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: setattr(self.of_thread, "stream", stream))
        monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda card: (self.free, 140 * 10**9))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda card: 0)
        monkeypatch.setattr(torch.cuda, "memory_allocated", lambda card: 0)
        streams._stream.cache_clear()
        monkeypatch.setattr(torch.cuda, "Stream", self._make)

    def _make(self, card):
        self.made.append(Stream(card))
        return self.made[-1]

    @property
    def current(self):
        return getattr(self.of_thread, "stream", self.usual)

    def close(self):
        """Let nobody find a stream of it."""
        from loraport.parallel import streams

        streams._stream.cache_clear()
