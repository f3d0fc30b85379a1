"""The per-layer function of a transfer: weights in, the new update and what happened to it out."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Hashable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from loraport.methods import Layer, Parts, Recipe, Routing, Update
from loraport.lazy_property import once
from loraport.inputs.accelerator import Accelerated, Target
from loraport.inputs.config import Part, RankRule
from loraport.inputs.drift import TIMES_FLOOR, drift_between, within_floor
from loraport.transfer.method_input import Given, given
from loraport.transfer.kept_routing import COARSE, packed_routing, routing_contradiction, routing_of
from loraport.inputs.plan import LayerJob
from loraport.transfer.results import LayerResult
from loraport.transfer.stopwatch import Stopwatch
from loraport.spectral.halves import half_basis
from loraport.spectral.kernels import norm
from loraport.spectral.svd import (
    LowRank,
    SingularBasis,
    cosine,
    factorize_energy,
    shortened,
)
from loraport.store.bases import BasisCache, basis_key
from loraport.files.adapters.casting import fitted, rounding_loss
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.adapters.updates import LayerUpdate


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

    @once
    def measured_drift(self) -> float:
        """‖D_fft‖ as the files have it."""
        return norm(self.drift)

    @once
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


@dataclass(frozen=True)
class Bases:
    """Where bases come from: the store, else a decomposition on the device."""

    cache: BasisCache
    device: torch.device
    not_kept: set[str] = field(default_factory=set)
    """Why bases could not be kept, filled as it happens."""

    @once
    def watch(self) -> Stopwatch:
        """How long the stages of the run take that asks for these bases."""
        return Stopwatch(self.device)

    def of(self, W: Tensor, fingerprint: str) -> SingularBasis:
        """The basis of a weight with this content hash."""
        with self.watch.stage("basis"):
            fetched = self.cache.get_or_compute(basis_key(fingerprint), W.to(self.device), half_basis)
        if fetched.not_written:
            self.not_kept.add(fetched.not_written)
        return fetched.basis

    def routing(self, key: str, layer: Layer) -> Routing:
        """The routing of a tall or wide layer's drift, as it is stored."""
        tensors, _, not_written = self.cache.fetch(
            key,
            lambda: packed_routing(layer.routing()),
            lambda stored: routing_contradiction(stored, layer, key),
            COARSE,
        )
        if not_written:
            self.not_kept.add(not_written)
        return routing_of(tensors, self.device)


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

    @once
    def drift(self) -> Tensor:
        """D_fft on the device."""
        found = torch.zeros_like(self._drift) if self.is_rounding else self._drift
        return found.to(self._bases.device)

    @once
    def drift_norm(self) -> float:
        """‖D_fft‖, as it counts."""
        return 0.0 if self.is_rounding else self.measured_drift

    @once
    def weight_norm(self) -> float:
        """‖W_s‖"""
        return 0.0 if self._W_s is None else norm(self._W_s)

    @once
    def basis(self) -> SingularBasis | None:
        """The basis of W_s."""
        W_s, _ = self._W_s, self.weight_norm
        self._W_s = None
        return None if W_s is None else self._bases.of(W_s, self.source_hash)

    @once
    def target(self) -> SingularBasis | None:
        """The basis of W_t; None where no run of this layer asked for it."""
        W_t, self._W_t = self._W_t, None
        return None if W_t is None else self._bases.of(W_t, self.target_hash)

    @once
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


@dataclass(frozen=True)
class LayerTransfer:
    """A recipe with the rank it writes, and which part of its update."""

    recipe: Recipe
    rule: RankRule
    rank: int
    """The rank that every layer aims at, capped by its own size; not used by rules under which it varies."""
    as_diff: bool
    seed: int
    lora_sha256: str
    part: Part = "whole"
    dora: str = "effective"
    dtype: torch.dtype = torch.float32
    """What the factors will be written in."""

    def __call__(self, job: LayerJob, lora: LayerUpdate, shared: SharedLayer) -> tuple[LowRank | Tensor, LayerResult]:
        """The new update of one layer, factors or dense, and its row in the report.

        A layer that the recipe gives no adapter is skipped with the recipe's reason; its update has rank 0. One whose
        drift is within twice what rounding makes counts as one without drift: its LoRA is copied, where the recipe
        would reuse it then. The seconds of what several runs share are those of the run that came first.
        """
        start = time.perf_counter()
        source = self._given(job, lora, shared)
        if shared.is_rounding and self.recipe.reuses and self.part != "counter-drift":
            same = fitted(source.lora, self.dtype)
            return same, replace(left_alone(job, same, shared), rounding=rounding_loss(same, self.dtype))
        layer = shared.layer(self.recipe, source.lora)
        update = source.finished(self._update(shared, layer), shared.source, layer.drift)
        lost = source.lora.lost_energy
        written = self._write(update, job, lost) if update.reason is None else update.low_rank
        written = fitted(written, self.dtype) if isinstance(written, LowRank) else written
        return written, LayerResult(
            name=job.name,
            status="transferred" if update.reason is None else "skipped",
            reason=update.reason or update.note or job.reason,
            shape=job.shape,
            rank_in=job.rank,
            rank_out=written.rank if isinstance(written, LowRank) and update.reason is None else None,
            source_hash=shared.source_hash,
            target_hash=shared.target_hash,
            source_rounded=shared.source_rounded,
            seconds=time.perf_counter() - start,
            rounding=rounding_loss(written, self.dtype),
            **_sizes(layer, shared, update, written, lost),
            kind=job.kind,
            **update.facts,
        )

    def _given(self, job: LayerJob, update: LayerUpdate, shared: SharedLayer) -> Given:
        """The layer's adapter as factors, exact where everything is written exactly."""
        rule = RankRule("full") if self.as_diff else self.rule
        return given(update, shared.source, self.dora, rule, self.rank, layer_generator(self.seed, job.name))

    def _update(self, shared: SharedLayer, layer: Layer) -> Update:
        if self.part == "whole":
            return self.recipe(layer)
        return shared.part((self.lora_sha256, self.rule, self.rank, self.recipe), self.part, self.recipe, layer)

    def _write(self, update: Update, job: LayerJob, lost: float) -> LowRank | Tensor:
        """The dense update, or its factors at the rank that the rule gives this layer."""
        if self.as_diff:
            return update.dense()
        n = min(job.shape)
        if self.rule.kind == "energy":
            return factorize_energy(update.dense(), min(1.0, self.rule.value / (1 - lost)))
        if update.is_low_rank and (self.rule.kind == "full" or update.low_rank.rank <= self.rank):
            return update.low_rank.padded(min(self.rank, n)) if self.rule.kind == "fixed" else update.low_rank
        if update.is_low_rank:
            return shortened(update.low_rank, self.rank)
        rank = n if self.rule.kind == "full" else min(self.rank, n)
        return update.factorized(rank, layer_generator(self.seed, job.name))


def left_alone(job: LayerJob, lora: LowRank, shared: SharedLayer) -> LayerResult:
    """The row of a layer whose drift counts as rounding: the LoRA is copied, and the reason says why."""
    size = shared.weight_norm or 1.0
    drift, floor, own = (value / size for value in (shared.measured_drift, shared.floor, lora.norm()))
    return LayerResult(
        name=job.name,
        status="copied",
        reason=f"its drift, {100 * drift:.2g} % of the weight, is within {TIMES_FLOOR:g} times what rounding alone "
        f"makes ({100 * floor:.2g} %): the layer counts as unchanged",
        shape=job.shape,
        rank_in=job.rank,
        rank_out=job.rank,
        drift=drift,
        floor=floor,
        lora=own,
        update=own,
        weight_norm=shared.weight_norm,
        source_hash=shared.source_hash,
        target_hash=shared.target_hash,
        source_rounded=shared.source_rounded,
    )


def layer_generator(seed: int, name: str) -> torch.Generator:
    """Randomness of one layer, from the seed and its name: the order of work and a restart change nothing."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _sizes(layer: Layer, shared: SharedLayer, update: Update, written: LowRank | Tensor, lost: float) -> dict[str, Any]:
    """The sizes of one layer's updates as shares of ‖W_s‖ (None for a zero weight), and what truncation kept.

    `lost`: the share of the adapter's energy that was gone before the method began, where it is no plain LoRA.
    """
    size = shared.weight_norm
    corrected = not update.is_low_rank

    def share(value: float) -> float | None:
        return value / size if size else None

    if isinstance(written, LowRank):
        length, energy = written.norm(), 1 - written.lost_energy
        kept = update.kept_correction(written) if corrected else None
    else:
        length, energy, kept = norm(written), 1.0, 1.0 if corrected else None
    return {
        "drift": share(shared.drift_norm),
        "floor": share(shared.floor),
        "lora": share(layer.lora.norm()),
        "update": share(length),
        "correction": share(update.change_norm()) if corrected else None,
        "kept_energy": energy * (1 - lost),
        "kept_correction": kept,
        "cosine": cosine(layer.lora, written),
        "weight_norm": size,
    }
