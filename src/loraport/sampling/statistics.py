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

    def as_json(self) -> dict[str, float | None]:
        """For the JSON output; an end that one clip alone leaves open is None."""
        ends = {"low": self.low, "high": self.high}
        return {"value": self.value, **{name: end if math.isfinite(end) else None for name, end in ends.items()}}


@dataclass(frozen=True)
class Deviations:
    """Deviations from a mean, summed over the clips of a prompt, since clips of one prompt are no independent draws."""

    sums: Float[np.ndarray, " p"]
    clips: int

    @classmethod
    def of(cls, values: Float[Tensor, " n"], prompts: Sequence[str]) -> Deviations:
        """Deviations of `values` from their mean. With one prompt alone its clips count as independent."""
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


def mean_interval(values: Float[Tensor, " n"], prompts: Sequence[str]) -> Interval:
    """Return the mean of values with its t interval."""
    found = Deviations.of(values, prompts)
    return _around(float(values.double().mean()), found.standard_error, _quantile(found.freedom))


def simultaneous_intervals(values: Sequence[Float[Tensor, " n"]], prompts: Sequence[str]) -> list[Interval]:
    """Return the mean of each of several paired values; all intervals hold together, with 95 % confidence.

    The bound is that of the largest of several |t| with the values' own correlations (as Dunnett's), drawn with a fixed
    seed; for one value, or several equal ones, it is Student's.
    """
    found = [Deviations.of(one, prompts) for one in values]
    moving = [one.sums / np.linalg.norm(one.sums) for one in found if np.linalg.norm(one.sums) > 0]
    freedom = found[0].freedom if found else 0
    bound = _quantile(freedom)
    if len(moving) > 1 and freedom > 0:
        generator = np.random.default_rng(0)
        normal = np.abs(generator.standard_normal((DRAWS, len(moving[0]))) @ np.stack(moving).T)
        chi = np.sqrt(generator.chisquare(freedom, DRAWS) / freedom)
        bound = max(bound, float(np.quantile(normal.max(axis=1) / chi, LEVEL)))
    return [
        _around(float(one.double().mean()), its.standard_error, bound) for one, its in zip(values, found, strict=True)
    ]


def ratio_interval(above: Float[Tensor, " n"], below: Float[Tensor, " n"], prompts: Sequence[str]) -> Interval | None:
    """Return Σ above / Σ below of paired values, by the delta method; None where nothing is below the line."""
    whole = float(below.double().sum())
    if whole == 0:
        return None
    ratio = float(above.double().sum()) / whole
    found = Deviations.of(above.double() - ratio * below.double(), prompts)
    return _around(ratio, found.standard_error * found.clips / abs(whole), _quantile(found.freedom))


def sign_test(better: int, worse: int) -> float:
    """Two-sided: how likely a split at least this uneven is among fair coins; ties are left out."""
    tosses = better + worse
    return float(stats.binomtest(better, tosses).pvalue) if tosses else 1.0


def _quantile(freedom: int) -> float:
    return float(stats.t.ppf((1 + LEVEL) / 2, freedom)) if freedom > 0 else math.inf


def _around(value: float, error: float, bound: float) -> Interval:
    """A value that never varies has no error, whatever the bound."""
    reach = 0.0 if error == 0 else error * bound
    return Interval(value, value - reach, value + reach)
