"""Updates of low rank B·A: their sizes and products without the dense matrix, and the best ones of a given rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import SettingsError
from loraport.lazy_property import lazy_property
from loraport.spectral.basis import SingularBasis, decompose, energy_rank
from loraport.spectral.kernels import at_least_zero, at_usual_scale, energy, inner, norm, sum_of_pieces
from loraport.spectral.krylov import leading_basis


@dataclass(frozen=True)
class LowRank:
    """An update B·A with its whole scale (alpha / rank, strength) folded in, and the energy lost when it was made."""

    B: Float[Tensor, "out r"]
    A: Float[Tensor, "r in"]
    lost_energy: float = 0.0
    removed: float | None = None
    """⟨B·A, T⟩ where these are the factors of an update that T was removed from, and who made them has it."""

    @property
    def rank(self) -> int:
        """Number of columns of B; zero-padded columns count."""
        return self.B.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.B.shape[0], self.A.shape[1]

    def dense(self) -> Float[Tensor, "out in"]:
        """Return the update as one matrix."""
        return self.B @ self.A

    def norm(self) -> float:
        """Return ‖B·A‖_F, from the two Gram matrices in float64; the dense update is never formed."""
        return self._norm

    @lazy_property
    def _norm(self) -> float:
        B, A = self.B.double(), self.A.double()
        return float(((B.mT @ B) * (A @ A.mT)).sum().clamp(min=0).sqrt())

    @property
    def column_norms(self) -> Float[Tensor, " in"]:
        """‖B·a_j‖ of each column, from Bᵀ·B; the dense update is never formed."""
        return (self.A * ((self.B.mT @ self.B) @ self.A)).sum(dim=0).clamp(min=0).sqrt()

    def inner(self, other: LowRank) -> float:
        """Return ⟨B·A, other⟩, from two small matrices in float64."""
        left, right = self.B.double().mT @ other.B.double(), self.A.double() @ other.A.double().mT
        return float((left * right).sum())

    def scaled(self, factor: float) -> LowRank:
        """Return the update times a number; the scale goes into B."""
        return LowRank(self.B * factor, self.A, self.lost_energy)

    def padded(self, rank: int) -> LowRank:
        """Return the same update with zero columns and rows up to the given rank; unchanged where it has as many."""
        missing = max(0, rank - self.rank)
        B = torch.nn.functional.pad(self.B, (0, missing))
        return LowRank(B, torch.nn.functional.pad(self.A, (0, 0, 0, missing)), self.lost_energy)

    def transposed(self) -> LowRank:
        """Return the update of the transposed layer."""
        return LowRank(self.A.mT, self.B.mT, self.lost_energy, self.removed)


def factorize(D: Float[Tensor, "out in"], rank: int, *, generator: torch.Generator) -> LowRank:
    """Return the best rank-r approximation of an update, √Σ on both sides, with the share of energy that it loses.

    As exact as `leading_basis`; the generator is the only source of randomness. Raises InputError for NaN or infinite
    entries.
    """
    if rank < 1:
        raise SettingsError(f"rank is {rank}, but a low-rank update has at least rank 1")
    if not at_usual_scale(D) and torch.isfinite(D).all():
        # Squares would vanish or overflow: the same at the scale of one, by even powers of two, which round nothing.
        half = int(torch.frexp(D.abs().max()).exponent) // 2
        low = factorize(torch.ldexp(D, torch.tensor(-2 * half)), rank, generator=generator)
        return LowRank(torch.ldexp(low.B, torch.tensor(half)), torch.ldexp(low.A, torch.tensor(half)), low.lost_energy)
    return _truncated(D, leading_basis(D, rank, generator=generator), min(rank, *D.shape))


def factorize_energy(D: Float[Tensor, "out in"], share: float) -> LowRank:
    """Return the approximation of smallest rank that keeps the given share of energy, by an exact SVD."""
    basis = decompose(D)
    return _truncated(D, basis, max(1, energy_rank(basis.S, share)))


def truncate(low: LowRank, rank: int) -> LowRank:
    """Return the best approximation of B·A at a lower rank, √Σ on both sides, with the share of energy that it loses.

    Exact and cheap: Q·R of both factors and an SVD of the small matrix between them; B·A is never formed.
    """
    Q_B, R_B = torch.linalg.qr(low.B)
    Q_A, R_A = torch.linalg.qr(low.A.mT)
    small = decompose(R_B @ R_A.mT)
    short = _truncated(R_B @ R_A.mT, small, min(rank, len(small.S)))
    return LowRank(Q_B @ short.B, short.A @ Q_A.mT, short.lost_energy)


def _truncated(D: Float[Tensor, "out in"], basis: SingularBasis, rank: int) -> LowRank:
    root = basis.S[:rank].sqrt()
    total = energy(D)
    kept = float(basis.S[:rank].double().square().sum())
    lost = at_least_zero(1.0 - kept / total) if total > 0 else 0.0
    return LowRank((basis.U[:, :rank] * root).contiguous(), (root[:, None] * basis.Vh[:rank]).contiguous(), lost)


def kept_correction(low: LowRank, source: LowRank, correction: Float[Tensor, "out in"]) -> float | None:
    """Return the share of the correction that survives truncation: ⟨D_r − D_lora, E⟩ / ‖E‖² with E = D' − D_lora.

    Kept energy flatters: what truncation throws away is mostly the correction. None where there is no correction, or
    one that is lost in the rounding of the factors (see `is_lost`).
    """
    size = energy(correction)
    if is_lost(size, source.norm() ** 2):
        return None
    return (inner_with(low, correction) - inner_with(source, correction)) / size


def is_lost(correction: float, lora: float) -> bool:
    """Tell whether a correction of this energy cannot be told from the rounding of factors of that energy.

    Their products are exact to eps·‖D_lora‖, so a share of the correction to eps·‖D_lora‖ / ‖E‖: up to a hundredth.
    """
    return correction <= (100 * torch.finfo(torch.float32).eps) ** 2 * lora


def cosine(low: LowRank, D: LowRank | Float[Tensor, "out in"]) -> float | None:
    """Return ⟨B·A, D⟩ / (‖B·A‖·‖D‖), D in factors or dense; None where one of them is zero."""
    if isinstance(D, LowRank):
        product, size = low.inner(D), low.norm() * D.norm()
    else:
        product, size = inner_with(low, D), low.norm() * norm(D)
    return product / size if size else None


def inner_with(low: LowRank, D: Float[Tensor, "out in"]) -> float:
    """Return ⟨B·A, D⟩ without the dense product: ⟨Bᵀ·D, A⟩."""
    projected = sum_of_pieces(D, lambda rows: low.B[rows].double().mT @ D[rows].double())
    return inner(projected, low.A.double())
