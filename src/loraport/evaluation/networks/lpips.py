"""LPIPS with AlexNet: how different two pictures look, by what five layers see of them."""

from __future__ import annotations

from pathlib import Path

import torch
from jaxtyping import Float, UInt8
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu

from loraport.evaluation.networks.pictures import from_bytes
from loraport.evaluation.networks.weight_files import build, stored_weights

LEAST_SIDE = 31
"""Pixels; of less nothing is left after two poolings."""
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_LAYERS = (0, 3, 6, 8, 10)
"""Where convolutions stand in torchvision's AlexNet; before the second and third is a pooling."""
_WIDTHS = (64, 192, 384, 256, 256)


class Alexnet(nn.Module):
    """The convolutions of AlexNet under torchvision's names."""

    def __init__(self) -> None:
        super().__init__()
        first, second = nn.Conv2d(3, 64, 11, 4, 2), nn.Conv2d(64, 192, 5, padding=2)
        rest = [nn.Conv2d(before, width, 3, padding=1) for before, width in ((192, 384), (384, 256), (256, 256))]
        self.features = nn.ModuleDict(dict(zip(map(str, _LAYERS), [first, second, *rest], strict=True)))

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Return what each convolution sees."""
        seen = []
        x = pictures
        for place, convolution in self.features.items():
            x = relu(convolution(max_pool2d(x, 3, 2) if place in ("3", "6") else x))
            seen.append(x)
        return seen


class Heads(nn.Module):
    """How much each channel counts, under the names of the authors' file."""

    def __init__(self) -> None:
        super().__init__()
        for place, width in enumerate(_WIDTHS):
            head = nn.Module()
            head.model = nn.ModuleDict({"1": nn.Conv2d(width, 1, 1, bias=False)})
            self.add_module(f"lin{place}", head)

    def weights(self) -> list[Tensor]:
        """Return the weights of the channels, layer by layer."""
        return [next(head.parameters()) for head in self.children()]


class Lpips:
    """Both files together."""

    def __init__(self, alexnet: Alexnet, heads: Heads) -> None:
        self.alexnet = alexnet
        self.weights = heads.weights()
        self.device = self.weights[0].device

    @torch.inference_mode()
    def distances(self, frames: UInt8[ndarray, "n h w 3"], others: UInt8[ndarray, "n h w 3"]) -> Float[Tensor, " n"]:
        """Return the distance of each frame to its counterpart."""
        return torch.stack([self._distance(frames[i : i + 1], others[i : i + 1]) for i in range(len(frames))])

    def _distance(self, frame: UInt8[ndarray, "1 h w 3"], other: UInt8[ndarray, "1 h w 3"]) -> Float[Tensor, ""]:
        seen = self.alexnet(torch.cat([_scaled(frame), _scaled(other)]).to(self.device))
        parts = []
        for layer, weight in zip(seen, self.weights, strict=True):
            unit = layer / (layer.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
            parts.append(((unit[0] - unit[1]).square() * weight[0]).sum(dim=0).mean())
        return torch.stack(parts).sum().float().cpu()


def _scaled(frame: UInt8[ndarray, "1 h w 3"]) -> Float[Tensor, "1 3 h w"]:
    pictures = 2 * from_bytes(frame) - 1
    return (pictures - torch.tensor(_SHIFT)[:, None, None]) / torch.tensor(_SCALE)[:, None, None]


def load_lpips(alexnet: Path, heads: Path, device: torch.device) -> Lpips:
    """Return the network with the weights of torchvision's `alexnet-owt-7be5be79.pth` and the authors' `alex.pth`."""
    stored = stored_weights(alexnet)
    convolutions = {name: weight for name, weight in stored.items() if name.startswith("features.")}
    return Lpips(
        build(Alexnet, convolutions, alexnet, "torchvision's AlexNet", device),
        build(Heads, stored_weights(heads), heads, "LPIPS' heads for AlexNet", device),
    )
