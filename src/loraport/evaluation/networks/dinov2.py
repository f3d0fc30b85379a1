"""DINOv2: how alike two pictures are in what they show, as a network sees it that never read a word."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor
from torch.nn.functional import normalize

from loraport.evaluation.networks.folders import read_folder
from loraport.evaluation.networks.pictures import IMAGENET_MEAN, IMAGENET_SPREAD, in_batches, normalized, square

SHORTER, CROP = 256, 224


def load_dinov2(folder: Path, device: torch.device) -> Any:
    """Return the Dinov2Model of a folder."""
    return read_folder("Dinov2Model", folder, device)


def dinov2_vectors(network: Any, frames: UInt8[ndarray, "n h w 3"]) -> Float[Tensor, "n width"]:
    """Return a vector of length one for each frame: what the network says of the whole picture."""

    def look(batch: UInt8[ndarray, "n h w 3"]) -> Tensor:
        pictures = normalized(square(batch, SHORTER, CROP, floor=True), IMAGENET_MEAN, IMAGENET_SPREAD)
        return normalize(network(pixel_values=pictures.to(network.device)).pooler_output, dim=-1)

    return in_batches(frames, look, network.device)
