"""Bases of which one factor is kept and the other follows from the weight, in as many digits as are asked for."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.lazy_property import lazy_property
from loraport.spectral.kernels import sum_of_pieces, times_few
from loraport.spectral.svd import SingularBasis, right_directions, weak_directions

WEAK = 0.01
"""Directions with a singular value below so many root mean squares are given on both sides in half a basis: the others
come back from the weight with at most a hundred times the error."""


PACKED = 2e-9
"""How far a direction may be off that was kept in 32 bits an entry."""


def strong_directions(S: Float[Tensor, " n"]) -> int:
    """How many of the left directions half a basis leaves to the weight."""
    mean = S.double().square().mean().sqrt()
    return int((S > 0).logical_and(S >= WEAK * mean).sum())


def half_basis(W: Float[Tensor, "out in"]) -> SingularBasis:
    """The basis of a weight, half of it left to the weight, which must not change as long as the basis is used.

    S, the smaller factor and the weak directions of the other are in double precision, whatever that of the weight:
    decisions that have thresholds are made with them. Raises InputError for NaN or infinite entries.
    """
    if W.shape[0] < W.shape[1]:
        return half_basis(W.mT.contiguous()).transposed()
    S, V, U = right_directions(W)
    strong = strong_directions(S)
    weak = weak_directions(W, S, V, strong) if U is None else U[:, strong:].mT.contiguous()
    return HalfBasis(W, S, V.mT.contiguous(), weak)


class HalfBasis(SingularBasis):
    """The basis of a square or tall weight whose left directions follow from the weight: u_i = W·v_i / S_i.

    An error ε of v_i comes back as ε·rms(S) / S_i, so the directions below the first `len(S) − len(weak)` are given
    (`weak`, as rows; `strong_directions` says how many not). U is made when somebody asks for all of it; for a few
    columns it need not be. The weight is looked at then, and must not change. S, Vh and weak may be finer than the
    weight: what is shown has the weight's precision, `values`, `rows` and what is made of them that of who asks.
    """

    _W: Tensor
    _fine: tuple[Tensor, Tensor, Tensor]
    _strong: int

    def __init__(
        self, W: Float[Tensor, "out n"], S: Float[Tensor, " n"], Vh: Float[Tensor, "n n"], weak: Float[Tensor, "w out"]
    ) -> None:
        self.__dict__.update(S=S.to(W.dtype), _W=W, _fine=(S, Vh, weak), _strong=len(S) - len(weak))

    @lazy_property
    def Vh(self) -> Float[Tensor, "n n"]:  # noqa: N802
        """All right directions, as rows."""
        return self._fine[1].to(self._W.dtype)

    @lazy_property
    def U(self) -> Float[Tensor, "out n"]:  # noqa: N802
        """All left directions."""
        S, Vh = self.S[: self._strong], self.Vh[: self._strong]
        return torch.cat([self._W @ (Vh.mT / S), self._weak.mT], dim=1)

    @lazy_property
    def _weak(self) -> Float[Tensor, "w out"]:
        return self._fine[2].to(self._W.dtype)

    @property
    def fine(self) -> tuple[Tensor, Tensor, Tensor]:
        """S, Vh and the weak left directions as exactly as they are known."""
        return self._fine

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight; U is not made for that."""
        return self._W.shape[0], self._W.shape[1]

    def transposed(self) -> SingularBasis:
        """The basis of Wᵀ."""
        return _Turned(self)

    def values(self, dtype: torch.dtype) -> Float[Tensor, " n"]:
        """The singular values, as exactly as they are known."""
        return self._fine[0].to(dtype)

    def rows(self, dtype: torch.dtype) -> Float[Tensor, "n n"]:
        """The right directions as rows, as exactly as they are known."""
        return self.Vh if dtype == self._W.dtype else self._fine[1].to(dtype)

    def uncertainty(self, dtype: torch.dtype) -> float:
        """How far a direction may be off: in double precision what 32 bits of an entry leave open, with a margin."""
        finest = max(torch.finfo(self._fine[1].dtype).eps, torch.finfo(dtype).eps)
        return max(PACKED, 16 * finest)

    def left_rows(self, start: int) -> Float[Tensor, "w out"]:
        """The left directions from one on, as rows; the given ones without the others."""
        return self._weak[start - self._strong :] if start >= self._strong else super().left_rows(start)

    def left_piece(self, rows: slice, dtype: torch.dtype) -> Float[Tensor, "rows m"]:
        """Some rows of L = [W, the weak directions]."""
        return torch.cat([self._W[rows].to(dtype), self._fine[2][:, rows].mT.to(dtype)], dim=1)

    def from_left(self, sums: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """Uᵀ·X from Lᵀ·X: V of the strong directions brings WᵀX into the basis."""
        n, strong, dtype = len(self.S), self._strong, sums.dtype
        first = times_few(self.rows(dtype)[:strong], sums[:n]) / self.values(dtype)[:strong, None]
        return torch.cat([first, sums[n:]])

    def seen_left(self, X: Float[Tensor, "out m"]) -> Float[Tensor, "n m"]:
        """Uᵀ·X without U, in the precision of X."""
        if X.dtype == self._W.dtype:
            return self.from_left(torch.cat([times_few(self._W.mT, X), times_few(self._weak, X)]))
        return self.from_left(sum_of_pieces(len(X), lambda rows: self.left_piece(rows, X.dtype).mT @ X[rows]))

    def carried_left(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "out m"]:
        """U·X without U"""
        strong = X[: self._strong] / self.S[: self._strong, None]
        found = times_few(self._W, times_few(self.Vh[: self._strong].mT, strong))
        return found.add_(times_few(self._weak.mT, X[self._strong :]))


class _Turned(SingularBasis):
    """The basis of a wide weight, whose right directions follow from it."""

    _upright: HalfBasis

    def __init__(self, upright: HalfBasis) -> None:
        self.__dict__.update(S=upright.S, _upright=upright)

    @property
    def U(self) -> Float[Tensor, "out n"]:  # noqa: N802
        """All left directions."""
        return self._upright.Vh.mT

    @property
    def Vh(self) -> Float[Tensor, "n in"]:  # noqa: N802
        """All right directions."""
        return self._upright.U.mT

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self._upright.shape[::-1]

    def transposed(self) -> SingularBasis:
        """The basis of the tall weight."""
        return self._upright
