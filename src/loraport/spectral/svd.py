"""Every singular value decomposition of the program: bases of weights, low-rank factors of updates, energy, rank.

Energy always means a share of the squared Frobenius norm, ΣS². `V` is never stored: always `Vh`, as torch returns it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import InputError, SettingsError

KRYLOV_STEPS = 4
"""Powers of D·Dᵀ in the Krylov space: its polynomials of degree 9 resolve more than six power iterations do."""

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
    A wide weight is decomposed as its transpose, which LAPACK does four times faster; where its divide and conquer does
    not converge, its slower QR iteration does the work. Raises InputError for NaN or infinite entries.
    """
    if W.shape[0] < W.shape[1]:
        return decompose(W.mT.contiguous()).transposed()
    if not torch.isfinite(W).all():
        raise InputError("the weight holds NaN or infinite values; use an undamaged checkpoint")
    try:
        return SingularBasis(*torch.linalg.svd(W, full_matrices=False))
    except torch.linalg.LinAlgError:  # type: ignore[attr-defined]
        from scipy.linalg import svd

        U, S, Vh = svd(W.detach().cpu().numpy(), full_matrices=False, lapack_driver="gesvd")
        return SingularBasis(*(torch.from_numpy(x).to(W) for x in (U, S, Vh)))


def orthonormal(basis: SingularBasis) -> SingularBasis:
    """The basis with its directions made orthonormal again, after storage in 16 bits.

    One Newton–Schulz step towards the nearest orthonormal frame, X·(3·I − XᵀX) / 2 for each factor: all directions
    share the correction, where Q·R leaves the first one alone and lets the last ones pay. A departure ε shrinks to
    3/4·ε²: from float16's 8e-4 to single precision. At 1536×1536 it takes half of the time of Q·R, and C moves by
    2.1e-4, not 2.9e-4.
    """
    return SingularBasis(_straightened(basis.U), basis.S, _straightened(basis.Vh.mT).mT)


def _straightened(X: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    correction = (X.mT @ X).mul_(-0.5)
    correction.diagonal().add_(1.5)
    return X @ correction


def _orthonormal_columns(X: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    Q, R = torch.linalg.qr(X)
    signs: Tensor = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    return Q * signs


def energy_rank(S: Float[Tensor, " n"], energy: float) -> int:
    """Smallest k with Σ_{i≤k} S_i² ≥ energy · Σ S_i² (Eq. 3); summed in float64.

    Raises SettingsError where energy is outside (0, 1].
    """
    if not 0 < energy <= 1:
        raise SettingsError(f"energy is {energy}, but a share of energy lies in (0, 1]")
    total = S.double().square().cumsum(0)
    k = int(torch.searchsorted(total, energy * total[-1])) + 1
    return min(k, len(S))


def factorize(D: Float[Tensor, "out in"], rank: int, *, generator: torch.Generator) -> LowRank:
    """The best rank-r approximation of an update, √Σ on both sides, with the share of energy that it loses.

    As exact as `leading_basis`; the generator is the only source of randomness.
    """
    if rank < 1:
        raise SettingsError(f"rank is {rank}, but a low-rank update has at least rank 1")
    return _truncate(D, leading_basis(D, rank, generator=generator), min(rank, *D.shape))


def leading_basis(D: Float[Tensor, "out in"], rank: int, *, generator: torch.Generator) -> SingularBasis:
    """A singular basis whose first `rank` directions are the leading ones of D.

    Exact where the Krylov space would span half of the matrix or more; else randomised block Krylov iteration (Musco &
    Musco 2015): one block of rank + 16 random columns and its 4 successors under D·Dᵀ, then an exact SVD inside that
    space. The generator is the only source of randomness; it lives on the CPU, so that every device draws the same.
    """
    if (KRYLOV_STEPS + 1) * (rank + OVERSAMPLING) >= min(D.shape) // 2:
        return decompose(D)
    Q = _krylov_space(D, rank + OVERSAMPLING, generator)
    small = decompose(Q.mT @ D)
    return SingularBasis(Q @ small.U, small.S, small.Vh)


def shortened(low: LowRank, rank: int) -> LowRank:
    """The best approximation of B·A at a lower rank, √Σ on both sides, with the share of energy that it loses.

    Exact and cheap: Q·R of both factors and an SVD of the small matrix between them; B·A is never formed.
    """
    Q_B, R_B = torch.linalg.qr(low.B)
    Q_A, R_A = torch.linalg.qr(low.A.mT)
    small = decompose(R_B @ R_A.mT)
    short = _truncate(R_B @ R_A.mT, small, min(rank, len(small.S)))
    return LowRank(Q_B @ short.B, short.A @ Q_A.mT, short.lost_energy)


def factorize_energy(D: Float[Tensor, "out in"], energy: float) -> LowRank:
    """The approximation of smallest rank that keeps the given share of energy, by an exact SVD."""
    basis = decompose(D)
    return _truncate(D, basis, energy_rank(basis.S, energy))


def _krylov_space(D: Float[Tensor, "out in"], block: int, generator: torch.Generator) -> Float[Tensor, "out m"]:
    start = torch.randn(D.shape[1], block, generator=generator, dtype=D.dtype).to(D.device)
    blocks = [_orthonormal_columns(D @ start)]
    for _ in range(KRYLOV_STEPS):
        blocks.append(_orthonormal_columns(D @ (D.mT @ blocks[-1])))
    return _orthonormal_columns(torch.cat(blocks, dim=1))


def _truncate(D: Float[Tensor, "out in"], basis: SingularBasis, rank: int) -> LowRank:
    root = basis.S[:rank].sqrt()
    total = float(D.double().square().sum()) if D.numel() else 0.0
    kept = float(basis.S[:rank].double().square().sum())
    lost = max(0.0, 1.0 - kept / total) if total > 0 else 0.0
    return LowRank((basis.U[:, :rank] * root).contiguous(), (root[:, None] * basis.Vh[:rank]).contiguous(), lost)


def kept_correction(low: LowRank, source: LowRank, correction: Float[Tensor, "out in"]) -> float | None:
    """Share of the correction that survives truncation: ⟨D_r − D_lora, E⟩ / ‖E‖² with E = D' − D_lora.

    Kept energy flatters: what truncation throws away is mostly the correction. None where there is no correction.
    """
    size = float(correction.double().square().sum())
    if size == 0:
        return None
    return (_inner(low, correction) - _inner(source, correction)) / size


def cosine(low: LowRank, D: LowRank | Float[Tensor, "out in"]) -> float | None:
    """⟨B·A, D⟩ / (‖B·A‖·‖D‖), D in factors or dense; None where one of them is zero."""
    if isinstance(D, LowRank):
        inner = float(((low.B.mT @ D.B).double() * (low.A @ D.A.mT).double()).sum())
        size = low.norm() * D.norm()
    else:
        inner, size = _inner(low, D), low.norm() * float(torch.linalg.vector_norm(D))
    return inner / size if size else None


def _inner(low: LowRank, D: Float[Tensor, "out in"]) -> float:
    """⟨B·A, D⟩ without the dense product."""
    return float(((low.B.mT @ D).double() * low.A.double()).sum())
