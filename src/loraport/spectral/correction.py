"""What CASA removes from an update (Eq. 8, 14), and what is left of it, in coordinates of the weight's basis.

    T = restore·(I − P_U)·D_fft·(I − P_V) + U·M·Vᵀ

P_U and P_V project on the dominant receivers' u_i and senders' v_j (masks: `dominant_receivers`, `dominant_senders`); M
holds the single entries that arbitration removes (`entries`). T has full rank, but all that a transfer needs of it
(norms, inner products, the best factors of rank r) follows from n × n matrices, so no out × in matrix is formed:

    inside the basis:  U·C·Vᵀ with C = restore·(C_fft off the dominant mask) + M
    outside of it:     restore·(I − UUᵀ)·D_fft·(I − P_V), in tall layers only. Products with a few columns come from
                       D_fft itself; its Gram matrix is kept with the routing of the drift.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loraport.lazy_property import lazy_property
from loraport.spectral.basis import Basis
from loraport.spectral.kernels import Entries, at_least_zero, energy, inner, times_few
from loraport.spectral.krylov import leading_eigenvectors, with_random_columns
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import Routing


@dataclass(frozen=True)
class Removal:
    """T: a part of the drift, and single entries of the routing, of a square or tall layer (Eq. 8, 14)."""

    D_fft: Float[Tensor, "out n"]
    basis: Basis
    drift_routing: Routing
    """D_fft in the basis."""
    dominant_receivers: Bool[Tensor, " n"]
    """Nothing is restored in their rows."""
    dominant_senders: Bool[Tensor, " n"]
    """Nothing is restored in their columns."""
    restore: float
    entries: Entries | None = None
    """M: what arbitration removes of single routing entries."""

    @lazy_property
    def sender_weights(self) -> Float[Tensor, " n"]:
        """What I − P_V makes of each column: `restore` where a direction sends weakly, 0 where it dominates."""
        return self.restore * (~self.dominant_senders).to(self.D_fft.dtype)

    @lazy_property
    def C(self) -> Float[Tensor, "n n"]:  # noqa: N802
        """The routing matrix of T: its part inside the basis."""
        C = self.drift_routing.C * self.sender_weights
        C.masked_fill_(self.dominant_receivers[:, None], 0)
        if self.entries is not None:
            C.view(-1).index_add_(0, self.entries.indices, self.entries.values)
        return C

    @property
    def is_tall(self) -> bool:
        """Whether there is an outside."""
        return self.D_fft.shape[0] > self.D_fft.shape[1]

    @lazy_property
    def energy(self) -> float:
        """‖T‖²; outside of the basis it is restore²·Σ over weak senders of ‖D_fft·v_j‖² − ‖C_fft(:, j)‖²."""
        total = energy(self.C)
        if self.is_tall:
            total += float((self.drift_routing.outside * self.sender_weights.double().square()).sum())
        return total

    def times(self, X: Float[Tensor, "n m"], C_X: Float[Tensor, "n m"] | None = None) -> Float[Tensor, "out m"]:
        """Return T·V·X for a few columns; `C_X` is C·X, where it is known.

        U·C·X, and in a tall layer (D_fft·V − U·C_fft)·(weights ∘ X), what D_fft has outside of the basis.
        """
        C_X = times_few(self.C, X) if C_X is None else C_X
        if not (self.is_tall and self.restore):
            return self.basis.lift_left(C_X)
        weak = self.sender_weights[:, None] * X
        # Both products with U are one: U·(C·X − C_fft·weak).
        inside = self.basis.lift_left(C_X - times_few(self.drift_routing.C, weak))
        return inside.add_(times_few(self.D_fft, times_few(self.basis.Vh.mT, weak)))

    def inner(self, low: LowRank) -> float:
        """Return ⟨B·A, T⟩."""
        return inner(self.times(times_few(self.basis.Vh, low.A.mT)), low.B)

    def times_outside_gram(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """Return NᵀN·X for N = (I − UUᵀ)·T·V, the part outside of the basis."""
        gram, weights = self.drift_routing.outside_gram, self.sender_weights[:, None]
        return torch.zeros_like(X) if gram is None else weights * times_few(gram, weights * X)

    def dense(self) -> Float[Tensor, "out n"]:
        """Return T as one matrix."""
        if not self.restore:
            return self.basis.U @ self.C @ self.basis.Vh
        weak = self.D_fft @ self.basis.Vh.mT * self.sender_weights
        return weak.addmm_(self.basis.U, self.C - self.drift_routing.C * self.sender_weights) @ self.basis.Vh


@dataclass(frozen=True)
class CorrectedUpdate:
    """B·A − T: what is left of an update of low rank when something is removed from it.

    In coordinates of V it is U·Z + N, with Z = P·Qᵀ − C, P = Uᵀ·B, Q = V·Aᵀ, and N ⟂ U, which only tall layers have.
    """

    lora: LowRank
    removal: Removal
    lora_routing: LowRank
    """C_lora = P·Qᵀ in factors (Eq. 2)."""

    @property
    def P(self) -> Float[Tensor, "n r"]:  # noqa: N802
        """Uᵀ·B"""
        return self.lora_routing.B

    @property
    def Q(self) -> Float[Tensor, "n r"]:  # noqa: N802
        """V·Aᵀ, with the rows of Vh for V"""
        return self.lora_routing.A.mT

    @lazy_property
    def cross(self) -> Float[Tensor, "r n"] | None:
        """((I − UUᵀ)·B)ᵀ·T·V: how B and T overlap outside of the basis; None where nothing is there."""
        if not (self.removal.is_tall and self.removal.restore):
            return None
        drifted = times_few(self.removal.basis.Vh, times_few(self.removal.D_fft.mT, self.lora.B)).mT
        return (drifted - self.P.mT @ self.removal.drift_routing.C) * self.removal.sender_weights

    @lazy_property
    def outside_B(self) -> Float[Tensor, "r r"]:  # noqa: N802
        """B_oᵀ·B_o = BᵀB − PᵀP for B_o = (I − UUᵀ)·B, as U has orthonormal columns."""
        return self.lora.B.mT @ self.lora.B - self.P.mT @ self.P

    @lazy_property
    def overlap(self) -> float:
        """⟨B·A, T⟩"""
        inside = (self.P.double() * times_few(self.removal.C, self.Q).double()).sum()
        return float(inside if self.cross is None else inside + (self.cross.double() * self.Q.mT.double()).sum())

    @lazy_property
    def energy(self) -> float:
        """‖B·A − T‖²"""
        return at_least_zero(self.lora.norm() ** 2 - 2 * self.overlap + self.removal.energy)

    def times_gram(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "n+n m"]:
        """Return (ZᵀZ + NᵀN)·X, by products with n × n matrices alone, and below it C·X, which is made on the way.

        N = B_o·Qᵀ − T_o with B_o, T_o the parts of B and T·V outside of U, so NᵀN has four terms.
        """
        C_X, along = times_few(self.removal.C, X), self.Q.mT @ X
        Z_X = self.P @ along - C_X
        total = self.Q @ (self.P.mT @ Z_X) - times_few(self.removal.C.mT, Z_X)  # Zᵀ·(Z·X)
        if self.removal.is_tall:
            total += self.Q @ (self.outside_B @ along)
        if self.cross is not None:
            total -= self.Q @ (self.cross @ X) + self.cross.mT @ along
            total += self.removal.times_outside_gram(X)
        return torch.cat([total, C_X])

    def factorized(self, rank: int, generator: torch.Generator) -> LowRank:
        """Return the best rank-r approximation, √Σ on both sides, with the share of energy that it loses.

        Its right directions X are the leading ones of ZᵀZ + NᵀN. The search starts from the LoRA's own rows, which are
        near them, and needs no product with an out × in matrix; then comes one exact product with the update itself,
        which has orthogonal columns, as long as the singular values.
        """
        start = with_random_columns(self.Q, rank, generator=generator)
        X, C_X = leading_eigenvectors(self.times_gram, start, rank)
        removed = self.removal.times(X, C_X)
        L = self.lora.B @ (self.Q.mT @ X) - removed
        root = L.norm(dim=0).sqrt()
        lost = at_least_zero(1.0 - energy(L) / self.energy) if self.energy > 0 else 0.0
        B = L * torch.where(root > 0, 1 / root, 0)
        # ⟨B·A, T⟩ = ⟨L·(X·V)ᵀ, T⟩: no further product with T
        return LowRank(B, root[:, None] * times_few(self.removal.basis.Vh.mT, X).mT, lost, inner(removed, L))
