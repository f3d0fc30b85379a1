"""One layer's weights, drift and bases, made once for all who need them: the one builder of a layer."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.files.models.checkpoint import Checkpoint
from loraport.inputs.accelerator import Accelerated, Target
from loraport.inputs.config import Part
from loraport.inputs.drift import drift_between, within_floor
from loraport.lazy_property import lazy_property
from loraport.methods.layer import Layer, Parts, Update
from loraport.methods.recipes import Recipe
from loraport.spectral.basis import Basis
from loraport.spectral.kernels import norm
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import Routing
from loraport.store.bases import basis_key
from loraport.store.basis_source import Bases


@dataclass(frozen=True)
class Weights:
    """What the files hold for one layer: W_s, D_fft, and the content hashes (BLAKE2b) of both weights."""

    W_s: Tensor
    drift: Tensor
    source_hash: str
    target_hash: str
    W_t: Tensor | None = None
    """Only for recipes that look at the target's basis: the others need one matrix less."""
    floor: float = 0.0
    """Expected norm of the rounding error in the coarser of the two files."""
    source_rounded: bool = False
    """Whether W_s was rounded to the target's dtype before it was subtracted."""

    @lazy_property
    def measured_drift(self) -> float:
        """‖D_fft‖ as the files have it."""
        return norm(self.drift)

    @lazy_property
    def within_rounding(self) -> bool:
        """Whether the drift is no larger than what rounding to the files' dtypes makes by itself."""
        return within_floor(self.measured_drift, self.floor)


def read_weights(name: str, source: Checkpoint, target: Target, *, keep_target: bool = False) -> Weights:
    """The layer's weights in float32; the drift comes from the original weights, never from a rebuilt one.

    `inputs.drift` decides whether the source is rounded to the target's dtype first.
    """
    before = source.read(name)
    W_s, source_hash = before.matrix, before.fingerprint
    if isinstance(target, Accelerated):
        found, target_hash = target.read_drift(name, before)
        W_t = W_s + found.matrix if keep_target else None
        return Weights(W_s, found.matrix, source_hash, target_hash, W_t, found.floor)
    after = target.read(name)
    found = drift_between(before, after, in_place=not keep_target)
    W_t = after.matrix if keep_target else None
    return Weights(W_s, found.matrix, source_hash, after.fingerprint, W_t, found.floor, found.source_rounded)


class SharedLayer:
    """One layer's weights and what follows from them alone, made once for all runs that need it, when the first does.

    A weight is left to its basis as soon as that is there; `keep_source`: not the source's, which a DoRA looks at. A
    drift within rounding counts as none, unless it is forced: this is the one place that decides it, for transfers,
    analyses, sweeps, probes and the lab.
    """

    def __init__(self, weights: Weights, bases: Bases, *, keep_source: bool = False, force_drift: bool = False) -> None:
        self.source = weights.W_s if keep_source else None
        self.source_hash, self.target_hash = weights.source_hash, weights.target_hash
        self.floor, self.source_rounded = weights.floor, weights.source_rounded
        self.is_rounding = weights.within_rounding and not force_drift
        self.measured_drift = weights.measured_drift
        self._W_s: Tensor | None = weights.W_s
        self._W_t = weights.W_t
        self._drift, self._bases = weights.drift, bases
        self._parts: dict[Hashable, Update] = {}

    @lazy_property
    def drift(self) -> Tensor:
        """D_fft on the device."""
        found = torch.zeros_like(self._drift) if self.is_rounding else self._drift
        return found.to(self._bases.device)

    @lazy_property
    def drift_norm(self) -> float:
        """‖D_fft‖, as it counts."""
        return 0.0 if self.is_rounding else self.measured_drift

    @lazy_property
    def weight_norm(self) -> float:
        """‖W_s‖"""
        return 0.0 if self._W_s is None else norm(self._W_s)

    @lazy_property
    def basis(self) -> Basis | None:
        """The basis of W_s."""
        W_s, _ = self._W_s, self.weight_norm
        self._W_s = None
        return None if W_s is None else self._bases.of(W_s, self.source_hash)

    @lazy_property
    def target(self) -> Basis | None:
        """The basis of W_t; None where no run of this layer asked for it."""
        W_t, self._W_t = self._W_t, None
        return None if W_t is None else self._bases.of(W_t, self.target_hash)

    @lazy_property
    def routing(self) -> Routing:
        """C_fft and the senders' strengths, the same for every LoRA; of a tall or wide layer kept as bases are."""
        with self._bases.watch.stage("routing"):
            return self._routing(Layer(LowRank(self.drift[:, :0], self.drift[:0]), self.drift, self.basis))

    def _routing(self, layer: Layer) -> Routing:
        if self.is_rounding or self.drift.shape[0] == self.drift.shape[1]:
            return layer.routing()
        made_of = f"{self.source_hash} {self.target_hash} {self.source_rounded}"
        return self._bases.routing(basis_key(made_of, "routing"), layer)

    def layer(self, recipe: Recipe, lora: LowRank) -> Layer:
        """What a recipe sees of this layer, with a LoRA."""
        here = LowRank(lora.B.to(self.drift.device), lora.A.to(self.drift.device))
        basis = self.basis if recipe.needs_basis else None
        target = self.target if recipe.needs_target else None
        return Layer(here, self.drift, basis, target, self.routing if recipe.needs_routing else None)

    def part(self, of: Hashable, part: Part, recipe: Recipe, layer: Layer) -> Update:
        """One part of a split update; the other waits for whoever asks for it next (`of` says for which update)."""
        if (of, part) in self._parts:
            return self._parts.pop((of, part))
        parts: Parts = recipe.parts(layer)
        found = {"adapter": parts.adapter, "counter-drift": parts.counter_drift}
        wanted = found.pop(part)
        self._parts = {(of, name): other for name, other in found.items()}
        return wanted
