"""How sure a difference is: t intervals that know which clips share a prompt, simultaneous over candidates; sign test.

A bootstrap of a few clips is too sure: of two clips one in four would be called surely better where nothing is, of
eight one in nineteen, for a nominal one in forty. Student's t keeps its level from two clips on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from scipy import stats
from torch import Tensor

LEVEL = 0.95
DRAWS = 20000


@dataclass(frozen=True)
class Interval:
    """A value and where it may lie, with 95 % confidence."""

    value: float
    low: float
    high: float

    @property
    def sign(self) -> int:
        """1 where all of the interval is above zero, -1 where all is below, else 0."""
        return int(self.low > 0) - int(self.high < 0)

    def as_json(self) -> dict[str, float | None]:
        """Return it for the JSON output; an end that one clip alone leaves open is None."""
        ends = {"low": self.low, "high": self.high}
        return {"value": self.value, **{name: end if math.isfinite(end) else None for name, end in ends.items()}}


@dataclass(frozen=True)
class Deviations:
    """Deviations from a mean, summed over the clips of a prompt: clips of one prompt are not independent draws."""

    sums: Float[np.ndarray, " p"]
    clips: int

    @classmethod
    def of(cls, values: Float[Tensor, " n"], prompts: Sequence[str]) -> Deviations:
        """Return the deviations of `values` from their mean. With one prompt alone its clips count as independent."""
        centred = (values.double() - values.double().mean()).cpu().numpy()
        known = list(dict.fromkeys(prompts))
        if len(known) < 2:
            return cls(centred, len(centred))
        groups = np.array([known.index(prompt) for prompt in prompts])
        return cls(np.bincount(groups, weights=centred), len(centred))

    @property
    def freedom(self) -> int:
        """Degrees of freedom: one less than the independent draws."""
        return len(self.sums) - 1

    @property
    def standard_error(self) -> float:
        """Of the mean over clips; infinite where one draw alone says nothing of it."""
        if self.freedom == 0:
            return math.inf
        count = len(self.sums)
        return math.sqrt(float(np.square(self.sums).sum()) * count / (count - 1)) / self.clips


def standard_error(values: Float[Tensor, " n"], prompts: Sequence[str]) -> float:
    """Return the standard error of the mean over clips; infinite for one clip."""
    return Deviations.of(values, prompts).standard_error


def mean_interval(values: Float[Tensor, " n"], prompts: Sequence[str]) -> Interval:
    """Return the mean of values with its t interval; pass differences for a paired comparison."""
    deviations = Deviations.of(values, prompts)
    return _around(float(values.double().mean()), deviations.standard_error, _quantile(deviations.freedom))


def simultaneous_intervals(values: Sequence[Float[Tensor, " n"]], prompts: Sequence[str]) -> list[Interval]:
    """Return the mean of each of several paired values; all intervals hold together, with 95 % confidence.

    The bound is that of the largest of several |t| with the values' own correlations (as Dunnett's), drawn with a fixed
    seed; for one value, or several equal ones, it is Student's.
    """
    deviations = [Deviations.of(each, prompts) for each in values]
    # a candidate that never differs from direct reuse has no direction, and would only widen the others' intervals
    directions = [each.sums / np.linalg.norm(each.sums) for each in deviations if np.linalg.norm(each.sums) > 0]
    freedom = deviations[0].freedom if deviations else 0
    bound = _quantile(freedom)
    if len(directions) > 1 and freedom > 0:
        generator = np.random.default_rng(0)
        # normals projected on the directions have the correlations of the values; scipy's multivariate t would want
        # their matrix, which is singular where there are more candidates than clips
        normal = np.abs(generator.standard_normal((DRAWS, len(directions[0]))) @ np.stack(directions).T)
        chi = np.sqrt(generator.chisquare(freedom, DRAWS) / freedom)
        # never below Student's for one value, which a finite number of draws can miss from below
        bound = max(bound, float(np.quantile(normal.max(axis=1) / chi, LEVEL)))
    return [
        _around(float(each.double().mean()), its.standard_error, bound)
        for each, its in zip(values, deviations, strict=True)
    ]


def ratio_interval(above: Float[Tensor, " n"], below: Float[Tensor, " n"], prompts: Sequence[str]) -> Interval | None:
    """Return Σ above / Σ below of paired values, by the delta method; None where Σ below is zero."""
    whole = float(below.double().sum())
    if whole == 0:
        return None
    ratio = float(above.double().sum()) / whole
    deviations = Deviations.of(above.double() - ratio * below.double(), prompts)
    # standard_error is of a mean, the ratio's is of sums: hence the number of clips
    error = deviations.standard_error * deviations.clips / abs(whole)
    return _around(ratio, error, _quantile(deviations.freedom))


def sign_test(better: int, worse: int) -> float:
    """Return the chance of a split at least this uneven, to either side, among fair coins; leave ties out."""
    tosses = better + worse
    return float(stats.binomtest(better, tosses).pvalue) if tosses else 1.0


def _quantile(freedom: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) if freedom > 0 else math.inf


def _around(value: float, error: float, bound: float) -> Interval:
    reach = 0.0 if error == 0 else error * bound  # a value that never varies is exact, even where the bound is infinite
    return Interval(value, value - reach, value + reach)
