"""The per-layer function of a transfer: weights in, the new update and what happened to it out."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from loraport.methods import Layer, Recipe, Update
from loraport.runs.accelerator import Accelerated, Target
from loraport.runs.config import RankRule
from loraport.runs.drift import TIMES_FLOOR, drift_between, within_floor
from loraport.runs.given import Given, given
from loraport.runs.plan import LayerJob
from loraport.runs.results import LayerResult
from loraport.spectral.svd import (
    LowRank,
    SingularBasis,
    cosine,
    decompose,
    factorize,
    factorize_energy,
    kept_correction,
    shortened,
)
from loraport.weights.cache import BasisCache, basis_key
from loraport.weights.checkpoint import Checkpoint
from loraport.weights.variants import LayerUpdate


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


def read_weights(job: LayerJob, source: Checkpoint, target: Target, *, keep_target: bool = False) -> Weights:
    """The layer's weights in float32; the drift comes from the original weights, never from a rebuilt one.

    `runs.drift` decides whether the source is rounded to the target's dtype first.
    """
    before = source.read(job.name)
    W_s, source_hash = before.matrix, before.fingerprint
    if isinstance(target, Accelerated):
        found, target_hash = target.read_drift(job.name, before)
        W_t = W_s + found.matrix if keep_target else None
        return Weights(W_s, found.matrix, source_hash, target_hash, W_t, found.floor)
    after = target.read(job.name)
    found = drift_between(before, after, in_place=not keep_target)
    W_t = after.matrix if keep_target else None
    return Weights(W_s, found.matrix, source_hash, after.fingerprint, W_t, found.floor, found.source_rounded)


@dataclass(frozen=True)
class LayerTransfer:
    """A recipe with the rank it writes, the store of its bases and the device it runs on."""

    recipe: Recipe
    rule: RankRule
    rank: int
    """The rank that every layer aims at, capped by its own size; not used by rules under which it varies."""
    as_diff: bool
    seed: int
    cache: BasisCache
    device: torch.device
    force_drift: bool = False
    """Work with a drift that cannot be told from rounding, too."""
    dora: str = "effective"
    not_cached: set[str] = field(default_factory=set)
    """Why bases could not be kept, filled as it happens."""

    def __call__(self, job: LayerJob, lora: LayerUpdate, weights: Weights) -> tuple[LowRank | Tensor, LayerResult]:
        """The new update of one layer, factors or dense, and its row in the report.

        A layer that the recipe gives no adapter is skipped with the recipe's reason; its update has rank 0. One whose
        drift cannot be told from rounding counts as one without drift: its LoRA is copied, where the recipe would reuse
        it then.
        """
        start = time.perf_counter()
        source = self.given(job, lora, weights.W_s)
        if not self.force_drift and within_floor(_norm(weights.drift), weights.floor):
            if self.recipe.reuses:
                return source.lora, left_alone(job, source.lora, weights)
            weights = replace(weights, drift=torch.zeros_like(weights.drift))
        layer = self._layer(source.lora, weights)
        update = source.finished(self.recipe(layer), weights.W_s.to(self.device), layer.drift)
        written = self._write(update, job, source.lora.lost_energy) if update.reason is None else update.low_rank
        return written, LayerResult(
            name=job.name,
            status="transferred" if update.reason is None else "skipped",
            reason=update.reason,
            shape=job.shape,
            rank_in=job.rank,
            rank_out=written.rank if isinstance(written, LowRank) and update.reason is None else None,
            source_hash=weights.source_hash,
            target_hash=weights.target_hash,
            source_rounded=weights.source_rounded,
            seconds=time.perf_counter() - start,
            **_sizes(layer, weights, update, written, source.lora.lost_energy),
            kind=job.kind,
            **update.facts,
        )

    def given(self, job: LayerJob, update: LayerUpdate, W_s: Tensor) -> Given:
        """The layer's adapter as factors, exact where everything is written exactly."""
        rule = RankRule("full") if self.as_diff else self.rule
        return given(update, W_s, self.dora, rule, self.rank, layer_generator(self.seed, job.name))

    def _layer(self, lora: LowRank, weights: Weights) -> Layer:
        here = LowRank(lora.B.to(self.device), lora.A.to(self.device))
        basis = self._basis(weights.W_s, weights.source_hash) if self.recipe.needs_basis else None
        target = None
        if self.recipe.needs_target and weights.W_t is not None:
            target = self._basis(weights.W_t, weights.target_hash)
        return Layer(here, weights.drift.to(self.device), basis, target)

    def _basis(self, W: Tensor, fingerprint: str) -> SingularBasis:
        key = basis_key(fingerprint)
        fetched = self.cache.get_or_compute(key, lambda: decompose(W.to(self.device)), self.device)
        if fetched.not_written:
            self.not_cached.add(fetched.not_written)
        return fetched.basis

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
        return factorize(update.dense(), rank, generator=layer_generator(self.seed, job.name))


def left_alone(job: LayerJob, lora: LowRank, weights: Weights) -> LayerResult:
    """The row of a layer whose drift cannot be told from rounding: the LoRA is copied, and the reason says why."""
    size = _norm(weights.W_s) or 1.0
    drift, floor, own = (value / size for value in (_norm(weights.drift), weights.floor, lora.norm()))
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
        weight_norm=_norm(weights.W_s),
        source_hash=weights.source_hash,
        target_hash=weights.target_hash,
        source_rounded=weights.source_rounded,
    )


def layer_generator(seed: int, name: str) -> torch.Generator:
    """Randomness of one layer, from the seed and its name: the order of work and a restart change nothing."""
    digest = hashlib.sha256(f"{seed}\n{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


def _sizes(layer: Layer, weights: Weights, update: Update, written: LowRank | Tensor, lost: float) -> dict[str, Any]:
    """The sizes of one layer's updates as shares of ‖W_s‖ (None for a zero weight), and what truncation kept.

    `lost`: the share of the adapter's energy that was gone before the method began, where it is no plain LoRA.
    """
    size = _norm(weights.W_s)
    correction = None if update.is_low_rank else update.correction

    def share(value: float) -> float | None:
        return value / size if size else None

    if isinstance(written, LowRank):
        norm, energy = written.norm(), 1 - written.lost_energy
        kept = None if correction is None else kept_correction(written, update.low_rank, correction)
    else:
        norm, energy, kept = _norm(written), 1.0, None if correction is None else 1.0
    return {
        "drift": share(_norm(layer.drift)),
        "floor": share(weights.floor),
        "lora": share(layer.lora.norm()),
        "update": share(norm),
        "correction": None if correction is None else share(_norm(correction)),
        "kept_energy": energy * (1 - lost),
        "kept_correction": kept,
        "cosine": cosine(layer.lora, written),
        "weight_norm": size,
    }


def _norm(X: Tensor) -> float:
    return float(torch.linalg.vector_norm(X))
