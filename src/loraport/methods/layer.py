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
from loraport.spectral.correction import CorrectedUpdate, Removal
from loraport.spectral.kernels import USUAL, norm
from loraport.spectral.krylov import is_small
from loraport.spectral.low_rank import LowRank, factorize, is_lost, kept_correction
from loraport.spectral.routing import Routing, observe, precision_for, routing_factors


@dataclass(frozen=True)
class Layer:
    """One weight matrix before and after distillation, and the LoRA's update of it."""

    lora: LowRank
    drift: Float[Tensor, "out in"]
    """D_fft = W_t − W_s, from the original weights."""
    basis: Basis | None = None
    """The thin singular basis of W_s; None for recipes that do not look at it."""
    target: Basis | None = None
    """The same of W_t."""
    known_routing: Routing | None = None
    """What `routing` returns, where somebody has it already: it is the same for every LoRA."""

    @property
    def is_wide(self) -> bool:
        """Whether there are more inputs than outputs: such a layer is looked at as its transpose."""
        return self.drift.shape[0] < self.drift.shape[1]

    def transposed(self) -> Layer:
        """Return the layer as it would be with inputs and outputs exchanged."""
        basis, target = (one.transposed() if one else None for one in (self.basis, self.target))
        return Layer(self.lora.transposed(), self.drift.mT, basis, target, self.known_routing)

    def routing(self) -> Routing:
        """Return the drift in the source's basis (Eq. 2), of the transposed layer where it is wide.

        Raises SettingsError where the basis is missing.
        """
        if self.known_routing is not None:
            return self.known_routing
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
    """A transferred update D' = B·A + correction. Without a correction it is of low rank and exact."""

    low_rank: LowRank
    change: Float[Tensor, "out in"] | Removal | None = None
    """The correction: dense, or as what is removed (minus the correction), dense for those only who ask for it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """Numbers for the report: k, clusters, largest_cluster, restored, arbitrated (CASA), k_target, overlap,
    overlap_random (projections), amount (what a matched control or core undo found)."""
    reason: str | None = None
    """Why the method gives this layer no adapter; None where it gives one."""
    note: str | None = None
    """What is to be said of an adapter that the method does give."""
    is_transposed: bool = False
    """Whether `change` is a Removal of the transposed layer."""
    lora_routing: LowRank | None = None
    """The routing of `low_rank` in factors, in the Removal's basis (Eq. 2), where somebody has it already."""

    @classmethod
    def none(cls, lora: LowRank, reason: str, facts: Mapping[str, Any]) -> Update:
        """Return no adapter for this layer: an update of rank 0, and why."""
        return cls(LowRank(lora.B[:, :0], lora.A[:0]), None, facts, reason)

    @property
    def correction(self) -> Float[Tensor, "out in"] | None:
        """The correction as one matrix."""
        if not isinstance(self.change, Removal):
            return self.change
        dense = -self.change.dense()
        return dense.mT if self.is_transposed else dense

    @property
    def is_low_rank(self) -> bool:
        """Whether nothing but B·A is there: no correction, or one that is zero in every entry."""
        if isinstance(self.change, Removal):
            return self.change.energy == 0
        return self.change is None or not bool(self.change.any())

    def dense(self) -> Float[Tensor, "out in"]:
        """Return D' as one matrix."""
        correction = None if self.is_low_rank else self.correction
        return self.low_rank.dense() if correction is None else correction.addmm(self.low_rank.B, self.low_rank.A)

    def norm(self) -> float:
        """Return ‖D'‖_F; the update is not multiplied out for it where that can be avoided."""
        if self._corrected is not None:
            return self._corrected.energy**0.5
        return self.low_rank.norm() if self.change is None else norm(self.dense())

    def change_norm(self) -> float:
        """Return ‖correction‖_F."""
        if isinstance(self.change, Removal):
            return self.change.energy**0.5
        return 0.0 if self.change is None else norm(self.change)

    def factorized(self, rank: int, generator: torch.Generator) -> LowRank:
        """Return the best rank-r approximation of D', √Σ on both sides, with the share of energy that it loses."""
        if self._corrected is None or is_small(self.low_rank.shape, rank):
            return factorize(self.dense(), rank, generator=generator)
        low = self._corrected.factorized(rank, generator)
        return low.transposed() if self.is_transposed else low

    def kept_correction(self, low: LowRank) -> float | None:
        """Return the share of the correction that survives truncation to these factors; None where there is none.

        With T removed it is ⟨D_lora − low, T⟩ / ‖T‖², from products with few columns, which factors of this update
        bring along. That `low` is a projection of D' would give it from norms, as a difference of two large squares, in
        which a small correction is lost.
        """
        corrected = self._corrected
        if corrected is None:
            return None if self.correction is None else kept_correction(low, self.low_rank, self.correction)
        removal = corrected.removal
        if is_lost(removal.energy, self.low_rank.norm() ** 2):
            return None
        removed = low.removed
        if removed is None:
            removed = removal.inner(low.transposed() if self.is_transposed else low)
        return (corrected.overlap - removed) / removal.energy

    def transposed(self) -> Update:
        """Return the update of the transposed layer."""
        if isinstance(self.change, Removal):
            return replace(self, low_rank=self.low_rank.transposed(), is_transposed=not self.is_transposed)
        change = None if self.change is None else self.change.mT
        return Update(self.low_rank.transposed(), change, self.facts, self.reason, self.note)

    @lazy_property
    def _is_at_usual_scale(self) -> bool:
        """Whether squares of its entries can be trusted in single precision; else the dense update is looked at."""
        size = max(self.change_norm(), self.low_rank.norm())
        return size == 0 or 1 / USUAL < size < USUAL

    @lazy_property
    def _corrected(self) -> CorrectedUpdate | None:
        """B·A less what is removed, of the layer or its transpose; None where the correction is dense or none."""
        if not isinstance(self.change, Removal) or not self._is_at_usual_scale:
            return None
        lora = self.low_rank.transposed() if self.is_transposed else self.low_rank
        routing = routing_factors(lora, self.change.basis) if self.lora_routing is None else self.lora_routing
        return CorrectedUpdate(lora, self.change, routing)


@dataclass(frozen=True)
class Parts:
    """An update in two: what is left of the LoRA, and what is taken back of the drift. Their sum is the whole."""

    adapter: Update
    """A restriction of the LoRA: zero for a zero LoRA, the LoRA itself where there is no drift."""
    counter_drift: Update
    """Minus a restriction of the drift: zero where there is none, all of the update for a zero LoRA."""

    @classmethod
    def of_undo(cls, whole: Update) -> Parts:
        """Return an update that leaves the LoRA as it is, in two: the LoRA, and the correction by itself."""
        nothing = whole.low_rank.scaled(0.0)
        return cls(Update(whole.low_rank, None, whole.facts), Update(nothing, whole.change, whole.facts))

    def transposed(self) -> Parts:
        """Return the parts of the transposed layer's update."""
        return Parts(self.adapter.transposed(), self.counter_drift.transposed())
