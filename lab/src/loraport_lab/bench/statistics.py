"""Intervals by the bootstrap over clips, gaps closed, distances between distributions; no opinion on what they mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from scipy.linalg import sqrtm
from torch import Tensor

RESAMPLES = 2000


@dataclass(frozen=True)
class Interval:
    """A value with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """The direction, 0 where the interval holds zero."""
        return int(self.low > 0) - int(self.high < 0)


@cache
def resampled_rows(count: int, seed: int = 0) -> Tensor:
    """Which clips each resample holds, [RESAMPLES, count]: one choice for every metric and row keeps pairs together."""
    return torch.randint(count, (RESAMPLES, count), generator=torch.Generator().manual_seed(seed))


def mean_interval(values: Tensor) -> Interval:
    """The mean over clips; pass differences for paired comparisons."""
    values = values.double()
    means = values[resampled_rows(len(values))].mean(1)
    return _interval(float(values.mean()), means)


def standard_error(values: Tensor) -> float:
    """Of the mean over clips."""
    return float(values.double().std() / len(values) ** 0.5)


def gap_closed(ours: Tensor, direct: Tensor, oracle: Tensor) -> Interval | None:
    """(m − direct) / (oracle − direct) on means over clips: 0 is direct reuse, 1 the adapter trained on the student.

    None where the oracle is not ahead of direct reuse by two standard errors: there is no gap to close.
    """
    return pooled_gap([ours - direct], [oracle - direct])


def share_interval(ours: Tensor, theirs: Tensor) -> Interval:
    """Σ ours / Σ theirs of paired values."""
    rows = resampled_rows(len(ours))
    above, below = ours.double(), theirs.double().clamp_min(torch.finfo(torch.float64).tiny)
    return _interval(float(above.sum() / below.sum()), above[rows].sum(1) / below[rows].sum(1))


def pooled_gap(gains: Sequence[Tensor], gaps: Sequence[Tensor]) -> Interval | None:
    """Σ gain / Σ gap over cells [clips each]: the share of all that there is to close, whatever the single gaps.

    A mean of the cells' own shares would be ruled by the smallest gap, whose share has no bounds. All cells see the
    same clips, so they are resampled together; that says nothing of other cells. None where the cells' summed gap is
    not above zero by two standard errors.
    """
    if not gains:
        return None
    gain, gap = (torch.stack([one.double() for one in many]).sum(0) for many in (gains, gaps))
    if gap.mean() <= 2 * standard_error(gap):
        return None
    rows = resampled_rows(len(gain))
    return _interval(float(gain.mean() / gap.mean()), gain[rows].mean(1) / gap[rows].mean(1))


def frechet_distance(ours: Tensor, theirs: Tensor) -> float:
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) between two sets of features [n, d] (Heusel et al. 2017).

    Biased upwards for few samples: compare only values of equal n.
    """
    a, b = (features.double().numpy() for features in (ours, theirs))
    mixed = sqrtm(np.cov(a.T) @ np.cov(b.T))
    spread = np.trace(np.cov(a.T) + np.cov(b.T) - 2 * np.real(mixed))
    return float(np.square(a.mean(0) - b.mean(0)).sum() + spread)


def rank_correlation(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Spearman's, with mean ranks for ties."""
    from scipy.stats import spearmanr

    return float(spearmanr(ours, theirs).statistic)


def means(values: Mapping[str, Tensor]) -> dict[str, float]:
    """The mean of every metric over clips."""
    return {name: float(value.double().mean()) for name, value in values.items()}


def _interval(value: float, resamples: Tensor) -> Interval:
    low, high = torch.quantile(resamples.double(), torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Interval(value, low, high)
