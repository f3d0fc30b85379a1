"""What CASA takes from an update (Eq. 8, 14), in coordinates of the basis: measured and truncated, never dense.

    T·Vᵀ = restore·(I − P_U)·D·(I − P_V) + U·struck·Vᵀ

P_U and P_V project on the dominant receivers' u_i and senders' v_j. Inside the basis that is the n × n matrix
restore·(C off the dominant mask) + struck; outside (tall layers) it is restore·(I − UUᵀ)·D·(I − P_V), of which products
with a few columns are needed, which D gives, and its Gram matrix, which is kept with the routing.
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
class Taken:
    """A part of the drift and single entries of the routing, of a square or tall layer (Eq. 8, 14)."""

    D: Float[Tensor, "out n"]
    basis: Basis
    drift: Routing
    """D in the basis."""
    receivers: Bool[Tensor, " n"]
    senders: Bool[Tensor, " n"]
    restore: float
    struck: Entries | None = None
    """What arbitration takes of single routing entries."""

    @lazy_property
    def kept_senders(self) -> Float[Tensor, " n"]:
        """restore where a direction sends weakly, 0 where it dominates."""
        return self.restore * (~self.senders).to(self.D.dtype)

    @lazy_property
    def inside(self) -> Float[Tensor, "n n"]:
        """The part inside the basis, as a routing matrix."""
        found = self.drift.C * self.kept_senders
        found[self.receivers] = 0
        if self.struck is not None:
            found.view(-1).index_add_(0, self.struck.places, self.struck.values)
        return found

    @property
    def is_tall(self) -> bool:
        """Whether there is an outside."""
        return self.D.shape[0] > self.D.shape[1]

    @lazy_property
    def energy(self) -> float:
        """‖T‖²; outside of the basis it is restore²·Σ over weak senders of ‖D·v_j‖² − ‖C(:, j)‖²."""
        total = energy(self.inside)
        if self.is_tall:
            total += float((self.drift.outside * self.kept_senders.double().square()).sum())
        return total

    def times(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "out m"]:
        """T·X for a few columns in the coordinates of V: U·inside·X + (D·V − U·C)·(weak ∘ X).

        The second part is what D has outside of the basis, and in a square layer what rounding of the basis hides.
        """
        if not self.restore:
            return self.basis.lift_left(self.inside @ X)
        weak = self.kept_senders[:, None] * X
        inside = (self.inside @ X).addmm_(self.drift.C, weak, alpha=-1)
        return self.basis.lift_left(inside).add_(times_few(self.D, times_few(self.basis.Vh.mT, weak)))

    def inner(self, low: LowRank) -> float:
        """⟨B·A, T·Vᵀ⟩"""
        return inner(self.times(times_few(self.basis.Vh, low.A.mT)), low.B)

    def outside_gram(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """What lies outside the basis, its Gram matrix times X."""
        outside, weak = self.drift.outside_gram, self.kept_senders[:, None]
        return torch.zeros_like(X) if outside is None else weak * (outside @ (weak * X))

    def dense(self) -> Float[Tensor, "out n"]:
        """T·Vᵀ as one matrix."""
        if not self.restore:
            return self.basis.U @ self.inside @ self.basis.Vh
        weak = self.D @ self.basis.Vh.mT * self.kept_senders
        return weak.addmm_(self.basis.U, self.inside - self.drift.C * self.kept_senders) @ self.basis.Vh


@dataclass(frozen=True)
class Remaining:
    """B·A − T·Vᵀ: what is left of an update of low rank after something was taken, in coordinates of V.

    It is U·Z + N with Z = P·Qᵀ − inside, P = Uᵀ·B and Q = V·Aᵀ, and N ⟂ U, which only tall layers have.
    """

    lora: LowRank
    taken: Taken
    seen: LowRank
    """The LoRA's routing in factors (Eq. 2)."""

    @property
    def P(self) -> Float[Tensor, "n r"]:  # noqa: N802
        """Uᵀ·B"""
        return self.seen.B

    @property
    def Q(self) -> Float[Tensor, "n r"]:  # noqa: N802
        """V·Aᵀ, with the rows of Vh for V"""
        return self.seen.A.mT

    @lazy_property
    def cross(self) -> Float[Tensor, "r n"] | None:
        """((I − UUᵀ)·B)ᵀ·T: how the two overlap outside of the basis; None where nothing is there."""
        if not (self.taken.is_tall and self.taken.restore):
            return None
        drifted = times_few(self.taken.basis.Vh, times_few(self.taken.D.mT, self.lora.B)).mT
        return (drifted - self.P.mT @ self.taken.drift.C) * self.taken.kept_senders

    @lazy_property
    def overlap(self) -> float:
        """⟨B·A, T·Vᵀ⟩"""
        found = (self.P.double() * (self.taken.inside @ self.Q).double()).sum()
        return float(found if self.cross is None else found + (self.cross.double() * self.Q.mT.double()).sum())

    @lazy_property
    def energy(self) -> float:
        """‖B·A − T·Vᵀ‖²"""
        return at_least_zero(self.lora.norm() ** 2 - 2 * self.overlap + self.taken.energy)

    def gram(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """(ZᵀZ + NᵀN)·X: products with n × n matrices alone."""
        seen = (self.P @ (self.Q.mT @ X)).addmm_(self.taken.inside, X, alpha=-1)
        found = (self.Q @ (self.P.mT @ seen)).sub_(times_few(self.taken.inside.mT, seen))
        if not self.taken.is_tall:
            return found
        outside, seen = self.lora.B.mT @ self.lora.B - self.P.mT @ self.P, self.Q.mT @ X
        found += self.Q @ (outside @ seen)
        if self.cross is None:
            return found
        return found.sub_(self.Q @ (self.cross @ X) + self.cross.mT @ seen).add_(self.taken.outside_gram(X))

    def factorized(self, rank: int, generator: torch.Generator) -> LowRank:
        """The best rank-r approximation, √Σ on both sides, with the share of energy that it loses.

        Its right directions are the leading ones of ZᵀZ + NᵀN, found from the LoRA's rows and random ones; then comes
        one exact product with the update itself.
        """
        X = leading_eigenvectors(self.gram, with_random_columns(self.Q, rank, generator=generator), rank)
        L = self.lora.B @ (self.Q.mT @ X) - self.taken.times(X)
        values, W = torch.linalg.eigh((L.mT @ L).double())
        W = W.flip(1)[:, :rank].to(L.dtype)
        root = values.flip(0)[:rank].clamp(min=0).to(L.dtype).sqrt().sqrt()
        scale = torch.where(root > 0, 1 / root, 0)
        kept = float(values.flip(0)[:rank].clamp(min=0).sum())
        lost = at_least_zero(1.0 - kept / self.energy) if self.energy > 0 else 0.0
        return LowRank((L @ W) * scale, root[:, None] * ((X @ W).mT @ self.taken.basis.Vh), lost)
