"""Reduce any adapter (LoRA, LoHa, LoKr, DoRA, full difference) to the low-rank factors that a method works on."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraport.files.adapters.dora import Dora
from loraport.files.adapters.updates import LayerUpdate, exact_update
from loraport.inputs.config import RankRule
from loraport.methods.layer import Update
from loraport.spectral.low_rank import LowRank, factorize, factorize_energy, truncate


@dataclass(frozen=True)
class MethodInput:
    """A layer's adapter as factors, and the DoRA itself where its magnitudes are put back after the method."""

    lora: LowRank
    """`lost_energy` is the share that this form loses of the adapter's own update."""
    dora: Dora | None = None

    def finished(self, update: Update, W_s: Tensor | None, drift: Tensor) -> Update:
        """Return the method's update D', or with magnitudes m·‖W_t‖ / ‖W_s‖ =: m_t what the adapter adds to W_t then.

        m_t ∘ (W_t + D') / ‖W_t + D'‖ − W_t: DoRA with the factors transferred and the magnitudes rescaled. Where W_t is
        W_s and the method is direct reuse, this is the effective update.
        """
        if self.dora is None or W_s is None or update.reason is not None:
            return update
        W_s = W_s.to(drift.device)
        W_t = W_s + drift
        added = self.dora.carried(W_s, W_t).merged(W_t, update.dense()) - W_t
        return replace(update, low_rank=self.lora, change=added - self.lora.dense())


def method_input(
    adapter: LayerUpdate, W_s: Tensor | None, dora: str, rule: RankRule, rank: int, generator: torch.Generator
) -> MethodInput:
    """Return the factors that a method gets: the adapter's own at that rank, or the best at the rule's.

    `dora`: a DoRA is what it adds to W_s (effective: a matrix of full rank), or its factors alone (magnitude).
    """
    if rule.kind == "energy":
        # two truncations, here and when the result is written: each keeps the root, so both keep what was asked for
        rule = replace(rule, value=math.sqrt(rule.value))
    if dora == "magnitude" and isinstance(adapter, Dora):
        return MethodInput(as_factors(adapter.inner, W_s, rule, rank, generator), adapter)
    return MethodInput(as_factors(adapter, W_s, rule, rank, generator))


def as_factors(update: LayerUpdate, W: Tensor | None, rule: RankRule, rank: int, generator: torch.Generator) -> LowRank:
    """Return an adapter on the weight W as factors: a LoRA as it is, others exactly if `rank` or the rule allows it.

    Else at the share of energy that the rule asks for, or at `rank`, with the energy that is lost. `full`: always
    exactly, a matrix as itself times a unit matrix.
    """
    if isinstance(update, LowRank):
        return update
    exact = exact_update(update, W)
    if rule.kind == "energy":
        return factorize_energy(exact.dense() if isinstance(exact, LowRank) else exact, rule.value)
    if isinstance(exact, LowRank):
        return exact if rule.kind == "full" or exact.rank <= rank else truncate(exact, rank)
    if rule.kind == "full" or rank >= min(exact.shape):
        return _times_unit(exact)
    return factorize(exact, min(rank, *exact.shape), generator=generator)


def factors_at_rule(
    adapter: LayerUpdate, W: Tensor | None, rule: RankRule, rank: int, generator: torch.Generator
) -> LowRank:
    """Return an adapter on the weight W as factors to be written: at the rule's rank, a plain LoRA too."""
    factors = as_factors(adapter, W, rule, rank, generator)
    if rule.kind == "fixed" and factors.rank > rank:
        return truncate(factors, rank)
    if rule.kind == "energy" and isinstance(adapter, LowRank):
        return factorize_energy(factors.dense(), rule.value)
    return factors


def _times_unit(D: Tensor) -> LowRank:
    unit = torch.eye(min(D.shape), dtype=D.dtype, device=D.device)
    return LowRank(D, unit) if D.shape[1] <= D.shape[0] else LowRank(unit, D)
