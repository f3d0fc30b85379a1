"""What every recipe takes and gives: one layer, and its new update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import SettingsError
from loraport.spectral.routing import Routing, observe
from loraport.spectral.svd import LowRank, SingularBasis


@dataclass(frozen=True)
class Layer:
    """One weight matrix before and after distillation, and the LoRA's update of it.

    `drift` is D_fft = W_t − W_s from the original weights; `basis` and `target` are the thin singular bases of W_s and
    W_t, or None for the recipes that do not look at them. `seen` is the drift in the source's basis where somebody has
    it already, since it is the same for every LoRA: that of the layer, or of its transpose where it is wide.
    """

    lora: LowRank
    drift: Float[Tensor, "out in"]
    basis: SingularBasis | None = None
    target: SingularBasis | None = None
    seen: Routing | None = None

    @property
    def is_wide(self) -> bool:
        """Whether there are more inputs than outputs: such a layer is looked at as its transpose."""
        return self.drift.shape[0] < self.drift.shape[1]

    def transposed(self) -> Layer:
        """The layer as it would be with inputs and outputs exchanged."""
        basis, target = (one.transposed() if one else None for one in (self.basis, self.target))
        return Layer(self.lora.transposed(), self.drift.mT, basis, target, self.seen)

    def routing(self) -> Routing:
        """The drift in the source's basis (Eq. 2), of the transposed layer where it is wide.

        Raises SettingsError where the basis is missing.
        """
        if self.seen is not None:
            return self.seen
        if self.basis is None:
            raise SettingsError(
                "CASA needs the singular basis of the source weight; pass decompose(W_s) as Layer.basis"
            )
        return observe(self.drift.mT, self.basis.transposed()) if self.is_wide else observe(self.drift, self.basis)


@dataclass(frozen=True)
class Update:
    """A transferred update D' = B·A + correction. Without a correction it is of low rank and exact.

    `facts` may hold k, clusters, largest_cluster, arbitrated (CASA), k_target, overlap, overlap_random (projections)
    and amount (what a matched control or core undo found).
    """

    low_rank: LowRank
    correction: Float[Tensor, "out in"] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    """Why the method gives this layer no adapter; None where it gives one."""

    @classmethod
    def none(cls, lora: LowRank, reason: str, facts: Mapping[str, Any]) -> Update:
        """No adapter for this layer: an update of rank 0, and why."""
        return cls(LowRank(lora.B[:, :0], lora.A[:0]), None, facts, reason)

    @property
    def is_low_rank(self) -> bool:
        """Whether nothing but B·A is there: no correction, or one that is zero in every entry."""
        return self.correction is None or not bool(self.correction.any())

    def dense(self) -> Float[Tensor, "out in"]:
        """D' as one matrix."""
        if self.correction is None:
            return self.low_rank.dense()
        return torch.addmm(self.correction, self.low_rank.B, self.low_rank.A)

    def norm(self) -> float:
        """‖D'‖_F; a low-rank update is not multiplied out for it."""
        return self.low_rank.norm() if self.correction is None else float(torch.linalg.vector_norm(self.dense()))

    def transposed(self) -> Update:
        """The update of the transposed layer."""
        correction = None if self.correction is None else self.correction.mT
        return Update(self.low_rank.transposed(), correction, self.facts, self.reason)


@dataclass(frozen=True)
class Parts:
    """An update in two: what is left of the LoRA, and what is taken back of the drift. Their sum is the whole."""

    adapter: Update
    """A restriction of the LoRA: zero for a zero LoRA, the LoRA itself where there is no drift."""
    counter_drift: Update
    """Minus a restriction of the drift: zero where there is none, all of the update for a zero LoRA."""

    def transposed(self) -> Parts:
        """The parts of the transposed layer's update."""
        return Parts(self.adapter.transposed(), self.counter_drift.transposed())
