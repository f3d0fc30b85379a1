"""What a method is given of a layer: factors of low rank, whatever kind of adapter the file holds."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from loraport.files.adapters.updates import Dora, LayerUpdate, exact_update
from loraport.inputs.config import RankRule
from loraport.methods.layer import Update
from loraport.spectral.low_rank import LowRank, factorize, factorize_energy, truncate


@dataclass(frozen=True)
class Given:
    """A layer's update as the method sees it, and DoRA's magnitudes where they are put back after it."""

    lora: LowRank
    """`lost_energy` is the share that this form loses of the adapter's own update."""
    dora: Dora | None = None

    def finished(self, update: Update, W_s: Tensor | None, drift: Tensor) -> Update:
        """The method's update D', or with magnitudes m·‖W_t‖ / ‖W_s‖ =: m_t what the adapter adds to W_t then.

        m_t ∘ (W_t + D') / ‖W_t + D'‖ − W_t: DoRA with the factors transferred and the magnitudes rescaled. Where W_t is
        W_s and the method is direct reuse, this is the effective update.
        """
        if self.dora is None or W_s is None or update.reason is not None:
            return update
        W_s = W_s.to(drift.device)
        W_t = W_s + drift
        added = self.dora.carried(W_s, W_t).merged(W_t, update.dense()) - W_t
        return replace(update, low_rank=self.lora, change=added - self.lora.dense())


def given(
    update: LayerUpdate, W_s: Tensor | None, reading: str, rule: RankRule, rank: int, generator: torch.Generator
) -> Given:
    """The factors that a method gets: the adapter's own where it has them at that rank, else the best at the rule's.

    DoRA is read as what it adds to W_s (effective: a matrix of full rank), or as its factors alone (magnitude). Of an
    energy to keep, the root is kept here and the rest when the result is written.
    """
    if rule.kind == "energy":
        rule = replace(rule, value=math.sqrt(rule.value))
    if reading == "magnitude" and isinstance(update, Dora):
        return Given(as_factors(update.inner, W_s, rule, rank, generator), update)
    return Given(as_factors(update, W_s, rule, rank, generator))


def as_factors(update: LayerUpdate, W: Tensor | None, rule: RankRule, rank: int, generator: torch.Generator) -> LowRank:
    """An adapter on the weight W as factors: a LoRA as it is, others exactly where `rank` or the rule allows it.

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


def _times_unit(D: Tensor) -> LowRank:
    unit = torch.eye(min(D.shape), dtype=D.dtype, device=D.device)
    return LowRank(D, unit) if D.shape[1] <= D.shape[0] else LowRank(unit, D)
