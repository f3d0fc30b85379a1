"""Singular bases of weights: what a basis gives, whole and half-kept bases, and how a weight is decomposed.

Energy always means a share of the squared Frobenius norm, ΣS². `V` is never stored: always `Vh`, as torch returns it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import InputError, SettingsError
from loraport.lazy_property import lazy_property
from loraport.spectral.kernels import ROWS, lower_gram, sum_of_pieces, times_few


class Basis:
    """A thin singular basis of one weight, W = U · diag(S) · Vh with n = min(out, in) and S descending.

    Whoever only needs products with U calls `project_left` and `lift_left`, so that a basis need not hold U.
    """

    if TYPE_CHECKING:
        # Fields or properties of the subclasses; at run time a dataclass would take them for its fields' defaults.
        @property
        def U(self) -> Float[Tensor, "out n"]: ...  # noqa: N802
        @property
        def S(self) -> Float[Tensor, " n"]: ...  # noqa: N802
        @property
        def Vh(self) -> Float[Tensor, "n in"]: ...  # noqa: N802

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def is_square(self) -> bool:
        """Whether neither side has a complement."""
        return self.shape[0] == self.shape[1]

    @lazy_property
    def rank(self) -> int:
        """Directions that the weight has; the others, if any, are those of its rounding and arbitrary."""
        return spectrum_rank(self.S)

    def transposed(self) -> Basis:
        """Return the basis of Wᵀ: left and right directions change places."""
        raise NotImplementedError

    def S_as(self, dtype: torch.dtype) -> Float[Tensor, " n"]:  # noqa: N802
        """Return the singular values in this precision, from the most exact ones known."""
        return self.S.to(dtype)

    def Vh_as(self, dtype: torch.dtype) -> Float[Tensor, "n in"]:  # noqa: N802
        """Return the right directions as rows in this precision, from the most exact ones known."""
        return self.Vh.to(dtype)

    def uncertainty(self, dtype: torch.dtype) -> float:
        """Return how far a direction, and what is computed with it in this precision, may be off: 16 roundings."""
        return 16 * max(torch.finfo(self.S.dtype).eps, torch.finfo(dtype).eps)

    def left_rows(self, start: int) -> Float[Tensor, "w out"]:
        """Return the left directions from number `start` on, as rows."""
        return self.U.mT[start:]

    def left_span(self, rows: slice, dtype: torch.dtype) -> Float[Tensor, "rows m"]:
        """Return some rows of a matrix L whose products give U's: Uᵀ·X = `from_left_span(Lᵀ·X)`."""
        return self.U[rows].to(dtype)

    def from_left_span(self, product: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """Return Uᵀ·X from Lᵀ·X, L being the matrix of `left_span`."""
        return product

    def project_left(self, X: Float[Tensor, "out m"]) -> Float[Tensor, "n m"]:
        """Return Uᵀ·X in the precision of X."""
        if X.dtype == self.S.dtype:
            return times_few(self.U.mT, X)
        return self._projected_in_pieces(X)

    def lift_left(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "out m"]:
        """Return U·X."""
        return times_few(self.U, X)

    def _projected_in_pieces(self, X: Float[Tensor, "out m"]) -> Float[Tensor, "n m"]:
        # In pieces, so that L is never converted to X's precision as a whole.
        return self.from_left_span(sum_of_pieces(X, lambda rows: self.left_span(rows, X.dtype).mT @ X[rows]))


@dataclass(frozen=True)
class SingularBasis(Basis):
    """The thin SVD of one weight, W = U · diag(S) · Vh with n = min(out, in) and S descending."""

    U: Float[Tensor, "out n"]
    S: Float[Tensor, " n"]
    Vh: Float[Tensor, "n in"]

    def transposed(self) -> SingularBasis:
        """Return the basis of Wᵀ: left and right directions change places."""
        return SingularBasis(self.Vh.mT, self.S, self.U.mT)


WEAK = 0.01
"""Share of the root mean square of S below which a direction counts as weak: `HalfBasis` holds its left side too, since
all others come back from the weight with at most a hundred times the error."""

PACKED_ERROR = 2e-9
"""How far a direction that was stored in 32 bits an entry may be off."""


@dataclass(frozen=True)
class HalfBasis(Basis):
    """The basis of a square or tall weight that holds V, and makes U of the weight where needed: u_i = W·v_i / S_i.

    That halves what is stored, and saves the work of making U where only products with it are needed. An error ε of v_i
    comes back in u_i as ε·rms(S) / S_i, so the last left directions, where S_i is small, are held as well (`weak`).

    W is not copied and must not change while the basis is in use. The other fields may be more exact than W: S, U and
    Vh have the precision of W, `S_as`, `Vh_as` and products that of whoever asks.
    """

    W: Float[Tensor, "out n"]
    S_exact: Float[Tensor, " n"]
    Vh_exact: Float[Tensor, "n n"]
    weak: Float[Tensor, "w out"]
    """The last left directions, as rows; `count_strong` says how many come before them."""

    @lazy_property
    def S(self) -> Float[Tensor, " n"]:  # noqa: N802
        """Singular values."""
        return self.S_exact.to(self.W.dtype)

    @lazy_property
    def Vh(self) -> Float[Tensor, "n n"]:  # noqa: N802
        """Right directions, as rows."""
        return self.Vh_exact.to(self.W.dtype)

    @lazy_property
    def U(self) -> Float[Tensor, "out n"]:  # noqa: N802
        """Left directions."""
        S, Vh = self.S[: self._strong], self.Vh[: self._strong]
        return torch.cat([self.W @ (Vh.mT / S), self._weak.mT], dim=1)

    @property
    def _strong(self) -> int:
        return len(self.S_exact) - len(self.weak)

    @lazy_property
    def _weak(self) -> Float[Tensor, "w out"]:
        return self.weak.to(self.W.dtype)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight; U is not made for that."""
        return self.W.shape[0], self.W.shape[1]

    def transposed(self) -> Basis:
        """Return the basis of Wᵀ."""
        return TransposedBasis(self)

    def S_as(self, dtype: torch.dtype) -> Float[Tensor, " n"]:  # noqa: N802
        """Return the singular values in this precision, from the most exact ones known."""
        return self.S_exact.to(dtype)

    def Vh_as(self, dtype: torch.dtype) -> Float[Tensor, "n n"]:  # noqa: N802
        """Return the right directions as rows in this precision, from the most exact ones known."""
        return self.Vh if dtype == self.W.dtype else self.Vh_exact.to(dtype)

    def uncertainty(self, dtype: torch.dtype) -> float:
        """Return how far a direction may be off: 16 roundings, or what storing it in 32 bits leaves open."""
        finest = max(torch.finfo(self.Vh_exact.dtype).eps, torch.finfo(dtype).eps)
        return max(PACKED_ERROR, 16 * finest)

    def left_rows(self, start: int) -> Float[Tensor, "w out"]:
        """Return the left directions from number `start` on, as rows; without making U where they are all held."""
        return self._weak[start - self._strong :] if start >= self._strong else super().left_rows(start)

    def left_span(self, rows: slice, dtype: torch.dtype) -> Float[Tensor, "rows m"]:
        """Return some rows of L = [W, weakᵀ], whose products give U's (`from_left_span`)."""
        return torch.cat([self.W[rows].to(dtype), self.weak[:, rows].mT.to(dtype)], dim=1)

    def from_left_span(self, product: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """Return Uᵀ·X from Lᵀ·X: u_iᵀ·X = v_iᵀ·(Wᵀ·X) / S_i for the strong directions, the weak ones are there."""
        n, strong, dtype = len(self.S), self._strong, product.dtype
        first = times_few(self.Vh_as(dtype)[:strong], product[:n]) / self.S_as(dtype)[:strong, None]
        return torch.cat([first, product[n:]])

    def project_left(self, X: Float[Tensor, "out m"]) -> Float[Tensor, "n m"]:
        """Return Uᵀ·X without U, in the precision of X."""
        if X.dtype == self.W.dtype:
            of_W, weak = times_few(self.W.mT, X), self._weak
        else:  # in pieces, so that W is never held in that precision as a whole
            of_W, weak = sum_of_pieces(X, lambda rows: X[rows].mT @ self.W[rows].to(X.dtype)).mT, self.weak
        return self.from_left_span(torch.cat([of_W, times_few(weak.to(X.dtype), X)]))

    def lift_left(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "out m"]:
        """Return U·X without U: W·(V·(X / S)) for the strong directions, plus the weak ones."""
        strong = X[: self._strong] / self.S[: self._strong, None]
        lifted = times_few(self.W, times_few(self.Vh[: self._strong].mT, strong))
        return lifted.add_(times_few(self._weak.mT, X[self._strong :]))


@dataclass(frozen=True)
class TransposedBasis(Basis):
    """The half-kept basis of a wide weight: that of its transpose, with left and right exchanged."""

    upright: HalfBasis

    @lazy_property
    def U(self) -> Float[Tensor, "out n"]:  # noqa: N802
        """Left directions."""
        return self.upright.Vh.mT

    @lazy_property
    def S(self) -> Float[Tensor, " n"]:  # noqa: N802
        """Singular values."""
        return self.upright.S

    @lazy_property
    def Vh(self) -> Float[Tensor, "n in"]:  # noqa: N802
        """Right directions, as rows."""
        return self.upright.U.mT

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.upright.shape[::-1]

    def transposed(self) -> Basis:
        """Return the basis of the tall weight."""
        return self.upright


def decompose(W: Float[Tensor, "out in"]) -> SingularBasis:
    """Return the thin singular basis of a weight (paper §3.1), in memory of its own.

    Equal to `numpy.linalg.svd(W, full_matrices=False)`. A full basis is never formed: what completes it is arbitrary.
    A wide weight is decomposed as its transpose. Single precision is computed in double and rounded at the end, see
    `right_directions`. Raises InputError for NaN or infinite entries.
    """
    if W.shape[0] < W.shape[1]:
        return decompose(W.mT.contiguous()).transposed()
    S, V, U = right_directions(W)
    left = _left_directions(W, S, V) if U is None else U.to(W.dtype)
    return SingularBasis(left, S.to(W.dtype), V.mT.to(W.dtype).contiguous())


def half_basis(W: Float[Tensor, "out in"]) -> Basis:
    """Return the half-kept basis of a weight, which must not change as long as the basis is in use (see `HalfBasis`).

    S, the smaller factor and the weak directions of the other stay in double precision, whatever that of the weight:
    CASA compares what is computed with them to thresholds, and in single precision an entry near one falls on either
    side by chance. Raises InputError for NaN or infinite entries.
    """
    if W.shape[0] < W.shape[1]:
        return half_basis(W.mT.contiguous()).transposed()
    S, V, U = right_directions(W)
    strong = count_strong(S)
    weak = weak_directions(W, S, V, strong) if U is None else U[:, strong:].mT.contiguous()
    return HalfBasis(W, S, V.mT.contiguous(), weak)


def count_strong(S: Float[Tensor, " n"]) -> int:
    """Return how many left directions a half-kept basis leaves to the weight."""
    mean = S.double().square().mean().sqrt()
    return int((S > 0).logical_and(S >= WEAK * mean).sum())


STEEPEST = 1e5
"""Ratio of the largest to the smallest singular value up to which the Gram matrix is trusted: the last left directions
are then orthonormal to 1e-16 · STEEPEST² = 1e-6."""

UNCERTAIN = 1e-7
"""Error of a direction from which on the Gram matrix is not trusted where the weight itself gives it more exactly."""


def right_directions(W: Float[Tensor, "out n"]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return S and V of a square or tall weight in double precision, and U where the way there gives it.

    Single precision goes by the eigenvectors of WᵀW in double: half of the time of LAPACK's SVD in single precision,
    and exact enough for decisions that have thresholds, since squaring the spectrum costs half of the digits and double
    precision has twice as many as W. Where the spectrum is too steep for that, and in double precision, LAPACK's divide
    and conquer in double does the work, and its slower QR iteration where that does not converge. Raises InputError for
    NaN or infinite entries.
    """
    if not torch.isfinite(W).all():
        raise InputError("the weight holds NaN or infinite values; use an undamaged checkpoint")
    by_gram = _by_gram(W) if W.dtype == torch.float32 else None
    return _by_lapack(W.double()) if by_gram is None else by_gram


def _by_gram(W: Float[Tensor, "out n"]) -> tuple[Tensor, Tensor, None] | None:
    """Return S and V by way of WᵀW = V·S²·Vᵀ; None where the spectrum is too steep for that."""
    try:
        values, V = torch.linalg.eigh(lower_gram(W, torch.float64))  # eigh reads the lower triangle only
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    # eigh sorts upwards, singular values go downwards; rounding may leave the smallest eigenvalues below zero.
    S, V = values.flip(0).clamp(min=0).sqrt(), V.flip(1)
    return None if _is_too_steep(S) else (S, V, None)


def _is_too_steep(S: Float[Tensor, " n"]) -> bool:
    """Tell whether LAPACK on the weight is more exact than eigenvectors of its Gram matrix.

    A rounding of WᵀW by eps·S_1² turns neighbours by eps·S_1² / (S_i² − S_j²), one of W by eps·S_1 / (S_i − S_j): that
    is less where both are small against S_1.
    """
    if not (S[0] > 0 and S[0] <= STEEPEST * S[-1]):
        return True
    share = S / S[0]
    before, after = share[:-1], share[1:]
    turned = torch.finfo(S.dtype).eps / (before.square() - after.square()) * (before / after)
    return bool((turned.gt(UNCERTAIN) & (before + after).lt(0.1)).any())


def _left_directions(W: Float[Tensor, "out n"], S: Float[Tensor, " n"], V: Float[Tensor, "n n"]) -> Tensor:
    """Return U = W·V / S in single precision, which costs u_i an error of 1e-7·S_1 / S_i: the weak ones in double."""
    fair = int((100 * S >= S[0]).sum())
    strong, weak = W @ (V[:, :fair] / S[:fair]).to(W.dtype), weak_directions(W, S, V, fair).mT
    return torch.cat([strong, weak.to(W.dtype)], dim=1)


def weak_directions(W: Float[Tensor, "out n"], S: Tensor, V: Tensor, start: int) -> Float[Tensor, "w out"]:
    """Return the left directions from number `start` on, as rows, in double precision."""
    few = V[:, start:] / S[start:]
    return torch.cat([piece.double() @ few for piece in torch.split(W, ROWS)]).mT


def _by_lapack(W: Float[Tensor, "out n"]) -> tuple[Tensor, Tensor, Tensor]:
    try:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        from scipy.linalg import svd

        factors = svd(W.detach().cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        U, S, Vh = (torch.from_numpy(x).to(W) for x in factors)
    return S, Vh.mT, U


def spectrum_rank(S: Float[Tensor, " n"]) -> int:
    """Return the number of singular values above rounding: S_i > eps · ‖S‖, eps that of their dtype.

    ‖W − W'‖ ≤ eps · ‖W‖ for a weight that was rounded to it: what lies below has no direction of its own.
    """
    return int((S.double() > torch.finfo(S.dtype).eps * S.double().norm()).sum())


def energy_rank(S: Float[Tensor, " n"], energy: float) -> int:
    """Return the smallest k with Σ_{i≤k} S_i² ≥ energy · Σ S_i² (Eq. 3); 0 for a matrix that is all zero.

    Summed in float64. Raises SettingsError where energy is outside (0, 1].
    """
    if not 0 < energy <= 1:
        raise SettingsError(f"energy is {energy}, but a share of energy lies in (0, 1]")
    total = S.double().square().cumsum(0)
    if len(S) == 0:
        return 0
    k = torch.searchsorted(total, energy * total[-1:]) + 1
    return min(int(k.where(total[-1] != 0, 0)), len(S))
