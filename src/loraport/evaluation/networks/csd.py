"""CSD, contrastive style descriptors: CLIP's ViT-L/14 trained anew, and one matrix from what it sees to a style.

Preprocessing and network as in the authors' repository. Their README says that the weights they publish do not give the
numbers of their paper: compare what one run says, never a number with one printed elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import normalize

from loraport.evaluation.networks.clip_towers import PictureSize, PictureTower, TowerSize
from loraport.evaluation.networks.pictures import CLIP_MEAN, CLIP_SPREAD, in_batches, normalized, square
from loraport.evaluation.networks.weight_files import build, stored_weights

SIDE = 224
_PREFIX = "module."


class Csd(nn.Module):
    """The network under the names of its file; the matrix for contents is in the file too, and is not asked."""

    def __init__(self, size: TowerSize, patch: int, style: int) -> None:
        super().__init__()
        self.last_layer_style = nn.Parameter(torch.empty(size.width, style))
        self.last_layer_content = nn.Parameter(torch.empty(size.width, style))
        self.backbone = PictureTower(size, PictureSize(SIDE, patch), quick=True)

    def forward(self, pictures: Float[Tensor, "n 3 s s"]) -> Float[Tensor, "n style"]:
        """Return the style of each picture, of length one."""
        return normalize(self.backbone(pictures) @ self.last_layer_style, dim=1)

    def styles(self, frames: UInt8[ndarray, "n h w 3"]) -> Float[Tensor, "n style"]:
        """Return the style of each frame, of length one."""
        device = self.last_layer_style.device
        return in_batches(
            frames, lambda batch: self(normalized(square(batch, SIDE, SIDE), CLIP_MEAN, CLIP_SPREAD).to(device)), device
        )


def real_csd() -> Csd:
    """Return the published size, without weights."""
    return Csd(TowerSize(width=1024, layers=24, heads=16), patch=14, style=768)


def load_csd(path: Path, device: torch.device, make: Callable[[], Csd] = real_csd) -> Csd:
    """Return the network with the weights of `pytorch_model.bin`, a checkpoint of its training."""
    stored = stored_weights(path, "model_state_dict", objects_aside=True)
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in stored.items()}
    return build(make, weights, path, "CSD", device)
