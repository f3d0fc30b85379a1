"""Weights stored as codes with scales: W = q · scale, and the step of the grid under every value.

A scale stands for the whole layer, a row, a column, a stretch of a row, or a square of 128 × 128.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from loraport.errors import FileFormatError
from loraport.files.formats.safetensors_read import NOT_READ, StoredTensor

if TYPE_CHECKING:
    from torch import Tensor

SQUARE = 128
"""The side of the squares that share a scale, of block-scaled fp8 and TurboDiffusion's int8."""
LAYER, ROW, COLUMN, BLOCK, A_SQUARE = (f"a scale a {what}" for what in ("layer", "row", "column", "block", "square"))
"""What one scale stands for."""


@dataclass(frozen=True)
class ScaledCodes:
    """Reads codes, fp8 or int8 or 16-bit values, and their scale; without one the codes are the values."""

    codes: StoredTensor
    scale: StoredTensor | None

    def __call__(self) -> tuple[Tensor, Tensor]:
        import torch

        from loraport.files.formats.rounding import step_of

        codes = self.codes.read()
        values = codes.float()
        # the step between codes: 1 for whole numbers, for fp8 that of its own uneven grid; both grow with the scale
        step = step_of(values, codes.dtype) if codes.dtype.is_floating_point else torch.ones_like(values)
        if self.scale is None:
            return values, step
        scale = self.scale.read().float()
        if not bool(torch.isfinite(scale).all()) or bool((scale < 0).any()):
            raise self._no_scales("NaN, infinite or negative values")
        # a scale may be 0 where all of its codes are; elsewhere it would turn weights into zeros
        live = None if bool((scale > 0).all()) else values != 0
        stretch = granularity(self.codes, self.scale)
        _spread(scale, values, stretch)
        _spread(scale, step, stretch)
        if live is not None and bool((values[live] == 0).any()):
            raise self._no_scales("zeros for codes that are not zero")
        return values, step

    def _no_scales(self, what: str) -> FileFormatError:
        scale = self.scale or self.codes
        return FileFormatError(
            f"{scale.path}: {scale.key!r} holds {what}, not valid scales of {self.codes.key!r}; use another file"
        )


def granularity(codes: StoredTensor, scale: StoredTensor) -> str:
    """Return what one scale stands for. Raises FileFormatError where the shapes fit no known layout, or several."""
    shape = scale.shape
    rows, columns = (codes.shape[0], math.prod(codes.shape[1:])) if codes.shape else (0, 0)
    if not scale.is_real:
        raise FileFormatError(
            f"{scale.path}: {scale.key!r} is a scale in {scale.kind}, whose numbers can mean several things (in "
            f"some formats they are exponents); {NOT_READ}"
        )
    if math.prod(shape) == 1:
        return LAYER
    if shape[:1] == (rows,) and math.prod(shape) == rows:
        return ROW
    if shape == (1, rows) and rows != columns:
        return ROW
    if shape == (1, columns) and rows != columns:
        return COLUMN
    if len(shape) == 3 and shape[0] == rows and shape[2] == 1 and codes.shape[-1] % max(shape[1], 1) == 0:
        return BLOCK
    if shape == (math.ceil(rows / SQUARE), math.ceil(columns / SQUARE)):
        return A_SQUARE
    raise FileFormatError(
        f"{scale.path}: {scale.key!r} has shape {shape}, which does not fit a weight of shape {codes.shape}; {NOT_READ}"
    )


def _spread(scale: Tensor, values: Tensor, stretch: str) -> None:
    """Multiply values by their scale in place, each scale over what it stands for, which is `granularity`'s word."""
    matrix = values.view(values.shape[0], -1) if values.dim() else values
    if stretch == LAYER:
        values.mul_(scale.reshape(()))
    elif stretch == ROW:
        matrix.mul_(scale.reshape(-1, 1))
    elif stretch == COLUMN:
        matrix.mul_(scale.reshape(1, -1))
    elif stretch == BLOCK:
        values.view(*scale.shape[:2], -1).mul_(scale)
    else:
        for number, line in enumerate(scale):
            matrix[number * SQUARE : (number + 1) * SQUARE].mul_(line.repeat_interleave(SQUARE)[: matrix.shape[1]])
