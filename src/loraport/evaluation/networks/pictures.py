"""Pictures as networks want them: resized with Pillow as the networks' authors did it, cropped, in float32.

The two libraries that these networks' authors prepared pictures with resize alike and crop differently: torchvision
rounds half a pixel to the even number, transformers takes the smaller.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import torch
from jaxtyping import Float, UInt8
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from PIL.Image import Image

Frames = NDArray[np.uint8]
"""Of a clip, [frames, height, width, 3] in red, green, blue."""

CLIP_MEAN, CLIP_SPREAD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
IMAGENET_MEAN, IMAGENET_SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def square(
    frames: UInt8[np.ndarray, "n h w 3"], shorter: int, side: int, floor: bool = False
) -> Float[Tensor, "n 3 s s"]:
    """Return the frames from 0 to 1, bicubic to a shorter side of so many pixels, then the square in the middle.

    `floor`: where the square cannot be in the middle it is half a pixel up and left, as in transformers.
    """
    return torch.stack([_square(frame, shorter, side, floor) for frame in frames])


def _square(frame: UInt8[np.ndarray, "h w 3"], shorter: int, side: int, floor: bool) -> Float[Tensor, "3 s s"]:
    from PIL import Image

    picture = Image.fromarray(frame)
    width, height = picture.size
    least = min(width, height)
    size = tuple(shorter if length == least else int(shorter * length / least) for length in (width, height))
    if size != picture.size:
        picture = picture.resize((size[0], size[1]), Image.Resampling.BICUBIC)
    return from_bytes(np.asarray(_middle(picture, side, floor))[None])[0]


def _middle(picture: Image, side: int, floor: bool) -> Image:
    left, top = ((length - side) // 2 if floor else round((length - side) / 2) for length in picture.size)
    return picture.crop((left, top, left + side, top + side))


def from_bytes(frames: UInt8[np.ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h w"]:
    """Return the frames in float32 from 0 to 1, channels first."""
    return torch.from_numpy(np.array(frames)).permute(0, 3, 1, 2).float() / 255


def normalized(
    pictures: Float[Tensor, "n 3 h w"], mean: tuple[float, ...], spread: tuple[float, ...]
) -> Float[Tensor, "n 3 h w"]:
    """Return the pictures less a mean and over a spread for each colour."""
    return (pictures - torch.tensor(mean)[:, None, None]) / torch.tensor(spread)[:, None, None]


def evenly(count: int, most: int) -> list[int]:
    """Return so many numbers of frames of `count`, first and last included, or all where there are no more."""
    return [round(place) for place in np.linspace(0, count - 1, min(count, most)).tolist()]


@torch.inference_mode()
def in_batches(
    frames: Frames, look: Callable[[Frames], Tensor], device: torch.device, card: int = 32, processor: int = 4
) -> Tensor:
    """Return what a network says of all frames, a batch at a time, on the processor in float32."""
    size = processor if device.type == "cpu" else card
    return torch.cat([look(batch).float().cpu() for batch in _batches(frames, size)])


def _batches(frames: Frames, size: int) -> Iterator[Frames]:
    for start in range(0, len(frames), size):
        yield frames[start : start + size]
