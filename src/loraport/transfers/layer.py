"""Transfer one layer: its weights and its adapter in, the new update and its row in the report out."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from loraport.compute import layer_generator
from loraport.files.adapters.casting import balanced, rounding_loss
from loraport.files.adapters.updates import LayerUpdate, needs_weight
from loraport.inputs.config import Part, RankRule
from loraport.inputs.drift import TIMES_FLOOR
from loraport.inputs.plan import LayerJob
from loraport.methods.layer import Layer, Update
from loraport.methods.recipes import Recipe
from loraport.spectral.head import energy_inside, has_few_directions, head_directions, head_share
from loraport.spectral.kernels import norm
from loraport.spectral.low_rank import LowRank, cosine, factorize_energy, truncate
from loraport.transfers.layer_source import LayerWeights
from loraport.transfers.method_input import method_input
from loraport.transfers.results import LayerResult


@dataclass(frozen=True)
class LayerTransfer:
    """The transfer of single layers by one recipe: which part of its update is written, at which rank and dtype."""

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
    looked_at: frozenset[str] = frozenset()
    """Layers whose drift is looked at for the advice at the end, where the method needs no bases."""

    def __call__(
        self, job: LayerJob, adapter: LayerUpdate, weights: LayerWeights
    ) -> tuple[LowRank | Tensor, LayerResult]:
        """Return the new update of one layer, factors or dense, and its row in the report.

        A layer that the recipe gives no adapter is skipped with the recipe's reason; its update has rank 0. One whose
        drift is within twice what rounding makes counts as one without drift: its LoRA is copied, where the recipe
        would reuse it then. The seconds of what several runs share are those of the run that came first.
        """
        start = time.perf_counter()
        recipe = self.recipe
        rule = RankRule("full") if self.as_diff else self.rule
        W_s = weights.W_s if needs_weight(adapter) else None
        inputs = method_input(adapter, W_s, self.dora, rule, self.rank, layer_generator(self.seed, job.name))
        if weights.is_rounding and recipe.reuses and self.part != "counter-drift":
            same = balanced(inputs.lora, self.dtype)
            return same, replace(copied_row(job, same, weights), rounding=rounding_loss(same, self.dtype))
        layer = weights.layer(
            inputs.lora, basis=recipe.needs_basis, target=recipe.needs_target, routing=recipe.needs_routing
        )
        if self.part == "whole":
            update = recipe(layer)
        else:
            update = weights.part((self.lora_sha256, self.rule, self.rank, recipe), self.part, recipe, layer)
        update = inputs.finished(update, W_s, layer.drift)
        lost = inputs.lora.lost_energy
        written = self._write(update, job, lost) if update.reason is None else update.low_rank
        written = balanced(written, self.dtype) if isinstance(written, LowRank) else written
        return written, LayerResult(
            name=job.name,
            status="transferred" if update.reason is None else "skipped",
            reason=update.reason or update.note or job.reason,
            shape=job.shape,
            rank_in=job.rank,
            rank_out=written.rank if isinstance(written, LowRank) and update.reason is None else None,
            seconds=time.perf_counter() - start,
            rounding=rounding_loss(written, self.dtype),
            **_of_files(weights),
            **_sizes(layer, weights, update, written, lost),
            kind=job.kind,
            **self._place_of_drift(job.name, weights, layer),
            **_of_method(update.facts),
        )

    def looks_itself(self, name: str) -> bool:
        """Whether it looks for the drift's place in a layer by the weight alone, for want of the drift's routing."""
        return name in self.looked_at and not self.recipe.needs_routing

    def _place_of_drift(self, name: str, weights: LayerWeights, layer: Layer) -> dict[str, Any]:
        """Return what the advice at the end needs: how much of the drift is in the head, and whether it is a LoRA's."""
        if not weights.drift_norm:
            return {}
        looked: dict[str, Any] = {}
        if name in self.looked_at:
            looked["few_directions"] = weights.once(
                ("few directions", self.seed),
                lambda: has_few_directions(layer.drift, weights.facts.floor, layer_generator(self.seed, name)),
            )
        if layer.known_routing is not None:
            looked["head_drift"] = weights.once("head drift", lambda: head_share(layer.routing().send))
        elif self.looks_itself(name):
            looked["head_drift"] = weights.once(
                ("head drift", self.seed), lambda: self._head_drift(name, weights, layer)
            )
        return looked

    def _head_drift(self, name: str, weights: LayerWeights, layer: Layer) -> float | None:
        W_s, D = weights.W_s.to(layer.drift.device), layer.drift
        W_s, D = (W_s.mT, D.mT) if layer.is_wide else (W_s, D)
        return energy_inside(D, head_directions(W_s, layer_generator(self.seed, name)))

    def _write(self, update: Update, job: LayerJob, lost: float) -> LowRank | Tensor:
        """Return the dense update, or its factors at the rank that the rule gives this layer."""
        if self.as_diff:
            return update.dense()
        n = min(job.shape)
        if self.rule.kind == "energy":
            # `lost` is gone already: keep the rest of what was asked for.
            return factorize_energy(update.dense(), min(1.0, self.rule.value / (1 - lost)))
        if update.is_low_rank and (self.rule.kind == "full" or update.low_rank.rank <= self.rank):
            return update.low_rank.padded(min(self.rank, n)) if self.rule.kind == "fixed" else update.low_rank
        if update.is_low_rank:
            return truncate(update.low_rank, self.rank)
        rank = n if self.rule.kind == "full" else min(self.rank, n)
        return update.factorized(rank, layer_generator(self.seed, job.name))


def copied_row(job: LayerJob, lora: LowRank, weights: LayerWeights) -> LayerResult:
    """Return the row of a layer whose drift counts as rounding: the LoRA is copied, and the reason says why."""
    facts = weights.facts
    size = facts.weight or 1.0
    drift, floor, own = facts.drift / size, facts.floor / size, lora.norm() / size
    return LayerResult(
        name=job.name,
        status="copied",
        reason=f"its drift, {100 * drift:.2g} % of the weight, is within {TIMES_FLOOR:g} times what rounding alone "
        f"makes ({100 * floor:.2g} %): the layer counts as unchanged",
        shape=job.shape,
        rank_in=job.rank,
        rank_out=job.rank,
        drift=drift,
        lora=own,
        update=own,
        floor=floor,
        weight_norm=facts.weight,
        **_of_files(weights),
    )


def _of_files(weights: LayerWeights) -> dict[str, Any]:
    facts = weights.facts
    return {
        "source_hash": facts.source_hash,
        "target_hash": facts.target_hash,
        "source_rounded": facts.source_rounded,
    }


def _of_method(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return a method's facts as fields of the result; those that have no field together, under `facts`."""
    known = {field.name for field in fields(LayerResult)}
    own = {name: value for name, value in facts.items() if name in known}
    return {**own, "facts": {name: value for name, value in facts.items() if name not in known}}


def _sizes(
    layer: Layer, weights: LayerWeights, update: Update, written: LowRank | Tensor, lost: float
) -> dict[str, Any]:
    """Return the sizes of one layer's updates as shares of ‖W_s‖ (None for a zero weight), and what truncation kept.

    `lost`: the share of the adapter's energy that was gone before the method began, where it is no plain LoRA.
    """
    size = weights.facts.weight
    corrected = not update.is_low_rank

    def share(value: float) -> float | None:
        return value / size if size else None

    if isinstance(written, LowRank):
        length, energy = written.norm(), 1 - written.lost_energy
        kept = update.kept_correction(written) if corrected else None
    else:
        length, energy, kept = norm(written), 1.0, 1.0 if corrected else None
    return {
        "drift": share(weights.drift_norm),
        "floor": share(weights.facts.floor),
        "lora": share(layer.lora.norm()),
        "update": share(length),
        "correction": share(update.change_norm()) if corrected else None,
        "kept_energy": energy * (1 - lost),
        "kept_correction": kept,
        "cosine": cosine(layer.lora, written),
        "weight_norm": size,
    }
