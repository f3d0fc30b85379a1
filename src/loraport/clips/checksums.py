"""Checksums inside ffv1's frames, which FFmpeg compares and then ignores: a damaged slice would be shown as it is.

RFC 9043, section 4.8: a slice ends with its size (24 bits), an error status (8) and a checksum (32), so that the
CRC-32 over all of it, begun at 0 and with the high bit first, is 0.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_FOOTER = 8
_MIRRORED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class SliceChecks:
    """Collects the checks of a stream's packets: a file without checksums has none that fit."""

    def __init__(self) -> None:
        self.fitting = 0
        self.wrong: int | None = None
        """The first packet with a slice whose checksum does not fit."""

    def add(self, number: int, packet: bytes) -> None:
        """Check all slices of a packet."""
        for data in _slices(packet):
            if zlib.crc32(data.translate(_MIRRORED), 0xFFFFFFFF) == 0xFFFFFFFF:  # zlib's is the mirrored one
                self.fitting += 1
            elif self.wrong is None:
                self.wrong = number

    @property
    def damaged(self) -> int | None:
        """The first packet that is damaged; None where all is well, and where the file has no checksums."""
        return self.wrong if self.fitting else None


def _slices(packet: bytes) -> Iterator[bytes]:
    """Yield the slices from the last to the first; what is left over where the sizes do not add up, too."""
    end = len(packet)
    while end > 0:
        size = int.from_bytes(packet[end - _FOOTER : end - _FOOTER + 3], "big") + _FOOTER
        start = end - size if end >= size else 0
        yield packet[start:end]
        end = start
