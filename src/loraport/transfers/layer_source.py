"""Build layers: read a layer's weights from both models, measure the drift, get the bases when they are needed.

The one builder: what a transfer makes is what an analysis, a sweep, a probe and the lab show.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.compute import find_device
from loraport.files.models.checkpoint import Checkpoint
from loraport.inputs.accelerator import AcceleratedModel, Target
from loraport.inputs.config import Part
from loraport.inputs.drift import drift_between, within_floor
from loraport.inputs.open import TransferInputs
from loraport.lazy_property import lazy_property
from loraport.methods.layer import Layer, Parts, Update
from loraport.methods.recipes import Recipe
from loraport.spectral.basis import Basis
from loraport.spectral.kernels import norm
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import Routing
from loraport.store.bases import BasisCache, entry_key
from loraport.store.basis_source import BasisSource


@dataclass(frozen=True)
class LayerFacts:
    """What the files say of one layer, without its matrices."""

    source_hash: str
    """BLAKE2b of the content, whatever file it lies in."""
    target_hash: str
    weight: float
    """‖W_s‖"""
    drift: float
    """‖D_fft‖ as the files have it"""
    floor: float
    """Expected norm of the rounding error in the coarser of the two files."""
    source_rounded: bool
    """Whether W_s was rounded to the target's dtype before it was subtracted."""

    @property
    def within_rounding(self) -> bool:
        """Whether the drift is no larger than what rounding to the files' dtypes makes by itself."""
        return within_floor(self.drift, self.floor)


@dataclass(frozen=True)
class FileWeights:
    """What the files hold for one layer, in float32."""

    W_s: Tensor
    drift: Tensor
    W_t: Tensor | None
    """Only for those who look at the target's basis: the others need one matrix less."""
    facts: LayerFacts


def read_weights(name: str, source: Checkpoint, target: Target, *, keep_target: bool = False) -> FileWeights:
    """Read a layer; the drift comes from the original weights, never from a rebuilt one.

    `inputs.drift` decides whether the source is rounded to the target's dtype first.
    """
    before = source.read(name)
    W_s = before.matrix
    weight = norm(W_s)
    if isinstance(target, AcceleratedModel):
        drift, target_hash = target.read_drift(name, before)
        W_t = W_s + drift.matrix if keep_target else None
    else:
        after = target.read(name)
        drift, target_hash = drift_between(before, after, in_place=not keep_target), after.fingerprint
        W_t = after.matrix if keep_target else None
    facts = LayerFacts(
        before.fingerprint, target_hash, weight, norm(drift.matrix), drift.floor, drift.source_rounded
    )  # fmt: skip
    return FileWeights(W_s, drift.matrix, W_t, facts)


@dataclass(frozen=True)
class LayerSource:
    """Builds the layers of two models."""

    source: Checkpoint
    target: Target
    bases: BasisSource
    force_drift: bool = False
    """Whether a drift within rounding counts as one."""

    @classmethod
    def open(cls, inputs: TransferInputs) -> LayerSource:
        """Return the builder of a prepared run, with its cache and its device."""
        config = inputs.config
        bases = BasisSource(BasisCache(config.cache), find_device(config.device))
        return cls(inputs.source, inputs.target, bases, config.force_drift)

    def read(self, name: str, *, keep_weights: bool = False, with_target: bool = False) -> LayerWeights:
        """Read a layer's weights; the rest is made when it is first asked for, perhaps on another thread.

        `with_target`: W_t is needed, not only the drift. `keep_weights`: the weights are needed beside their bases.
        """
        with self.bases.stopwatch.stage("read"):
            weights = read_weights(name, self.source, self.target, keep_target=with_target)
        return LayerWeights(weights, self.bases, keep_weights=keep_weights, force_drift=self.force_drift)


class LayerWeights:
    """One layer of both models: what follows from its weights is made once, for all LoRAs, when it is first needed.

    A drift within rounding counts as none, unless it is forced: `inputs.drift.within_floor` is the rule, and this is
    the one place that applies it to a transfer.
    """

    def __init__(self, weights: FileWeights, bases: BasisSource, *, keep_weights: bool, force_drift: bool) -> None:
        self.facts = weights.facts
        self.is_rounding = weights.facts.within_rounding and not force_drift
        self._W_s: Tensor | None = weights.W_s
        self.W_t = weights.W_t
        """None where it was not read. Let go when its basis is there, as W_s is, unless weights are kept."""
        self._drift, self._bases, self._keep = weights.drift, bases, keep_weights
        self._waiting_parts: dict[Hashable, Update] = {}

    @property
    def W_s(self) -> Tensor:  # noqa: N802
        """The source's weight, as long as it is kept."""
        if self._W_s is None:
            raise RuntimeError("the weight was let go when its basis was made; read the layer with keep_weights")
        return self._W_s

    @lazy_property
    def drift(self) -> Tensor:
        """D_fft on the device, zero where it counts as rounding."""
        drift = torch.zeros_like(self._drift) if self.is_rounding else self._drift
        return drift.to(self._bases.device)

    @property
    def drift_norm(self) -> float:
        """‖D_fft‖, zero where it counts as rounding."""
        return 0.0 if self.is_rounding else self.facts.drift

    @lazy_property
    def basis(self) -> Basis:
        """The basis of W_s."""
        W_s = self.W_s
        if not self._keep:
            self._W_s = None  # on a card, and of a wide layer, the basis has a copy of its own
        return self._bases.basis(W_s, self.facts.source_hash)

    @lazy_property
    def target_basis(self) -> Basis | None:
        """The basis of W_t; None where W_t was not read."""
        W_t = self.W_t
        if not self._keep:
            self.W_t = None
        return None if W_t is None else self._bases.basis(W_t, self.facts.target_hash)

    @lazy_property
    def routing(self) -> Routing:
        """C_fft and the senders' strengths, the same for every LoRA; of a tall or wide layer kept as bases are."""
        no_lora = LowRank(self.drift[:, :0], self.drift[:0])
        layer = Layer(no_lora, self.drift, self.basis)
        with self._bases.stopwatch.stage("routing"):
            if self.is_rounding or self.drift.shape[0] == self.drift.shape[1]:
                return layer.routing()
            made_of = f"{self.facts.source_hash} {self.facts.target_hash} {self.facts.source_rounded}"
            return self._bases.routing(entry_key(made_of, "routing"), layer)

    def layer(self, lora: LowRank, *, basis: bool = True, target: bool = False, routing: bool = False) -> Layer:
        """Return what a method sees of this layer, with a LoRA, on the device."""
        return Layer(
            LowRank(lora.B.to(self.drift.device), lora.A.to(self.drift.device)),
            self.drift,
            self.basis if basis else None,
            self.target_basis if target else None,
            self.routing if routing else None,
        )

    def part(self, of: Hashable, part: Part, recipe: Recipe, layer: Layer) -> Update:
        """Return one part of a split update; `of` identifies the update among those of several LoRAs and methods."""
        # The two parts are two runs of one pass, which come one after the other. Both parts are made at once: the run
        # that asks first leaves the other part here, and the second takes it away, so that it does not stay in memory.
        # A run that is alone (its twin was finished in an earlier start) leaves a part that the next update replaces.
        if (of, part) in self._waiting_parts:
            return self._waiting_parts.pop((of, part))
        both: Parts = recipe.parts(layer)
        updates = {"adapter": both.adapter, "counter-drift": both.counter_drift}
        wanted = updates.pop(part)
        self._waiting_parts = {(of, name): other for name, other in updates.items()}
        return wanted
