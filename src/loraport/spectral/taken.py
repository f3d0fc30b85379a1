"""What CASA takes from an update (Eq. 8, 14), in coordinates of the basis: measured and truncated, never dense.

    T·Vᵀ = restore·(I − P_U)·D·(I − P_V) + U·struck·Vᵀ

P_U and P_V project on the dominant receivers' u_i and senders' v_j. Inside the basis that is the n × n matrix
restore·(C off the dominant mask) + struck; outside (tall layers) it is restore·(I − UUᵀ)·D·(I − P_V), of which only
products with a few columns are ever needed, and those D gives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loraport.spectral.routing import Routing
from loraport.spectral.svd import LowRank, SingularBasis, krylov_directions


@dataclass(frozen=True)
class Taken:
    """A part of the drift and single entries of the routing, of a square or tall layer (Eq. 8, 14)."""

    D: Float[Tensor, "out n"]
    basis: SingularBasis
    drift: Routing
    """D in the basis."""
    receivers: Bool[Tensor, " n"]
    senders: Bool[Tensor, " n"]
    restore: float
    struck: Float[Tensor, "n n"] | None = None
    """What arbitration takes of each routing entry; None where it takes nothing."""

    @cached_property
    def kept_senders(self) -> Float[Tensor, " n"]:
        """restore where a direction sends weakly, 0 where it dominates."""
        return self.restore * (~self.senders).to(self.D.dtype)

    @cached_property
    def inside(self) -> Float[Tensor, "n n"]:
        """The part inside the basis, as a routing matrix."""
        found = self.drift.C * self.kept_senders
        found[self.receivers] = 0
        return found if self.struck is None else found.add_(self.struck)

    @property
    def is_tall(self) -> bool:
        """Whether there is an outside."""
        return self.D.shape[0] > self.D.shape[1]

    @cached_property
    def energy(self) -> float:
        """‖T‖²; outside of the basis it is restore²·Σ over weak senders of ‖D·v_j‖² − ‖C(:, j)‖²."""
        flat = self.inside.flatten()
        total = float(torch.dot(flat, flat))
        if self.is_tall:
            total += float((self.drift.outside * self.kept_senders.double().square()).sum())
        return total

    def times(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "out m"]:
        """T·X for a few columns in the coordinates of V: D·V·(weak ∘ X) + U·(struck·X − P_U·C·(weak ∘ X))."""
        weak = self.kept_senders[:, None] * X
        found = torch.zeros_like(X) if self.struck is None else self.struck @ X
        if not self.restore:
            return self.basis.carried_left(found)
        found = found - self.receivers[:, None] * (self.drift.C @ weak)
        return self.basis.carried_left(found).addmm_(self.D, self.basis.Vh.mT @ weak)

    def outside_gram(self, X: Float[Tensor, "n m"]) -> Float[Tensor, "n m"]:
        """N·X with N the Gram matrix of what lies outside the basis: weak ∘ (Vᵀ·Dᵀ·D·V − Cᵀ·C)·(weak ∘ X)."""
        weak = self.kept_senders[:, None] * X
        through = self.basis.Vh @ (self.D.mT @ (self.D @ (self.basis.Vh.mT @ weak)))
        return self.kept_senders[:, None] * (through - self.drift.C.mT @ (self.drift.C @ weak))

    def inner(self, low: LowRank) -> float:
        """⟨T·Vᵀ, B·A⟩"""
        return float((low.B.double() * self.times(self.basis.Vh @ low.A.mT).double()).sum())

    def dense(self) -> Float[Tensor, "out n"]:
        """T·Vᵀ as one matrix."""
        found = torch.zeros_like(self.drift.C) if self.struck is None else self.struck.clone()
        if not self.restore:
            return self.basis.U @ found @ self.basis.Vh
        found -= self.receivers[:, None] * (self.drift.C * self.kept_senders)
        weak = self.D @ self.basis.Vh.mT * self.kept_senders
        return weak.addmm_(self.basis.U, found) @ self.basis.Vh


def factorize_less(lora: LowRank, taken: Taken, rank: int, energy: float, generator: torch.Generator) -> LowRank:
    """The best rank-r approximation of B·A − T·Vᵀ, √Σ on both sides, with the share of energy that it loses.

    `energy` is that of the update. In the coordinates of V it is U·Z + N, Z = C_lora − inside and N ⟂ U, so its right
    directions are those of ZᵀZ + NᵀN: products with n × n matrices, and in tall layers with D. They are found from the
    LoRA's rows and random ones; then comes one exact product with the update itself.
    """
    P, Q = taken.basis.seen_left(lora.B), taken.basis.Vh @ lora.A.mT
    Z = torch.addmm(taken.inside, P, Q.mT, beta=-1)
    outside = _outside(lora, taken, P, Q) if taken.is_tall and taken.restore else None

    def gram(X: Tensor) -> Tensor:
        seen = Z.mT @ (Z @ X)
        return seen if outside is None else seen + outside(X)

    X = krylov_directions(gram, Q, rank, generator=generator)
    L = lora.B @ (Q.mT @ X) - taken.times(X)
    values, W = torch.linalg.eigh((L.mT @ L).double())
    W = W.flip(1)[:, :rank].to(L.dtype)
    root = values.flip(0)[:rank].clamp(min=0).to(L.dtype).sqrt().sqrt()
    scale = torch.where(root > 0, 1 / root, 0)
    kept = float(values.flip(0)[:rank].clamp(min=0).sum())
    lost = max(0.0, 1.0 - kept / energy) if energy > 0 else 0.0
    return LowRank((L @ W) * scale, root[:, None] * ((X @ W).mT @ taken.basis.Vh), lost)


def _outside(lora: LowRank, taken: Taken, P: Tensor, Q: Tensor) -> Callable[[Tensor], Tensor]:
    """X ↦ NᵀN·X for N = (B − U·P)·Qᵀ − (I − UUᵀ)·T, what the update has outside of the basis."""
    own = lora.B.mT @ lora.B - P.mT @ P
    cross = ((lora.B.mT @ taken.D) @ taken.basis.Vh.mT - P.mT @ taken.drift.C) * taken.kept_senders

    def gram(X: Tensor) -> Tensor:
        seen = Q.mT @ X
        return Q @ (own @ seen - cross @ X) - cross.mT @ seen + taken.outside_gram(X)

    return gram
