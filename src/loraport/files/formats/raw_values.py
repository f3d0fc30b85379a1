"""Look at stored numbers without PyTorch, which takes longer to load than such a look: one number, or the largest."""

from __future__ import annotations

import struct

from loraport.files.formats.safetensors_read import ByteReader, StoredTensor

_CODES = {
    "float64": "<d",
    "float32": "<f",
    "float16": "<e",
    "int64": "<q",
    "int32": "<i",
    "int16": "<h",
    "int8": "<b",
    "uint64": "<Q",
    "uint32": "<I",
    "uint16": "<H",
    "uint8": "<B",
}
"""Kind -> how Python's `struct` unpacks it."""
WIDENED = ("float16", "bfloat16", "float32")
"""The kinds of which every value is one of float32."""
_AT_ONCE = 1 << 22


def is_plain(stored: StoredTensor) -> bool:
    """Return whether its values lie in a file as they are, in a kind of which `largest` can tell."""
    return isinstance(stored.read, ByteReader) and stored.kind in WIDENED


def number(stored: StoredTensor) -> float:
    """Return the number that a tensor of one holds."""
    if not isinstance(stored.read, ByteReader):
        return float(stored.read())
    raw = b"".join(map(bytes, stored.read.pieces(_AT_ONCE)))
    if stored.kind == "bfloat16":  # the upper half of a float32
        return float(struct.unpack("<f", b"\0\0" + raw)[0])
    return float(struct.unpack(_CODES[stored.kind], raw)[0]) if stored.kind in _CODES else float(stored.read())


def largest(stored: StoredTensor) -> float:
    """Return the largest magnitude among the values of a tensor that `is_plain`: NaN or infinite where one is."""
    import numpy as np

    if not isinstance(stored.read, ByteReader):
        raise TypeError(f"{stored.key} does not lie in a file as it is")
    wide = stored.kind == "float32"
    words = np.uint32 if wide else np.uint16
    # without their signs, floats are in the order of their bits, and NaN is above all of them
    magnitude, top = words(0x7FFFFFFF if wide else 0x7FFF), 0
    for piece in stored.read.pieces(_AT_ONCE):
        top = max(top, int((np.frombuffer(piece, words) & magnitude).max()))
    if stored.kind == "float16":
        return float(np.array(top, np.uint16).view(np.float16))
    return float(np.array(top if wide else top << 16, np.uint32).view(np.float32))
