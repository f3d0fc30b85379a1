"""Products with a large matrix, as BLAS is fastest at them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

FEW = 256
"""Columns up to which it matters how the large matrix lies."""


def times_few(A: Float[Tensor, "rows n"], X: Float[Tensor, "n m"]) -> Float[Tensor, "rows m"]:
    """A·X, A or its transpose laid out by rows, X with few columns (or with many, where this is the plain product).

    BLAS must not transpose a large matrix for a small result: it takes up to twice as long for the same sums.
    """
    return A @ X if A.is_contiguous() or X.shape[1] > FEW else (X.mT @ A.mT).mT


ROWS = 2048
"""Rows of a matrix that are held in another precision at a time."""


def sum_of_pieces(rows: int, term: Callable[[slice], Tensor]) -> Tensor:
    """The sum of a term over the rows of a matrix, so many at a time; at least one piece, which may be empty."""
    total = term(slice(0, ROWS))
    for start in range(ROWS, rows, ROWS):
        total = total.add_(term(slice(start, start + ROWS)))
    return total


STRIPS = 4
"""Strips of columns of a Gram matrix, each computed from its first diagonal entry down: 5/8 of all sums."""


def lower_gram(X: Float[Tensor, "rows n"], dtype: torch.dtype) -> Float[Tensor, "n n"]:
    """The lower triangle of Xᵀ·X in this precision; above the diagonal nothing is promised."""
    n = X.shape[1]
    total, width = torch.zeros(n, n, dtype=dtype, device=X.device), -(-n // STRIPS)
    for row in range(0, len(X), ROWS):
        piece = X[row : row + ROWS].to(dtype)
        for start in range(0, n, width):
            strip = slice(start, start + width)
            total[start:, strip].addmm_(piece[:, start:].mT, piece[:, strip])
    return total


def norm(X: Tensor) -> float:
    """‖X‖_F, summed in double precision: in single a matrix of 13824 × 5120 comes out 0.6 % too small."""
    return math.sqrt(energy(X))


def energy(X: Tensor) -> float:
    """‖X‖²_F, summed in double precision."""
    return inner(X, X)


def inner(X: Tensor, Y: Tensor) -> float:
    """⟨X, Y⟩, summed in double precision, piece by piece."""
    if not X.numel():
        return 0.0
    pairs = zip(in_pieces(X), in_pieces(Y), strict=True)
    return math.fsum(float(torch.dot(x.double(), y.double())) for x, y in pairs)


EXACT_UP_TO = 2048
"""Directions of a layer up to which its entries are compared with thresholds in double precision, where that costs
little: beyond, decisions closer to their threshold than 1e-6 are left to rounding, and counted."""

USUAL = 2.0**40
"""Scales between this and its inverse are usual: squares of squares of values there fit in single precision."""


def at_usual_scale(X: Tensor) -> bool:
    """Whether products of a few such matrices neither vanish nor overflow in single precision; zeros are usual."""
    largest = float(X.abs().max()) if X.numel() else 0.0
    return largest == 0 or 1 / USUAL < largest < USUAL


def at_least_zero(value: float) -> float:
    """What rounding left below zero is zero; what is not a number stays so, which `max(0.0, value)` would hide."""
    return 0.0 if value < 0 else value


_PIECE = 1 << 17
"""Values in a piece."""


def in_pieces(values: Tensor) -> tuple[Tensor, ...]:
    """The values end to end, in pieces that a processor's cache holds, where several passes cost little more than one.

    On a card they are one piece.
    """
    flat = values.reshape(-1)
    return torch.split(flat, _PIECE) if values.device.type == "cpu" and len(flat) else (flat,)
