"""Every singular value decomposition of the program: bases of weights, low-rank factors of updates, energy, rank.

Energy always means a share of the squared Frobenius norm, ΣS². `V` is never stored: always `Vh`, as torch returns it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import InputError, SettingsError
from loraport.spectral.kernels import (
    ROWS,
    at_least_zero,
    at_usual_scale,
    energy,
    inner,
    lower_gram,
    norm,
    sum_of_pieces,
    times_few,
)

KRYLOV_STEPS = 4
"""Powers of D·Dᵀ in the Krylov space: its polynomials of degree 9 resolve more than six power iterations do."""

SETTLED = 1e-4
"""Share by which the energy of the leading directions must grow for a Lanczos iteration to go on."""

OVERSAMPLING = 16
"""Columns in the random block beyond the rank (Halko, Martinsson & Tropp 2011 advise 5 to 10)."""


@dataclass(frozen=True)
class SingularBasis:
    """The thin SVD of one weight, W = U · diag(S) · Vh with n = min(out, in) and S descending."""

    U: Float[Tensor, "out n"]
    S: Float[Tensor, " n"]
    Vh: Float[Tensor, "n in"]

    def transposed(self) -> SingularBasis:
        """The basis of Wᵀ: left and right directions change places."""
        return SingularBasis(self.Vh.mT, self.S, self.U.mT)

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the weight."""
        return self.U.shape[0], self.Vh.shape[1]

    @property
    def is_square(self) -> bool:
        """Whether neither side has a complement."""
        return self.shape[0] == self.shape[1]

    @property
    def rank(self) -> int:
        """Directions that the weight has; the others, if any, are those of its rounding and arbitrary."""
        return spectrum_rank(self.S)

    def values(self, dtype: torch.dtype) -> Float[Tensor, " n"]:
        """The singular values, as exactly as they are known."""
        return self.S.to(dtype)

    def rows(self, dtype: torch.dtype) -> Float[Tensor, "n in"]:
        """The right directions as rows, as exactly as they are known."""
        return self.Vh.to(dtype)

    def uncertainty(self, dtype: torch.dtype) -> float:
        """How far a direction, and what is computed with it in this precision, may be off: about 16 roundings."""
        return 16 * max(torch.finfo(self.S.dtype).eps, torch.finfo(dtype).eps)

    def left_rows(self, start: int) -> Float[Tensor, "w out"]:
        """The left directions from one on, as rows."""
        return self.U.mT[start:]

    def left_piece(self, rows: slice, dtype: torch.dtype) -> Float[Tensor, "rows m"]:
        """Some rows of a matrix L from which Uᵀ·X = `from_left(Lᵀ·X)` follows."""
        return self.U[rows].to(dtype)

    def from_left(self, sums: Float[Tensor, "m c"]) -> Float[Tensor, "n c"]:
        """Uᵀ·X from Lᵀ·X."""
        return sums

    def seen_left(self, X: Float[Tensor, "out m"]) -> Float[Tensor, "n m"]:
        """Uᵀ·X in the precision of X"""
        if X.dtype == self.S.dtype:
            return times_few(self.U.mT, X)
        return self.from_left(sum_of_pieces(len(X), lambda rows: self.left_piece(rows, X.dtype).mT @ X[rows]))

    def carried_left(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "out m"]:
        """U·X"""
        return times_few(self.U, X)


def spectrum_rank(S: Float[Tensor, " n"]) -> int:
    """Number of singular values above rounding: S_i > eps · ‖S‖, eps that of their dtype.

    ‖W − W'‖ ≤ eps · ‖W‖ for a weight that was rounded to it: what lies below has no direction of its own.
    """
    return int((S.double() > torch.finfo(S.dtype).eps * S.double().norm()).sum())


@dataclass(frozen=True)
class LowRank:
    """An update B·A with its whole scale (alpha / rank, strength) folded in, and the energy lost when it was made."""

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in"]
    lost_energy: float = 0.0

    @property
    def rank(self) -> int:
        """Number of columns of B; zero-padded columns count."""
        return self.B.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Float[Tensor, "out in"]:
        """The update as one matrix."""
        return self.B @ self.A

    def norm(self) -> float:
        """‖B·A‖_F, from the two Gram matrices in float64; the dense update is never formed."""
        B, A = self.B.double(), self.A.double()
        return float(((B.mT @ B) * (A @ A.mT)).sum().clamp(min=0).sqrt())

    def inner(self, other: LowRank) -> float:
        """⟨B·A, other⟩, from two small matrices in float64."""
        left, right = self.B.double().mT @ other.B.double(), self.A.double() @ other.A.double().mT
        return float((left * right).sum())

    def scaled(self, factor: float) -> LowRank:
        """The update times a number; the scale goes into B."""
        return LowRank(self.B * factor, self.A, self.lost_energy)

    def padded(self, rank: int) -> LowRank:
        """The same update with zero columns and rows up to the given rank; unchanged where it has as many."""
        missing = max(0, rank - self.rank)
        B = torch.nn.functional.pad(self.B, (0, missing))
        return LowRank(B, torch.nn.functional.pad(self.A, (0, 0, 0, missing)), self.lost_energy)

    def transposed(self) -> LowRank:
        """The update of the transposed layer."""
        return LowRank(self.A.mT, self.B.mT, self.lost_energy)


def decompose(W: Float[Tensor, "out in"]) -> SingularBasis:
    """The thin singular basis of a weight (paper §3.1).

    Equal to `numpy.linalg.svd(W, full_matrices=False)`. A full basis is never formed: what completes it is arbitrary.
    A wide weight is decomposed as its transpose. Single precision is computed in double and rounded at the end, see
    `right_directions`. Raises InputError for NaN or infinite entries. The basis has its own memory.
    """
    if W.shape[0] < W.shape[1]:
        return decompose(W.mT.contiguous()).transposed()
    S, V, U = right_directions(W)
    left = _left_directions(W, S, V) if U is None else U.to(W.dtype)
    return SingularBasis(left, S.to(W.dtype), V.mT.to(W.dtype).contiguous())


STEEPEST = 1e5
"""Ratio of the largest to the smallest singular value up to which the Gram matrix is trusted: the last left directions
are then orthonormal to 1e-16 · STEEPEST² = 1e-6."""

UNCERTAIN = 1e-7
"""Error of a direction from which on the Gram matrix is not trusted where the weight itself gives it more exactly."""


def right_directions(W: Float[Tensor, "out n"]) -> tuple[Tensor, Tensor, Tensor | None]:
    """S and V of a square or tall weight in double precision, and U where the way there gives it.

    Single precision goes by the eigenvectors of WᵀW in double: half of the time of LAPACK's SVD in single precision,
    and exact enough for decisions that have thresholds. Where the spectrum is too steep for that, and in double
    precision, LAPACK's divide and conquer in double does the work, and its slower QR iteration where that does not
    converge. Raises InputError for NaN or infinite entries.
    """
    if not torch.isfinite(W).all():
        raise InputError("the weight holds NaN or infinite values; use an undamaged checkpoint")
    found = _by_gram(W) if W.dtype == torch.float32 else None
    return _by_lapack(W.double()) if found is None else found


def _by_gram(W: Float[Tensor, "out n"]) -> tuple[Tensor, Tensor, None] | None:
    """S and V by way of WᵀW = V·S²·Vᵀ; None where the spectrum is too steep for that."""
    try:
        values, V = torch.linalg.eigh(lower_gram(W, torch.float64))  # which looks at no more
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        return None
    S, V = values.flip(0).clamp(min=0).sqrt(), V.flip(1)
    return None if _is_too_steep(S) else (S, V, None)


def _is_too_steep(S: Float[Tensor, " n"]) -> bool:
    """Whether LAPACK on the weight is better than eigenvectors of its Gram matrix.

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
    """U = W·V / S in single precision, which costs u_i an error of 1e-7·S_1 / S_i: the weak ones are made in double."""
    fair = int((100 * S >= S[0]).sum())
    strong, weak = W @ (V[:, :fair] / S[:fair]).to(W.dtype), weak_directions(W, S, V, fair).mT
    return torch.cat([strong, weak.to(W.dtype)], dim=1)


def weak_directions(W: Float[Tensor, "out n"], S: Tensor, V: Tensor, start: int) -> Float[Tensor, "w out"]:
    """The left directions from one on, as rows, in double precision."""
    few = V[:, start:] / S[start:]
    return torch.cat([piece.double() @ few for piece in torch.split(W, ROWS)]).mT


def _by_lapack(W: Float[Tensor, "out n"]) -> tuple[Tensor, Tensor, Tensor]:
    try:
        U, S, Vh = torch.linalg.svd(W, full_matrices=False)
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        from scipy.linalg import svd

        found = svd(W.detach().cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        U, S, Vh = (torch.from_numpy(x).to(W) for x in found)
    return S, Vh.mT, U


def _orthonormal_columns(X: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    Q, R = torch.linalg.qr(X)
    signs: Tensor = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    return Q * signs


def energy_rank(S: Float[Tensor, " n"], energy: float) -> int:
    """Smallest k with Σ_{i≤k} S_i² ≥ energy · Σ S_i² (Eq. 3); summed in float64. 0 for a matrix that is all zero.

    Raises SettingsError where energy is outside (0, 1].
    """
    if not 0 < energy <= 1:
        raise SettingsError(f"energy is {energy}, but a share of energy lies in (0, 1]")
    total = S.double().square().cumsum(0)
    if len(S) == 0 or total[-1] == 0:
        return 0
    k = int(torch.searchsorted(total, energy * total[-1])) + 1
    return min(k, len(S))


def factorize(D: Float[Tensor, "out in"], rank: int, *, generator: torch.Generator) -> LowRank:
    """The best rank-r approximation of an update, √Σ on both sides, with the share of energy that it loses.

    As exact as `leading_basis`; the generator is the only source of randomness.
    """
    if rank < 1:
        raise SettingsError(f"rank is {rank}, but a low-rank update has at least rank 1")
    if not at_usual_scale(D):  # squares would vanish or overflow: the same at the scale of one, by even powers of two
        half = int(torch.frexp(D.abs().max()).exponent) // 2
        low = factorize(torch.ldexp(D, torch.tensor(-2 * half)), rank, generator=generator)
        return LowRank(torch.ldexp(low.B, torch.tensor(half)), torch.ldexp(low.A, torch.tensor(half)), low.lost_energy)
    return _truncate(D, leading_basis(D, rank, generator=generator), min(rank, *D.shape))


def leading_basis(D: Float[Tensor, "out in"], rank: int, *, generator: torch.Generator) -> SingularBasis:
    """A singular basis whose first `rank` directions are the leading ones of D.

    Exact where the Krylov space would span half of the matrix or more; else randomised block Krylov iteration (Musco &
    Musco 2015): one block of rank + 16 random columns and its 4 successors under D·Dᵀ, then an exact SVD inside that
    space. The generator is the only source of randomness; it lives on the CPU, so that every device draws the same.
    """
    if is_small(D.shape, rank):
        return decompose(D)
    Q = _krylov_space(D, rank + OVERSAMPLING, generator)
    small = decompose(Q.mT @ D)
    return SingularBasis(Q @ small.U, small.S, small.Vh)


def krylov_directions(
    gram: Callable[[Float[Tensor, "n m"]], Float[Tensor, "n m"]],
    start: Float[Tensor, "n r"],
    rank: int,
    *,
    generator: torch.Generator,
) -> Float[Tensor, "n k"]:
    """The leading eigenvectors of a symmetric operator, by block Lanczos iteration from known and random columns.

    `gram` is DᵀD for the matrix whose right singular directions are wanted; what is known to be in it (`start`) saves
    steps. The random columns make up a block of rank + 16. Each block is made orthogonal to all earlier ones, twice:
    what one of them has converged to comes back as noise otherwise.
    """
    fresh = max(OVERSAMPLING, rank + OVERSAMPLING - start.shape[1])
    drawn = torch.randn(len(start), fresh, generator=generator, dtype=start.dtype).to(start.device)
    Q = _orthonormal_columns(torch.cat([start, drawn], dim=1))
    images = gram(Q)
    found, vectors = _leading(Q.mT @ images, rank)
    for _ in range(KRYLOV_STEPS):
        before, block = found, images[:, -(start.shape[1] + fresh) :]
        for _ in range(2):
            block = _orthonormal_columns(block - Q @ (Q.mT @ block))
        Q, images = torch.cat([Q, block], dim=1), torch.cat([images, gram(block)], dim=1)
        found, vectors = _leading(Q.mT @ images, rank)
        if found - before <= SETTLED * found:
            break
    return Q @ vectors.to(Q.dtype)


def _leading(small: Float[Tensor, "m m"], rank: int) -> tuple[float, Tensor]:
    """The sum of the leading eigenvalues of a symmetric matrix, and their vectors, in double precision."""
    values, vectors = torch.linalg.eigh((small + small.mT).double() / 2)
    return float(values[-rank:].sum()), vectors[:, -rank:].flip(1)


def is_small(shape: tuple[int, ...], rank: int) -> bool:
    """Whether a Krylov space would span half of the matrix or more, so that an exact SVD costs no more."""
    return (KRYLOV_STEPS + 1) * (rank + OVERSAMPLING) >= min(shape) // 2


def shortened(low: LowRank, rank: int) -> LowRank:
    """The best approximation of B·A at a lower rank, √Σ on both sides, with the share of energy that it loses.

    Exact and cheap: Q·R of both factors and an SVD of the small matrix between them; B·A is never formed.
    """
    Q_B, R_B = torch.linalg.qr(low.B)
    Q_A, R_A = torch.linalg.qr(low.A.mT)
    small = decompose(R_B @ R_A.mT)
    short = _truncate(R_B @ R_A.mT, small, min(rank, len(small.S)))
    return LowRank(Q_B @ short.B, short.A @ Q_A.mT, short.lost_energy)


def factorize_energy(D: Float[Tensor, "out in"], share: float) -> LowRank:
    """The approximation of smallest rank that keeps the given share of energy, by an exact SVD."""
    basis = decompose(D)
    return _truncate(D, basis, max(1, energy_rank(basis.S, share)))


def _krylov_space(D: Float[Tensor, "out in"], block: int, generator: torch.Generator) -> Float[Tensor, "out m"]:
    start = torch.randn(D.shape[1], block, generator=generator, dtype=D.dtype).to(D.device)
    blocks = [_orthonormal_columns(D @ start)]
    for _ in range(KRYLOV_STEPS):
        blocks.append(_orthonormal_columns(D @ (D.mT @ blocks[-1])))
    return _orthonormal_columns(torch.cat(blocks, dim=1))


def _truncate(D: Float[Tensor, "out in"], basis: SingularBasis, rank: int) -> LowRank:
    root = basis.S[:rank].sqrt()
    total = energy(D)
    kept = float(basis.S[:rank].double().square().sum())
    lost = at_least_zero(1.0 - kept / total) if total > 0 else 0.0
    return LowRank((basis.U[:, :rank] * root).contiguous(), (root[:, None] * basis.Vh[:rank]).contiguous(), lost)


def kept_correction(low: LowRank, source: LowRank, correction: Float[Tensor, "out in"]) -> float | None:
    """Share of the correction that survives truncation: ⟨D_r − D_lora, E⟩ / ‖E‖² with E = D' − D_lora.

    Kept energy flatters: what truncation throws away is mostly the correction. None where there is no correction, or
    one that is lost in the rounding of the factors (see `is_lost`).
    """
    size = energy(correction)
    if is_lost(size, source.norm() ** 2):
        return None
    return (_inner(low, correction) - _inner(source, correction)) / size


def is_lost(correction: float, lora: float) -> bool:
    """Whether a correction of this energy cannot be told from the rounding of factors of that energy.

    Their products are exact to eps·‖D_lora‖, so a share of the correction to eps·‖D_lora‖ / ‖E‖: up to a hundredth.
    """
    return correction <= (100 * torch.finfo(torch.float32).eps) ** 2 * lora


def cosine(low: LowRank, D: LowRank | Float[Tensor, "out in"]) -> float | None:
    """⟨B·A, D⟩ / (‖B·A‖·‖D‖), D in factors or dense; None where one of them is zero."""
    if isinstance(D, LowRank):
        inner, size = low.inner(D), low.norm() * D.norm()
    else:
        inner, size = _inner(low, D), low.norm() * norm(D)
    return inner / size if size else None


def _inner(low: LowRank, D: Float[Tensor, "out in"]) -> float:
    """⟨B·A, D⟩ without the dense product."""
    seen = sum_of_pieces(len(D), lambda rows: low.B[rows].double().mT @ D[rows].double())
    return inner(seen, low.A.double())
