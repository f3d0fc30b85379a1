"""How sure a difference is: bootstrap over prompts and the noise within them, and the sign test."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import comb

import torch
from torch import Tensor

DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and where it may lie: the middle 95 % of the bootstrap."""

    value: float
    low: float
    high: float

    def as_json(self) -> dict[str, float]:
        """For the JSON output."""
        return {"value": self.value, "low": self.low, "high": self.high}


def resamples(prompts: Sequence[str], *, seed: int = 0, draws: int = DRAWS) -> Tensor:
    """How often each clip counts in each resample: [draws, n]. Prompts are drawn anew, then clips within each of them.

    Where every prompt occurs once this is the plain bootstrap over clips.
    """
    generator = torch.Generator().manual_seed(seed)
    known = list(dict.fromkeys(prompts))
    members = [[i for i, prompt in enumerate(prompts) if prompt == one] for one in known]
    most = max(map(len, members))
    table = torch.tensor([own + own[:1] * (most - len(own)) for own in members])
    sizes = torch.tensor([len(own) for own in members])
    groups = torch.randint(len(known), (draws, len(known)), generator=generator)
    picks = (torch.rand(draws, len(known), most, generator=generator) * sizes[groups][..., None]).long()
    chosen = table[groups[..., None], picks].flatten(1)
    counted = (torch.arange(most) < sizes[groups][..., None]).flatten(1).double()
    return torch.zeros(draws, len(prompts), dtype=torch.float64).scatter_add_(1, chosen, counted)


def mean_interval(values: Tensor, counts: Tensor) -> Interval:
    """The mean of values [n]."""
    means = counts @ values.double() / counts.sum(1)
    return _interval(float(values.double().mean()), means)


def ratio_interval(above: Tensor, below: Tensor, counts: Tensor) -> Interval | None:
    """Σ above / Σ below of paired values [n]; None where nothing is below the line."""
    whole = float(below.double().sum())
    if whole == 0:
        return None
    ratios = (counts @ above.double()) / (counts @ below.double()).clamp_min(torch.finfo(torch.float64).tiny)
    return _interval(float(above.double().sum()) / whole, ratios)


def _interval(value: float, drawn: Tensor) -> Interval:
    low, high = torch.quantile(drawn, torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=torch.float64)).tolist()
    return Interval(value, low, high)


def sign_test(better: int, worse: int) -> float:
    """Two-sided: how likely a split at least this uneven is among fair coins; ties are left out."""
    tosses, few = better + worse, min(better, worse)
    return min(1.0, 2 * sum(comb(tosses, k) for k in range(few + 1)) / 2**tosses) if tosses else 1.0
