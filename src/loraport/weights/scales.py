"""Codes and their scale: W = q · scale, whatever the codes are, and the step of the grid under every value.

A scale stands for the whole layer, a row, a column, a stretch of a row, or a square of 128 × 128.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.errors import FileFormatError
from loraport.weights.rounding import step_of
from loraport.weights.safetensors_files import NOT_READ, StoredTensor

SQUARE = 128
"""The side of the squares that share a scale, of block-scaled fp8 and TurboDiffusion's int8."""


@dataclass(frozen=True)
class Scaled:
    """Reads codes, fp8 or int8 or 16-bit values, and their scale; without one the codes are the values."""

    codes: StoredTensor
    scale: StoredTensor | None

    def __call__(self) -> tuple[Tensor, Tensor]:
        codes = self.codes.read()
        values = codes.float()
        step = step_of(values, codes.dtype) if codes.dtype.is_floating_point else torch.ones_like(values)
        if self.scale is None:
            return values, step
        scale = self.scale.read().float()
        if not bool(torch.isfinite(scale).all()) or bool((scale < 0).any()):
            raise self._no_scales("NaN, infinite or negative values")
        live = None if bool((scale > 0).all()) else values != 0
        _spread(scale, values)
        _spread(scale, step)
        if live is not None and bool((values[live] == 0).any()):
            raise self._no_scales("zeros for codes that are not zero")
        return values, step

    def _no_scales(self, what: str) -> FileFormatError:
        scale = self.scale or self.codes
        return FileFormatError(
            f"{scale.path}: {scale.key!r} holds {what}, no scales of {self.codes.key!r}; use another file"
        )


def granularity(codes: StoredTensor, scale: StoredTensor) -> str:
    """What one scale stands for. Raises FileFormatError for a shape that fits no known layout, or more than one."""
    shape = scale.shape
    rows, columns = (codes.shape[0], math.prod(codes.shape[1:])) if codes.shape else (0, 0)
    if math.prod(shape) == 1:
        return "a scale a layer"
    if shape[:1] == (rows,) and math.prod(shape) == rows:
        return "a scale a row"
    if shape == (1, rows) and rows != columns:
        return "a scale a row"
    if shape == (1, columns) and rows != columns:
        return "a scale a column"
    if len(shape) == 3 and shape[0] == rows and shape[2] == 1 and codes.shape[-1] % max(shape[1], 1) == 0:
        return "a scale a block"
    if shape == (math.ceil(rows / SQUARE), math.ceil(columns / SQUARE)):
        return "a scale a square"
    raise FileFormatError(
        f"{scale.path}: {scale.key!r} has shape {shape}, no scale of a weight of shape {codes.shape}; {NOT_READ}"
    )


def _spread(scale: Tensor, values: Tensor) -> None:
    """values · scale in place, each scale over what it stands for."""
    matrix = values.view(values.shape[0], -1) if values.dim() else values
    if scale.numel() == 1:
        values.mul_(scale.reshape(()))
    elif scale.dim() == 3 and scale.shape[1] > 1:
        values.view(*scale.shape[:2], -1).mul_(scale)
    elif scale.numel() == matrix.shape[0]:
        matrix.mul_(scale.reshape(-1, 1))
    elif scale.numel() == matrix.shape[1]:
        matrix.mul_(scale.reshape(1, -1))
    else:
        for number, line in enumerate(scale):
            matrix[number * SQUARE : (number + 1) * SQUARE].mul_(line.repeat_interleave(SQUARE)[: matrix.shape[1]])
