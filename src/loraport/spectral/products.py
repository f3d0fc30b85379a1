"""Products with a large matrix, as BLAS is fastest at them."""

from __future__ import annotations

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
