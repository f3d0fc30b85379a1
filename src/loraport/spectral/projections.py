"""Updates projected onto subspaces, from their thin factors: no out × in matrix and no square projector is formed.

A subspace is given by orthonormal columns U. X − U·(Uᵀ·X) is exactly zero where U is square, in any arithmetic.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.spectral.basis import SingularBasis, decompose
from loraport.spectral.low_rank import LowRank


def on_span(X: Float[Tensor, "m r"], U: Float[Tensor, "m k"]) -> Float[Tensor, "m r"]:
    """Return the part of the columns inside the subspace: P·X with P = U·Uᵀ."""
    return U @ (U.mT @ X)


def off_span(X: Float[Tensor, "m r"], U: Float[Tensor, "m k"]) -> Float[Tensor, "m r"]:
    """Return the part of the columns outside of it: (I − P)·X; zero where the subspace is everything."""
    return torch.zeros_like(X) if U.shape[0] == U.shape[1] else X - on_span(X, U)


def projected(update: LowRank, left: Float[Tensor, "out k"], right: Float[Tensor, "in l"]) -> LowRank:
    """Return P·B·A·Q for the projectors on two subspaces, at the update's own rank."""
    return LowRank(on_span(update.B, left), on_span(update.A.mT, right).mT, update.lost_energy)


def projected_away(update: LowRank, left: Float[Tensor, "out k"], right: Float[Tensor, "in l"]) -> LowRank:
    """Return (I − P)·B·A·(I − Q) for the projectors on two subspaces, at the update's own rank."""
    return LowRank(off_span(update.B, left), off_span(update.A.mT, right).mT, update.lost_energy)


def side_by_side(*updates: LowRank) -> LowRank:
    """Return the sum of updates, exactly: [B₁ B₂ …]·[A₁; A₂; …], whose rank is the sum of theirs."""
    return LowRank(torch.cat([each.B for each in updates], dim=1), torch.cat([each.A for each in updates]))


def overlap(U: Float[Tensor, "m k"], other: Float[Tensor, "m l"]) -> float:
    """Return how much of two subspaces is shared: Φ = ‖Uᵀ·U'‖_F² / max(k, l), from 0 (orthogonal) to 1 (the same).

    Two random subspaces share min(k, l)/m on average. Full bases (k = l = m) always share all.
    """
    size = max(U.shape[1], other.shape[1])
    return min(1.0, float((U.mT @ other).double().square().sum()) / size) if size else 1.0


def numerical_rank(S: Float[Tensor, " n"], shape: tuple[int, int]) -> int:
    """Return the number of singular values above rounding: S_i > S_1 · max(out, in) · eps of their dtype."""
    return int((S > S[:1] * max(shape) * torch.finfo(S.dtype).eps).sum())


def span_of(X: Float[Tensor, "m r"]) -> SingularBasis:
    """Return the thin singular basis of a factor, without directions that are only rounding: X = U · diag(S) · Vh."""
    basis = decompose(X)
    k = numerical_rank(basis.S, (X.shape[0], X.shape[1]))
    return SingularBasis(basis.U[:, :k], basis.S[:k], basis.Vh[:k])
