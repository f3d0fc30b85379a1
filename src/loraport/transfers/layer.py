"""The per-layer function of a transfer: weights in, the new update and what happened to it out."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from loraport.compute import layer_generator
from loraport.files.adapters.casting import fitted, rounding_loss
from loraport.files.adapters.updates import LayerUpdate
from loraport.inputs.config import Part, RankRule
from loraport.inputs.drift import TIMES_FLOOR
from loraport.inputs.plan import LayerJob
from loraport.methods.layer import Layer, Update
from loraport.methods.recipes import Recipe
from loraport.spectral.kernels import norm
from loraport.spectral.low_rank import LowRank, cosine, factorize_energy, truncate
from loraport.transfers.layer_source import SharedLayer
from loraport.transfers.method_input import Given, given
from loraport.transfers.results import LayerResult


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
            return truncate(update.low_rank, self.rank)
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
