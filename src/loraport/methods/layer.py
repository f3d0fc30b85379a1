"""What every recipe takes and gives: one layer, and its new update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.spectral.svd import LowRank, SingularBasis


@dataclass(frozen=True)
class Layer:
    """One weight matrix before and after distillation, and the LoRA's update of it.

    `drift` is D_fft = W_t − W_s from the original weights; `basis` is the thin singular basis of W_s, or None for the
    recipes that do not look at it.
    """

    lora: LowRank
    drift: Float[Tensor, "out in"]
    basis: SingularBasis | None = None

    def transposed(self) -> Layer:
        """The layer as it would be with inputs and outputs exchanged."""
        return Layer(self.lora.transposed(), self.drift.mT, self.basis.transposed() if self.basis else None)


@dataclass(frozen=True)
class Update:
    """A transferred update D' = B·A + correction. Without a correction it is of low rank and exact.

    `facts` may hold k, clusters, largest_cluster, arbitrated (CASA) and amount (what a matched control found).
    """

    low_rank: LowRank
    correction: Float[Tensor, "out in"] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_low_rank(self) -> bool:
        """Whether nothing but B·A is there: no correction, or one that is zero in every entry."""
        return self.correction is None or not bool(self.correction.any())

    def dense(self) -> Float[Tensor, "out in"]:
        """D' as one matrix."""
        if self.correction is None:
            return self.low_rank.dense()
        return torch.addmm(self.correction, self.low_rank.B, self.low_rank.A)

    def transposed(self) -> Update:
        """The update of the transposed layer."""
        correction = None if self.correction is None else self.correction.mT
        return Update(self.low_rank.transposed(), correction, self.facts)
