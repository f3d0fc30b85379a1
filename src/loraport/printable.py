"""Output that a file cannot control: control characters and broken text are shown as escapes."""

from __future__ import annotations

import re
import sys
from typing import Any, TextIO

CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Control characters but a line's end and a tab, and the marks that turn the direction of text."""


def printable(text: str) -> str:
    """Return the text with each control character as its escape, `\\x1b` for one, so that a terminal shows it."""
    return CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


class PrintableStream:
    """A text stream whose every line is printable: names and values come from files, and may hold anything.

    The bar of a long run is drawn with control characters of its own, on the stream underneath (`raw`).
    """

    def __init__(self, raw: TextIO) -> None:
        self.raw = raw

    def write(self, text: str) -> int:
        """Write text, made printable."""
        self.raw.write(printable(text))
        return len(text)

    def writelines(self, lines: Any) -> None:
        """Write several."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.raw, name)


def protect() -> None:
    """Put printable streams in the place of the process's own; a file's name that is not UTF-8 no longer fails."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, PrintableStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, PrintableStream(stream))


def raw_stream(stream: Any) -> Any:
    """Return the stream underneath, for what draws with control characters."""
    return stream.raw if isinstance(stream, PrintableStream) else stream
