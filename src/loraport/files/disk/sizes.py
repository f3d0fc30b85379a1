"""Sizes of files and of memory as people read them."""

from __future__ import annotations


def size_words(count: int) -> str:
    """Return a number of bytes in three digits: 812 bytes, 80.4 kB, 12.3 MB, 5.68 GB, 110 GB."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 1000)):
        if count >= size:
            value = count / size
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {unit}"
    return f"{count} bytes"
