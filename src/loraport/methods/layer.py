"""What every recipe takes and gives: one layer, and its new update."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import SettingsError
from loraport.lazy_property import lazy_property
from loraport.spectral.basis import Basis
from loraport.spectral.correction import Remaining, Taken
from loraport.spectral.kernels import USUAL, norm
from loraport.spectral.krylov import is_small
from loraport.spectral.low_rank import LowRank, factorize, is_lost, kept_correction
from loraport.spectral.routing import Routing, observe, precision_for, routing_factors


@dataclass(frozen=True)
class Layer:
    """One weight matrix before and after distillation, and the LoRA's update of it.

    `drift` is D_fft = W_t − W_s from the original weights; `basis` and `target` are the thin singular bases of W_s and
    W_t, or None for the recipes that do not look at them. `seen` is the drift in the source's basis where somebody has
    it already, since it is the same for every LoRA: that of the layer, or of its transpose where it is wide.
    """

    lora: LowRank
    drift: Float[Tensor, "out in"]
    basis: Basis | None = None
    target: Basis | None = None
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
        dtype = precision_for(self.drift)
        if self.is_wide:
            return observe(self.drift.mT, self.basis.transposed(), dtype)
        return observe(self.drift, self.basis, dtype)


@dataclass(frozen=True)
class Update:
    """A transferred update D' = B·A + correction. Without a correction it is of low rank and exact.

    `facts` may hold k, clusters, largest_cluster, restored, arbitrated (CASA), k_target, overlap, overlap_random
    (projections) and amount (what a matched control or core undo found).
    """

    low_rank: LowRank
    change: Float[Tensor, "out in"] | Taken | None = None
    """The correction: dense, or minus what was taken, which is dense for those only who ask for it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    reason: str | None = None
    """Why the method gives this layer no adapter; None where it gives one."""
    note: str | None = None
    """What is to be said of an adapter that the method does give."""
    turned: bool = False
    """Whether `change` is Taken and belongs to the transposed layer."""
    seen: LowRank | None = None
    """`low_rank` in the basis of what is Taken (Eq. 2), where somebody has it."""

    @classmethod
    def none(cls, lora: LowRank, reason: str, facts: Mapping[str, Any]) -> Update:
        """No adapter for this layer: an update of rank 0, and why."""
        return cls(LowRank(lora.B[:, :0], lora.A[:0]), None, facts, reason)

    @property
    def correction(self) -> Float[Tensor, "out in"] | None:
        """The correction as one matrix."""
        if not isinstance(self.change, Taken):
            return self.change
        dense = -self.change.dense()
        return dense.mT if self.turned else dense

    @property
    def is_low_rank(self) -> bool:
        """Whether nothing but B·A is there: no correction, or one that is zero in every entry."""
        if isinstance(self.change, Taken):
            return self.change.energy == 0
        return self.change is None or not bool(self.change.any())

    def dense(self) -> Float[Tensor, "out in"]:
        """D' as one matrix."""
        correction = None if self.is_low_rank else self.correction
        return self.low_rank.dense() if correction is None else correction.addmm(self.low_rank.B, self.low_rank.A)

    def norm(self) -> float:
        """‖D'‖_F; the update is not multiplied out for it where that can be avoided."""
        if self._remaining is not None:
            return self._remaining.energy**0.5
        return self.low_rank.norm() if self.change is None else norm(self.dense())

    def change_norm(self) -> float:
        """‖correction‖_F"""
        if isinstance(self.change, Taken):
            return self.change.energy**0.5
        return 0.0 if self.change is None else norm(self.change)

    def factorized(self, rank: int, generator: torch.Generator) -> LowRank:
        """The best rank-r approximation of D', √Σ on both sides, with the share of energy that it loses."""
        if self._remaining is None or is_small(self.low_rank.shape, rank):
            return factorize(self.dense(), rank, generator=generator)
        low = self._remaining.factorized(rank, generator)
        return low.transposed() if self.turned else low

    def kept_correction(self, low: LowRank) -> float | None:
        """Share of the correction that survives truncation to these factors; None where there is none to speak of.

        With T taken it is ⟨D_lora − low, T⟩ / ‖T‖², from products with few columns. That the factors are a projection
        of D' would save those, but squares of the whole update hide a small correction.
        """
        left = self._remaining
        if left is None:
            return None if self.correction is None else kept_correction(low, self.low_rank, self.correction)
        if is_lost(left.taken.energy, self.low_rank.norm() ** 2):
            return None
        return (left.overlap - left.taken.inner(low.transposed() if self.turned else low)) / left.taken.energy

    def transposed(self) -> Update:
        """The update of the transposed layer."""
        if isinstance(self.change, Taken):
            return replace(self, low_rank=self.low_rank.transposed(), turned=not self.turned)
        change = None if self.change is None else self.change.mT
        return Update(self.low_rank.transposed(), change, self.facts, self.reason, self.note)

    @lazy_property
    def _usual(self) -> bool:
        """Whether squares of its entries can be trusted in single precision; else the dense update is looked at."""
        size = max(self.change_norm(), self.low_rank.norm())
        return size == 0 or 1 / USUAL < size < USUAL

    @lazy_property
    def _remaining(self) -> Remaining | None:
        """B·A less what was taken, of the layer or its transpose; None where the correction is dense or none."""
        if not isinstance(self.change, Taken) or not self._usual:
            return None
        lora = self.low_rank.transposed() if self.turned else self.low_rank
        seen = routing_factors(lora, self.change.basis) if self.seen is None else self.seen
        return Remaining(lora, self.change, seen)


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
