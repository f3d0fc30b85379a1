"""Weights and pictures that anyone can make again from names and sizes alone, here and beside the original programs."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping

import numpy as np
import torch


def planted(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return a tensor for each name, drawn from the name: matrices of unit gain, scales about 1, offsets about 0."""
    return {name: _drawn(name, tuple(shape)) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    drawn = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if len(shape) > 1:
        drawn = drawn / math.sqrt(math.prod(shape[1:]))
    elif name.endswith("weight"):
        drawn = 1 + drawn / 10
    else:
        drawn = drawn / 10
    return torch.from_numpy(np.asarray(drawn, dtype=np.float32))


def shapes_of(network: torch.nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def film(count: int, height: int, width: int) -> np.ndarray:
    """Return frames of coloured waves and a checkerboard that moves, in whole numbers throughout."""
    t, y, x, c = np.ogrid[:count, :height, :width, :3]
    waves = (x * (3 + c) + y * (5 - c) + 11 * t) % 511
    waves = np.where(waves > 255, 510 - waves, waves)
    board = 40 * (((x + 4 * t) // 16 + y // 16) % 2)
    return ((waves * 210) // 255 + board).astype(np.uint8)
