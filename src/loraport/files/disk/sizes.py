"""Sizes of files and of memory as people read them."""

from __future__ import annotations


def size_words(count: int) -> str:
    """Return a number of bytes: 812 bytes, 80 kB, 12.3 MB, 5.68 GB."""
    for unit, size, digits in (("GB", 10**9, 2), ("MB", 10**6, 1), ("kB", 1000, 0)):
        if count >= size:
            return f"{count / size:.{digits}f} {unit}"
    return f"{count} bytes"
