"""What VideoAlign is shown: two frames a second, cut into patches, and a long question with the prompt in it.

As the authors' program and the transformers 4.45.2 that it is pinned to prepare it; tests compare with both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from importlib import resources

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import interpolate

from loraport.errors import InputError
from loraport.evaluation.networks.pictures import CLIP_MEAN, CLIP_SPREAD, normalized

PATCH, MERGED, TOGETHER = 14, 2, 2
"""Pixels of a patch; patches of a token along each side; frames of a token."""
_CELL = PATCH * MERGED
LEAST_FRAMES, MOST_FRAMES = 4, 768
LEAST_PIXELS = 128 * _CELL**2
MOST_ASPECT = 200
SCORES = ("VQ", "MQ", "TA")
SCORE_TOKENS = tuple(f"<|{name}_reward|>" for name in SCORES)
VIDEO_TOKEN = "<|video_pad|>"


@dataclass(frozen=True)
class Pixels:
    """Patches in the network's order, and how many there are: in time, down and across."""

    values: Float[Tensor, "p v"]
    grid: tuple[int, int, int]

    @property
    def tokens(self) -> int:
        """How many tokens of the text they take."""
        return math.prod(self.grid) // MERGED**2


def chosen_frames(total: int, fps: float, rate: float) -> list[int]:
    """Return the numbers of the frames that are shown: `rate` a second of play, even, first and last among them."""
    most = min(MOST_FRAMES, total) // 2 * 2
    count = round(min(max(total / fps * rate, LEAST_FRAMES), most) / 2) * 2
    return torch.linspace(0, total - 1, count).round().long().tolist()


def fitting_size(height: int, width: int, most_pixels: int) -> tuple[int, int]:
    """Return the size that a frame is resized to: multiples of 28 pixels, the aspect nearly kept."""
    sides = (height, width)
    if max(sides) > MOST_ASPECT * min(sides):
        raise InputError(
            f"VideoAlign looks at nothing as long as {width} x {height} pixels; cut the clip to its subject"
        )
    size = [max(_CELL, round(side / _CELL) * _CELL) for side in sides]
    if math.prod(size) > most_pixels:
        shrink = math.sqrt(height * width / most_pixels)
        size = [math.floor(side / shrink / _CELL) * _CELL for side in sides]
    elif math.prod(size) < LEAST_PIXELS:
        grow = math.sqrt(LEAST_PIXELS / (height * width))
        size = [math.ceil(side * grow / _CELL) * _CELL for side in sides]
    return size[0], size[1]


def pixels_of(frames: UInt8[ndarray, "t h w 3"], most_pixels: int) -> Pixels:
    """Return an even number of frames, resized and cut into patches: two frames, three colours, 14 x 14 pixels."""
    size = fitting_size(frames.shape[1], frames.shape[2], most_pixels)
    pictures = torch.stack([_resized(frame, size) for frame in frames])
    pictures = normalized(pictures / 255, CLIP_MEAN, CLIP_SPREAD)
    grid = len(frames) // TOGETHER, size[0] // PATCH, size[1] // PATCH
    cells = pictures.reshape(
        *(grid[0], TOGETHER, 3),
        *(grid[1] // MERGED, MERGED, PATCH),
        *(grid[2] // MERGED, MERGED, PATCH),
    )
    return Pixels(cells.permute(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(math.prod(grid), -1), grid)


def _resized(frame: UInt8[ndarray, "h w 3"], size: tuple[int, int]) -> Float[Tensor, "3 h2 w2"]:
    """Return a frame in another size, still whole numbers from 0 to 255 as torchvision leaves them."""
    picture = torch.tensor(frame).permute(2, 0, 1).float()[None]
    return interpolate(picture, size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255).round()[0]


def question(prompt: str | None, video_tokens: int) -> str:
    """Return the text for the network, as Qwen2-VL's chat template lays it out; what is asked is VideoAlign's own, MIT.

    Without a prompt it ends with the second score: what comes later cannot change the first two.
    """
    asked = resources.files(__package__).joinpath("videoalign_prompt.txt").read_text(encoding="utf-8")
    before = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
        f"<|im_start|>user\n<|vision_start|>{VIDEO_TOKEN * video_tokens}<|vision_end|>"
    )
    if prompt is None:
        return before + asked[: asked.index(SCORE_TOKENS[1]) + len(SCORE_TOKENS[1])]
    return f"{before}{asked.replace('{text_prompt}', prompt)}<|im_end|>\n<|im_start|>assistant\n"
