"""MUSIQ trained on SPAQ, a picture's technical quality from 0 to 100: what VBench calls imaging quality.

Written from the paper and Google Research's program (Apache-2.0). Where the PyTorch copy that VBench uses differs, the
copy's numbers count: pictures are resized bicubic, and without antialiasing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float, Int, UInt8
from numpy import ndarray
from torch import Tensor, nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, pad, relu, scaled_dot_product_attention, unfold

from loraport.evaluation.networks.pictures import from_bytes, in_batches
from loraport.evaluation.networks.weight_files import build, stored_weights

LONGEST_SIDE = 512
"""Pixels: VBench makes larger frames smaller."""
_ROOT = 64
_PATCH = 32
_LONGER_SIDES = (224, 384)
"""Of the two copies that are resized; the picture as it is comes last."""


@dataclass(frozen=True)
class MusiqSize:
    """How wide and deep the network is."""

    width: int = 384
    inner: int = 1152
    heads: int = 6
    layers: int = 14
    grid: int = 10
    scales: int = 3


class _StandardConvolution(nn.Conv2d):
    """A convolution whose kernels are normalised, over what is padded as TensorFlow's SAME."""

    def forward(self, x: Tensor) -> Tensor:
        spread, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return conv2d(
            same(x, self.kernel_size[0], self.stride[0]), (self.weight - mean) / (spread + 1e-5), None, self.stride
        )


def same(x: Float[Tensor, "n c h w"], kernel: int, stride: int) -> Float[Tensor, "n c h2 w2"]:
    """Return x with zeros around it, so that a kernel gives ceil(length / stride) values; an odd zero is at the end."""
    sides = []
    for length in (x.shape[-1], x.shape[-2]):
        missing = max(0, (-(-length // stride) - 1) * stride + kernel - length)
        sides += [missing // 2, missing - missing // 2]
    return pad(x, sides)


class _Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        narrow, wide = _ROOT, 4 * _ROOT
        self.conv1 = _StandardConvolution(narrow, narrow, 1, bias=False)
        self.gn1 = nn.GroupNorm(32, narrow, eps=1e-4)
        self.conv2 = _StandardConvolution(narrow, narrow, 3, bias=False)
        self.gn2 = nn.GroupNorm(32, narrow, eps=1e-4)
        self.conv3 = _StandardConvolution(narrow, wide, 1, bias=False)
        self.gn3 = nn.GroupNorm(32, wide, eps=1e-4)
        self.conv_proj = _StandardConvolution(narrow, wide, 1, bias=False)
        self.gn_proj = nn.GroupNorm(32, wide, eps=1e-4)

    def forward(self, x: Tensor) -> Tensor:
        y = relu(self.gn1(self.conv1(x)))
        y = relu(self.gn2(self.conv2(y)))
        return relu(self.gn3(self.conv3(y)) + self.gn_proj(self.conv_proj(x)))


class _Attention(nn.Module):
    def __init__(self, size: MusiqSize) -> None:
        super().__init__()
        self.heads = size.heads
        self.query, self.key, self.value, self.out = (nn.Linear(size.width, size.width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        return self.out(scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2))


class _MusiqMlp(nn.Module):
    def __init__(self, size: MusiqSize) -> None:
        super().__init__()
        self.fc1, self.act, self.fc2 = nn.Linear(size.width, size.inner), nn.GELU(), nn.Linear(size.inner, size.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class _Layer(nn.Module):
    def __init__(self, size: MusiqSize) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(size.width, eps=1e-6), nn.LayerNorm(size.width, eps=1e-6)
        self.attention, self.mlp = _Attention(size), _MusiqMlp(size)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class _Positions(nn.Module):
    def __init__(self, size: MusiqSize) -> None:
        super().__init__()
        self.position_emb = nn.Parameter(torch.empty(1, size.grid**2, size.width))


class _Scales(nn.Module):
    def __init__(self, size: MusiqSize) -> None:
        super().__init__()
        self.scale_emb = nn.Parameter(torch.empty(size.scales, size.width))


class _Encoder(nn.Module):
    def __init__(self, size: MusiqSize) -> None:
        super().__init__()
        self.cls = nn.Parameter(torch.empty(1, 1, size.width))
        self.posembed_input, self.scaleembed_input = _Positions(size), _Scales(size)
        self.transformer = nn.ModuleDict({f"encoderblock_{place}": _Layer(size) for place in range(size.layers)})
        self.encoder_norm = nn.LayerNorm(size.width, eps=1e-6)

    def forward(self, x: Tensor, patches: Patches) -> Tensor:
        x = x + self.posembed_input.position_emb[0, patches.places] + self.scaleembed_input.scale_emb[patches.scales]
        x = torch.cat([self.cls.expand(len(x), 1, -1), x], dim=1)
        for layer in self.transformer.values():
            x = layer(x)
        return self.encoder_norm(x)


class Musiq(nn.Module):
    """The network under the names of its file."""

    def __init__(self, size: MusiqSize) -> None:
        super().__init__()
        self.size = size
        self.conv_root = _StandardConvolution(3, _ROOT, 7, 2, bias=False)
        self.gn_root = nn.GroupNorm(32, _ROOT, eps=1e-6)
        self.block1 = _Bottleneck()
        self.embedding = nn.Linear(8 * 8 * 4 * _ROOT, size.width)
        self.transformer_encoder = _Encoder(size)
        self.head = nn.Linear(size.width, 1)

    def forward(self, pictures: Float[Tensor, "n 3 h w"]) -> Float[Tensor, " n"]:
        """Return the quality of pictures from 0 to 1."""
        patches = patches_of(2 * pictures - 1, self.size.grid)
        x = patches.pixels.flatten(0, 1)
        x = relu(self.gn_root(self.conv_root(x)))
        x = self.block1(max_pool2d(same(x, 3, 2), 3, 2))
        x = self.embedding(x.permute(0, 2, 3, 1).flatten(1)).unflatten(0, (len(pictures), -1))
        return self.head(self.transformer_encoder(x, patches)[:, 0])[:, 0]

    def qualities(self, frames: UInt8[ndarray, "n h w 3"]) -> Float[Tensor, " n"]:
        """Return the quality of each frame, from 0 to 100."""
        device = self.embedding.weight.device
        return in_batches(frames, lambda batch: self(made_smaller(batch).to(device)), device, card=16, processor=2)


@dataclass(frozen=True)
class Patches:
    """All patches of pictures of one size."""

    pixels: Float[Tensor, "n p 3 32 32"]
    places: Int[Tensor, " p"]
    """Where in a grid that every picture is laid on, row by row."""
    scales: Int[Tensor, " p"]


def patches_of(pictures: Float[Tensor, "n 3 h w"], grid: int) -> Patches:
    """Return the patches of the pictures in all three sizes."""
    height, width = pictures.shape[-2:]
    copies = [pictures]
    for longer in reversed(_LONGER_SIDES):
        ratio = longer / max(height, width)
        size = [max(1, round(height * ratio)), max(1, round(width * ratio))]
        copies.insert(0, interpolate(pictures, size, mode="bicubic", align_corners=False))
    pixels, places = zip(*(_cut(copy, grid) for copy in copies), strict=True)
    scales = [torch.full_like(one, scale) for scale, one in enumerate(places)]
    return Patches(torch.cat(pixels, dim=1), torch.cat(places), torch.cat(scales))


def _cut(pictures: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    rows, columns = (-(-length // _PATCH) for length in pictures.shape[-2:])
    sides = []
    for count, length in ((columns, pictures.shape[-1]), (rows, pictures.shape[-2])):
        missing = count * _PATCH - length
        sides += [missing // 2, missing - missing // 2]
    pixels = unfold(pad(pictures, sides), _PATCH, stride=_PATCH).transpose(1, 2)
    numbers = torch.arange(grid, device=pictures.device, dtype=torch.float32)[None, None]
    pixels = pixels.reshape(len(pixels), -1, 3, _PATCH, _PATCH)
    across, down = (interpolate(numbers, count, mode="nearest")[0, 0].long() for count in (columns, rows))
    return pixels, (down[:, None] * grid + across).flatten()


def made_smaller(frames: UInt8[ndarray, "n h w 3"]) -> Float[Tensor, "n 3 h2 w2"]:
    """Return the frames from 0 to 1, the longer side 512 pixels at most: bilinear, without antialiasing, in bytes."""
    pictures = from_bytes(frames)
    scale = LONGEST_SIDE / max(pictures.shape[-2:])
    if scale >= 1:
        return pictures
    size = [int(scale * length) for length in pictures.shape[-2:]]
    # torchvision resizes bytes in float32 and rounds: this is the same to the last bit
    return interpolate(255 * pictures, size, mode="bilinear", align_corners=False).round() / 255


def real_musiq() -> Musiq:
    """Return the published size, without weights."""
    return Musiq(MusiqSize())


def load_musiq(path: Path, device: torch.device, make: Callable[[], Musiq] = real_musiq) -> Musiq:
    """Return the network with the weights of `musiq_spaq_ckpt-358bb6af.pth`."""
    return build(make, stored_weights(path), path, "MUSIQ trained on SPAQ", device)
