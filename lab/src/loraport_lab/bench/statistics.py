"""What the lab adds to `loraport.sampling.statistics`: gaps closed, many tests at once, distances, correlations."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import stats
from scipy.linalg import sqrtm
from torch import Tensor

from loraport.sampling.statistics import Deviations, Interval, ratio_interval, standard_error

LEAST_LEAD = 2.0
"""Standard errors by which the oracle has to lead direct reuse before there is a gap to close."""


def gap_closed(values: Tensor, direct: Tensor, oracle: Tensor, prompts: Sequence[str]) -> Interval | None:
    """Return (m − direct) / (oracle − direct) of means over clips: 0 is direct reuse, 1 the adapter trained there.

    None where the oracle is not ahead of direct reuse by two standard errors: there is no gap to close.
    """
    return pooled_gap([values - direct], [oracle - direct], prompts)


def pooled_gap(gains: Sequence[Tensor], gaps: Sequence[Tensor], prompts: Sequence[str]) -> Interval | None:
    """Return Σ gain / Σ gap over cells [clips each]: the share of all that there is to close, whatever the single gaps.

    A mean of the cells' own shares would be ruled by the smallest gap, whose share has no bounds. All cells see the
    same clips, so their gains are added up clip by clip; the interval says nothing of other cells. None where the
    cells' summed gap is not above zero by two standard errors.
    """
    if not gains:
        return None
    gain, gap = (torch.stack([cell.double() for cell in cells]).sum(0) for cells in (gains, gaps))
    if gap.mean() <= LEAST_LEAD * standard_error(gap, prompts):
        return None
    return ratio_interval(gain, gap, prompts)


def p_value(values: Tensor, prompts: Sequence[str]) -> float:
    """Return the chance of a mean at least this far from zero where there is none (two-sided t); pass differences.

    Clips of one prompt count as one draw, as in the intervals: below 0.05 where the 95 % interval excludes zero. Of one
    draw alone nothing is known, so the chance is 1.
    """
    mean, deviations = float(values.double().mean()), Deviations.of(values, prompts)
    if mean == 0 or deviations.freedom == 0:
        return 1.0
    error = deviations.standard_error
    return 0.0 if error == 0 else float(2 * stats.t.sf(abs(mean) / error, deviations.freedom))


def holm(chances: Sequence[float]) -> list[float]:
    """Return Holm's corrected chances of many tests: below a level, with at most that chance of one error among all.

    The smallest is multiplied by the number of tests, the next by one less, and none falls below the one before it; no
    independence is needed (Holm 1979).
    """
    order = sorted(range(len(chances)), key=chances.__getitem__)
    corrected, highest = [0.0] * len(chances), 0.0
    for place, test in enumerate(order):
        highest = max(highest, min(1.0, (len(chances) - place) * chances[test]))
        corrected[test] = highest
    return corrected


def frechet_distance(features: Tensor, others: Tensor) -> float:
    """Return ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2·(Σ₁Σ₂)^½) between two sets of features [n, d] (Heusel et al. 2017).

    Biased upwards for few samples: compare only values of equal n.
    """
    # by hand: torchmetrics and pytorch-fid, which have it, come with the Inception network whose features they compare
    first, second = (sample.double().numpy() for sample in (features, others))
    spreads = np.cov(first.T), np.cov(second.T)
    # the root of a product of two covariances has real eigenvalues; what is imaginary in it is rounding
    shared = np.real(sqrtm(spreads[0] @ spreads[1]))
    return float(np.square(first.mean(0) - second.mean(0)).sum() + np.trace(spreads[0] + spreads[1] - 2 * shared))


def rank_correlation(values: Sequence[float], others: Sequence[float]) -> float:
    """Return Spearman's rank correlation, with mean ranks for ties."""
    return float(stats.spearmanr(values, others).statistic)
