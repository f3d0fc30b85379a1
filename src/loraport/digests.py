"""How texts are hashed: in one way, since keys of caches, runs and reports are compared across versions."""

from __future__ import annotations

import hashlib


def text_digest(*lines: str) -> str:
    """Return the SHA-256 of the lines, joined by line ends, in hexadecimal.

    A name of a file that is not UTF-8 counts with the bytes that Python keeps of it.
    """
    return hashlib.sha256("\n".join(lines).encode(errors="surrogatepass")).hexdigest()
