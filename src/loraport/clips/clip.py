"""A clip in memory: frames as bytes, how fast they follow each other, and what a user should know of its file."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from loraport.errors import SettingsError

VIDEOS = (".mkv", ".mp4", ".webm", ".mov", ".avi", ".m4v", ".gif")
IMAGES = (".png", ".jpg", ".jpeg", ".webp")


@dataclass(frozen=True)
class Clip:
    """Frames in RGB; an image is a clip of one frame."""

    frames: NDArray[np.uint8]
    """[frames, height, width, 3]."""
    fps: float = 8.0
    notes: tuple[str, ...] = ()
    """What was not read of its file, such as a sound track: a sentence each."""

    def __post_init__(self) -> None:
        shape, dtype = self.frames.shape, self.frames.dtype
        if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or min(shape) < 1:
            raise SettingsError(
                f"a clip is at least one frame of bytes, [frames, height, width, 3], not {dtype} {list(shape)}"
            )
        if not 0 < self.fps < 1000:
            raise SettingsError(f"{self.fps:g} frames a second is no speed of a clip; give a number between 0 and 1000")

    @property
    def height(self) -> int:
        """Height in pixels."""
        return int(self.frames.shape[1])

    @property
    def width(self) -> int:
        """Width in pixels."""
        return int(self.frames.shape[2])

    @property
    def seconds(self) -> float:
        """How long it plays."""
        return len(self.frames) / self.fps

    @property
    def rate(self) -> Fraction:
        """Frames a second as containers store it: 30000/1001 and the like are met exactly."""
        return Fraction(self.fps).limit_denominator(1001)


def is_clip_file(path: Path) -> bool:
    """Return whether a file is read as a clip, by its ending alone."""
    return path.suffix.lower() in (*VIDEOS, *IMAGES)


def is_image_file(path: Path) -> bool:
    """Return whether a file is read as one frame, by its ending alone."""
    return path.suffix.lower() in IMAGES
