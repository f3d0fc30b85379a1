"""How far stored values may lie from what they were rounded from: the floor under every difference of two files.

A value q of a grid was rounded from somewhere between the midpoints to its neighbours, a below it and b above. Where
the density is flat there, E[(x − q)²] = (a² − a·b + b²) / 12, which is step² / 12 on an even grid.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.spectral.kernels import in_pieces, norm

_EXPONENT = 0x7F800000
"""The exponent bits of a float32: what remains of a value is the power of two below it."""


def step_of(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """Return the grid's step at each float32 value that the dtype holds, √(a² − a·b + b²): eps · 2^⌊log₂|q|⌋.

    Below the smallest normal number the step stays as it is. At a power of two the step below is half of that above:
    that counts in fp8, and is left out in wider dtypes, where it concerns one value in 128 or fewer.
    """
    grid = torch.finfo(dtype)
    # with its sign and mantissa cleared a float32 is 2^⌊log₂|q|⌋, exactly and without a logarithm
    binade = (values.contiguous().view(torch.int32) & _EXPONENT).view(torch.float32)
    if grid.bits > 8:
        return binade.clamp_(min=grid.smallest_normal).mul_(grid.eps)
    # above a power of two the step is b = eps · binade, below it a = b/2: √(a² − a·b + b²) = √3/2 · b
    uneven = (binade == values.abs()) & (binade > grid.smallest_normal)
    return binade.clamp_(min=grid.smallest_normal).mul_(torch.where(uneven, math.sqrt(3) / 2, 1.0)).mul_(grid.eps)


def rounding_error(values: Float[Tensor, "*shape"], dtype: torch.dtype) -> float:
    """Return √E‖x − q‖² of values that this dtype holds, from the step of its grid at each."""
    parts = [float(torch.linalg.vector_norm(step_of(piece, dtype))) for piece in in_pieces(values)]
    return math.hypot(*parts) / math.sqrt(12)


def expected_error(step: Float[Tensor, "*shape"]) -> float:
    """Return √E‖x − q‖² = ‖step‖_F / √12 over all entries."""
    return norm(step) / math.sqrt(12)


def narrowest(values: Float[Tensor, "out in"], dtype: torch.dtype) -> torch.dtype:
    """Return the dtype whose grid the values lie on: a 16-bit one where a wider file holds nothing finer, else its own.

    Zeros lie on every grid, and so say nothing.
    """
    if dtype.itemsize <= 2:
        return dtype
    for narrow in (torch.bfloat16, torch.float16):
        # one row first: it settles nearly every matrix
        if all(torch.equal(part, part.to(narrow).to(part.dtype)) for part in (values[:1], values)):
            return narrow if values.any() else dtype
    return torch.float32
