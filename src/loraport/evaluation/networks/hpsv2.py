"""HPSv2, what people prefer: CLIP's ViT-H/14 trained on their choices; the score is the cosine of picture and prompt.

The authors' program does not crop: the longer side becomes 224 pixels and black bars fill the square. They resize a
tensor, which torchvision does with antialiasing since its version 0.17 and did without before; here it is with.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import interpolate, normalize, pad

from loraport.evaluation.networks.clip_towers import PictureSize, TextClip, TowerSize
from loraport.evaluation.networks.pictures import CLIP_MEAN, CLIP_SPREAD, from_bytes, in_batches, normalized
from loraport.evaluation.networks.texts import LONGEST_TEXT
from loraport.evaluation.networks.weight_files import build, stored_weights

BOX = 224


def real_hpsv2() -> TextClip:
    """Return the published size, without weights."""
    eye, reader = TowerSize(width=1280, layers=32, heads=16), TowerSize(width=1024, layers=24, heads=16)
    return TextClip(PictureSize(BOX, patch=14), eye, reader, joint=1024, words=49408, length=LONGEST_TEXT)


def load_hpsv2(path: Path, device: torch.device, make: Callable[[], TextClip] = real_hpsv2) -> TextClip:
    """Return the network with the weights of `HPS_v2.1_compressed.pt`, which are in half precision."""
    return build(make, stored_weights(path, "state_dict"), path, "HPSv2", device)


def preferences(
    network: TextClip, tokens: Int[Tensor, "1 t"], frames: UInt8[ndarray, "n h w 3"]
) -> Float[Tensor, " n"]:
    """Return the score of each frame beside a prompt, given as `clip_tokens`."""
    device = network.text_projection.device
    with torch.inference_mode():
        words = normalize(network.read(tokens.to(device)), dim=-1)[0]
    return in_batches(frames, lambda batch: normalize(network.visual(boxed(batch).to(device)), dim=-1) @ words, device)


def boxed(frames: UInt8[ndarray, "n h w 3"]) -> Float[Tensor, "n 3 s s"]:
    """Return the frames with their longer side of 224 pixels, in the middle of a black square."""
    pictures = from_bytes(frames)
    scale = BOX / max(pictures.shape[-2:])
    if scale != 1:
        size = [max(1, round(length * scale)) for length in pictures.shape[-2:]]
        pictures = interpolate(pictures, size, mode="bicubic", align_corners=False, antialias=True)
    down, right = (BOX - length for length in pictures.shape[-2:])
    return normalized(
        pad(pictures, [right // 2, right - right // 2, down // 2, down - down // 2]), CLIP_MEAN, CLIP_SPREAD
    )
