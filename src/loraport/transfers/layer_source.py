"""Build layers: read a layer's weights from both models, measure the drift, get the bases when they are needed.

The one builder: what a transfer makes is what an analysis, a sweep, a probe and the lab show.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from loraport.compute import weights_device
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.weight import StoredWeight
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
from loraport.store.bases import NOTHING_FETCHED, BasisCache, Fetched, entry_key
from loraport.store.basis_source import BasisSource, keeps_routing

T = TypeVar("T")


@dataclass(frozen=True)
class LayerFacts:
    """What the files say of one layer, without its matrices."""

    source_hash: str
    """BLAKE3 of the content, whatever file it lies in."""
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


@dataclass(frozen=True)
class StoredLayer:
    """The bytes of one layer of both models, in memory and hashed; `on` makes numbers of them."""

    name: str
    target: Target
    before: StoredWeight
    after: StoredWeight | None
    """None for an accelerator on the source, whose weight is there already."""
    fetched: Fetched = field(default_factory=dict)
    """Entries of the cache that will be needed."""

    @classmethod
    def load(cls, name: str, source: Checkpoint, target: Target, *, pinned: bool = False) -> StoredLayer:
        """Read a layer of both models; `pinned`: to be copied to a card."""
        return cls(name, target, source.load(name, pinned=pinned), target.load(name, pinned=pinned))

    @property
    def is_unchanged(self) -> bool:
        """Whether both models have the same bytes here."""
        return self.target_hash == self.before.fingerprint

    @property
    def target_hash(self) -> str:
        """The hash of what the target has here; with an accelerator, of what both of them make together."""
        own = (self.before if self.after is None else self.after).fingerprint
        return self.target.content_hash(self.name, own) if isinstance(self.target, AcceleratedModel) else own

    def on(self, device: torch.device | str = "cpu", *, keep_target: bool = False) -> FileWeights:
        """Return the weights on a device; the drift comes from the original ones, never from a rebuilt one.

        `inputs.drift` decides whether the source is rounded to the target's dtype first. Raises InputError for NaN or
        infinite values.
        """
        before = self.before.on(device)
        W_s = before.matrix
        if isinstance(self.target, AcceleratedModel):
            drift = self.target.drift(self.name, before, self.after)
            W_t = W_s + drift.matrix if keep_target else None
        elif self.after is None:
            raise TypeError(f"the target's weight of {self.name} was not read")
        else:
            after = self.after.on(device)
            drift = drift_between(before, after, in_place=not keep_target)
            W_t = after.matrix if keep_target else None
        facts = LayerFacts(
            before.fingerprint, self.target_hash, norm(W_s), drift.norm, drift.floor, drift.source_rounded
        )  # fmt: skip
        return FileWeights(W_s, drift.matrix, W_t, facts)


def read_weights(name: str, source: Checkpoint, target: Target) -> FileWeights:
    """Read a layer in main memory."""
    return StoredLayer.load(name, source, target).on()


def routing_key(source_hash: str, target_hash: str) -> str:
    """Return the key of a drift's routing: of the two weights, from which all about the drift follows."""
    return entry_key(f"{source_hash} {target_hash}", "routing")


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
        bases = BasisSource(BasisCache(config.cache), weights_device(config.device))
        return cls(inputs.source, inputs.target, bases, config.force_drift)

    def read(self, name: str, *, keep_weights: bool = False, with_target: bool = False) -> LayerWeights:
        """Read a layer's weights; the rest is made when it is first asked for, perhaps on another thread.

        `with_target`: W_t is needed, not only the drift. `keep_weights`: the weights are needed beside their bases.
        """
        return self.weights(self.load(name), keep_weights=keep_weights, with_target=with_target)

    def load(self, name: str, *, basis: bool = False, routing: bool = False) -> StoredLayer:
        """Read the bytes of a layer, and what the cache has of its basis and its routing; several threads may."""
        with self.bases.stopwatch.stage("read", on_card=False):
            stored = StoredLayer.load(name, self.source, self.target, pinned=self.bases.device.type == "cuda")
            if not basis or stored.is_unchanged:
                return stored
            keys = [entry_key(stored.before.fingerprint)]
            if routing and keeps_routing(stored.before.tensor.flatten(1).shape, self.bases.device.type):
                keys.append(routing_key(stored.before.fingerprint, stored.target_hash))
            return replace(stored, fetched=self.bases.fetch(*keys))

    def weights(self, stored: StoredLayer, *, keep_weights: bool = False, with_target: bool = False) -> LayerWeights:
        """Make numbers of the bytes, on the device. Raises InputError for NaN or infinite values."""
        with self.bases.stopwatch.stage("read"):
            weights = stored.on(self.bases.device, keep_target=with_target)
        return LayerWeights(
            weights, self.bases, keep_weights=keep_weights, force_drift=self.force_drift, fetched=stored.fetched
        )


class LayerWeights:
    """One layer of both models: what follows from its weights is made once, for all LoRAs, when it is first needed.

    A drift within rounding counts as none, unless it is forced: `inputs.drift.within_floor` is the rule, and this is
    the one place that applies it to a transfer.
    """

    def __init__(
        self,
        weights: FileWeights,
        bases: BasisSource,
        *,
        keep_weights: bool,
        force_drift: bool,
        fetched: Fetched = NOTHING_FETCHED,
    ) -> None:
        self._fetched = dict(fetched)
        self.facts = weights.facts
        self.is_rounding = weights.facts.within_rounding and not force_drift
        self._W_s: Tensor | None = weights.W_s
        self.W_t = weights.W_t
        """None where it was not read. Let go when its basis is there, as W_s is, unless weights are kept."""
        self._drift, self._bases, self._keep = weights.drift, bases, keep_weights
        self._waiting_parts: dict[Hashable, Update] = {}
        self._made: dict[Hashable, Any] = {}

    def once(self, what: Hashable, make: Callable[[], T]) -> T:
        """Return what is made of these weights for one of several LoRAs, and is the same for all of them."""
        if what not in self._made:
            self._made[what] = make()
        found: T = self._made[what]
        return found

    @property
    def W_s(self) -> Tensor:  # noqa: N802
        """The source's weight, as long as it is kept."""
        if self._W_s is None:
            raise RuntimeError("the weight was let go when its basis was made; read the layer with keep_weights")
        return self._W_s

    @lazy_property
    def drift(self) -> Tensor:
        """D_fft, zero where it counts as rounding."""
        return torch.zeros_like(self._drift) if self.is_rounding else self._drift

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
        return self._bases.basis(W_s, self.facts.source_hash, self._fetched)

    @lazy_property
    def target_basis(self) -> Basis | None:
        """The basis of W_t; None where W_t was not read."""
        W_t = self.W_t
        if not self._keep:
            self.W_t = None
        return None if W_t is None else self._bases.basis(W_t, self.facts.target_hash)

    @lazy_property
    def routing(self) -> Routing:
        """C_fft and the senders' strengths, the same for every LoRA, kept as bases are."""
        no_lora = LowRank(self.drift[:, :0], self.drift[:0])
        layer = Layer(no_lora, self.drift, self.basis)
        with self._bases.stopwatch.stage("routing"):
            if self.is_rounding:
                return layer.routing()
            key = routing_key(self.facts.source_hash, self.facts.target_hash)
            routing = self._bases.routing(key, layer, self._fetched)
            self._fetched.clear()  # both are unpacked
            return routing

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
