"""What is in a clip and how it looks, by the features of EfficientNet-Lite0: no weights have to be fetched."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from loraport.clips.clip import Clip
from loraport.evaluation.metrics.efficientnet import SIZE, EfficientNetLite0, load_efficientnet
from loraport.evaluation.metrics.metric import Readings

FRAMES = 8
"""At most so many frames of a clip are looked at, evenly from the first to the last."""


def open_appearance(folders: Sequence[Path], device: str) -> Appearance:
    """Return the instrument; its weights come with a package, so there are no folders."""
    return Appearance(load_efficientnet(device), device)


class Appearance:
    """Features of whole frames, whatever their shape: nothing is cropped."""

    def __init__(self, network: EfficientNetLite0, device: str) -> None:
        self.network, self.device = network, device

    @torch.no_grad()
    def __call__(self, clip: Clip, reference: Clip | None, prompt: str | None) -> Readings:
        """Return `content` [frames, 1280] and `style` [frames, 48]."""
        frames = clip.frames[evenly(len(clip.frames), FRAMES)]
        # one frame at a time: the sum over a batch may be taken in another order, and caches are compared to the bit
        seen = [self.network(prepared(frame).to(self.device)) for frame in frames]
        content, style = (torch.cat([one[part] for one in seen]).float().cpu() for part in (0, 1))
        return {"content": content, "style": style}


def evenly(count: int, most: int) -> list[int]:
    """Return the indices of at most so many of `count` frames, the first and the last among them."""
    chosen = min(count, most)
    return [round(index * (count - 1) / max(chosen - 1, 1)) for index in range(chosen)]


def prepared(frame: np.ndarray) -> Float[Tensor, "1 3 h w"]:
    """Return a frame as the network was trained on: the shorter side SIZE pixels, values about [-1, 1]."""
    pixels = torch.from_numpy(np.ascontiguousarray(frame)).permute(2, 0, 1)[None].float()
    height, width = frame.shape[:2]
    scale = SIZE / min(height, width)
    size = (max(1, round(height * scale)), max(1, round(width * scale)))
    resized = functional.interpolate(pixels, size, mode="bicubic", antialias=True, align_corners=False)
    return (resized.clamp(0, 255) - 127) / 128
