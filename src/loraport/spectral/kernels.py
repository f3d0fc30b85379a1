"""Products, sums and selections on large matrices, each in the way that BLAS or numpy is fastest at."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

FEW = 256
"""Most columns of X in A·X for which it matters how the product is written (`times_few`)."""

ROWS = 2048
"""Rows of a matrix that are held in another precision at a time."""

ROWS_IN_CACHE = 512
"""Rows that a processor's cache still holds when they are used, where products with a few columns come from them."""

STRIPS = 4
"""Strips of columns of a Gram matrix, each computed from its first diagonal entry down: 5/8 of all sums."""

EXACT_UP_TO = 2048
"""Directions of a layer up to which its entries are compared with thresholds in double precision, where that costs
little: beyond, decisions closer to their threshold than 1e-6 are left to rounding, and counted."""

USUAL = 2.0**40
"""Scales between this and its inverse are usual: squares of squares of values there fit in single precision."""


def is_on_card(X: Tensor) -> bool:
    """Tell whether a tensor is on a card, where the program waits for every number that it asks for."""
    return X.device.type != "cpu"


def times_few(A: Float[Tensor, "rows n"], X: Float[Tensor, "n m"]) -> Float[Tensor, "rows m"]:
    """Return A·X as (Xᵀ·Aᵀ)ᵀ where X has at most FEW columns: the same sums, and BLAS is faster at few rows.

    In double precision by a third to a half, however a large A lies in memory; where A is the transpose of a matrix
    laid out by rows, in single precision too. The columns of the product lie one after the other, as those of X should.
    """
    return A @ X if X.shape[1] > FEW else (X.mT @ A.mT).mT


def sum_of_pieces(X: Float[Tensor, "rows n"], term: Callable[[slice], Tensor]) -> Tensor:
    """Return the sum of a term over the rows of X, so many at a time; at least one piece, which may be empty."""
    some = ROWS if is_on_card(X) else ROWS_IN_CACHE
    total = term(slice(0, some))
    for start in range(some, len(X), some):
        total = total.add_(term(slice(start, start + some)))
    return total


def lower_gram(X: Float[Tensor, "rows n"], dtype: torch.dtype) -> Float[Tensor, "n n"]:
    """Return the lower triangle of Xᵀ·X in this precision; above the diagonal nothing is promised."""
    n = X.shape[1]
    total, width = torch.zeros(n, n, dtype=dtype, device=X.device), -(-n // STRIPS)
    for row in range(0, len(X), ROWS):
        piece = X[row : row + ROWS].to(dtype)
        for start in range(0, n, width):
            strip = slice(start, start + width)
            total[start:, strip].addmm_(piece[:, start:].mT, piece[:, strip])
    return total


def mirrored(lower: Float[Tensor, "n n"]) -> Float[Tensor, "n n"]:
    """Return the symmetric matrix with this lower triangle, in its memory.

    Transposed by a copy: to add a transposed view takes five times as long.
    """
    lower.tril_()
    return lower.add_(lower.mT.clone(memory_format=torch.contiguous_format).triu_(1))


def column_norms(X: Float[Tensor, "rows n"]) -> Float[Tensor, " n"]:
    """Return ‖X(:, j)‖ of each column; torch's own norm takes ten times as long in double precision."""
    return X.square().sum(dim=0).sqrt()


def norm(X: Tensor) -> float:
    """Return ‖X‖_F, summed in double precision: in single a matrix of 13824 × 5120 comes out 0.6 % too small."""
    return math.sqrt(energy(X))


def energy(X: Tensor) -> float:
    """Return ‖X‖²_F, summed in double precision."""
    return inner(X, X)


def inner(X: Tensor, Y: Tensor) -> float:
    """Return ⟨X, Y⟩, summed in double precision, piece by piece."""
    total = X.new_zeros((), dtype=torch.float64)
    for x, y in zip(in_pieces(X), in_pieces(Y), strict=True):
        wide = x.double()
        total += torch.dot(wide, wide if Y is X else y.double())
    return float(total)


def at_usual_scale(X: Tensor) -> bool:
    """Tell whether products of a few such matrices fit in single precision; zeros do."""
    largest = largest_size(X)
    return largest == 0 or 1 / USUAL < largest < USUAL


def largest_size(X: Tensor) -> float:
    """Return the largest |x|, 0 without entries; in one pass that writes nothing, a tenth of the time of |X|."""
    return float(torch.stack(torch.aminmax(X)).abs().max()) if X.numel() else 0.0


def at_least_zero(value: float) -> float:
    """Return zero for what rounding left below it; NaN stays NaN, which `max(0.0, value)` would hide."""
    return 0.0 if value < 0 else value


_PIECE, _PIECE_ON_CARD = 1 << 17, 1 << 24
"""Values in a piece, on a processor and on a card."""


def in_pieces(values: Tensor) -> tuple[Tensor, ...]:
    """Return the values end to end, in pieces that a processor's cache holds, where several passes cost little more.

    On a card they are as large as need be to keep it busy, and small enough for what is made of them to need no room.
    """
    flat = values.reshape(-1)
    return torch.split(flat, _PIECE_ON_CARD if is_on_card(values) else _PIECE) if len(flat) else (flat,)


# Selections of single entries out of millions. On a processor numpy does them, five to ten times as fast as torch
# (nonzero, kthvalue, masked_select); the answers are the same. An entry's flat index counts row by row.


@dataclass(frozen=True)
class Entries:
    """Some entries of a matrix: their flat indices, ascending, and their values."""

    indices: Int[Tensor, " e"]
    values: Float[Tensor, " e"]

    def __len__(self) -> int:
        return len(self.indices)

    def to(self, dtype: torch.dtype) -> Entries:
        """Return the same in another precision."""
        return Entries(self.indices, self.values.to(dtype))

    def where(self, chosen: Bool[Tensor, " e"]) -> Entries:
        """Return some of them."""
        return Entries(self.indices[chosen], self.values[chosen])


def true_indices(mask: Bool[Tensor, "rows columns"]) -> Int[Tensor, " e"]:
    """Return the flat indices of the true entries, ascending."""
    if is_on_card(mask):
        return mask.flatten().nonzero().squeeze(1)
    return torch.from_numpy(np.flatnonzero(mask.numpy()))


def positive_indices(
    X: Float[Tensor, "rows columns"], rows: Bool[Tensor, " rows"], columns: Bool[Tensor, " columns"]
) -> Int[Tensor, " e"]:
    """Return the flat indices of the positive entries that lie in one of the rows or columns, ascending."""
    if is_on_card(X):
        return true_indices((X > 0).logical_and_(rows[:, None] | columns))
    positive = X.numpy() > 0
    inside = rows.numpy()[:, None] | columns.numpy()
    return torch.from_numpy(np.flatnonzero(np.logical_and(positive, inside, out=positive)))


def entries_at(X: Float[Tensor, "rows columns"], indices: Int[Tensor, " e"]) -> Float[Tensor, " e"]:
    """Return the entries at these flat indices."""
    return X.reshape(-1).index_select(0, indices)


def kth_smallest(values: Float[Tensor, " e"], k: int) -> Float[Tensor, ""]:
    """Return the value that has k − 1 before it in order; exact. On a processor partitioning takes linear time.

    A card sorts: its selection in one long row keeps one of its hundred processors busy.
    """
    if is_on_card(values):
        return values.sort().values[k - 1]
    return torch.from_numpy(np.partition(values.numpy(), k - 1)[k - 1 : k])[0]
