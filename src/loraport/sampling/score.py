"""Scores: the end error of every candidate on the same clips, compared with direct reuse of the adapter."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from loraport.sampling.end_error import NO_UPDATES, EndEffect
from loraport.sampling.pair import Clips, Pair, Updates
from loraport.sampling.statistics import Interval, mean_interval, ratio_interval, sign_test, simultaneous_intervals


@dataclass(frozen=True)
class Score:
    """The end error of one candidate."""

    label: str
    error: Interval
    left: Interval | None
    """The error as a share of the bare target's: how much of the adapter's effect is missing or wrong."""
    against_direct: Interval
    """Mean difference of the errors clip by clip, below zero is better; the candidates' intervals hold together."""
    of_direct: Interval | None
    """The error as a share of direct reuse's."""
    better: int
    worse: int
    p: float
    """Of the two-sided sign test over clips."""

    @property
    def surely_better(self) -> bool:
        """Whether the interval of the difference lies below zero."""
        return self.against_direct.sign < 0

    def as_json(self) -> dict[str, Any]:
        """Return the candidate's row in the JSON output."""
        intervals = {name: getattr(self, name) for name in ("error", "left", "against_direct", "of_direct")}
        return {
            "candidate": self.label,
            **{name: None if interval is None else interval.as_json() for name, interval in intervals.items()},
            "better": self.better,
            "worse": self.worse,
            "p": self.p,
        }


def score_passes(pair: Pair, clips: int, candidates: int) -> int:
    """Return the passes of a score with nothing in the store: two chains, the bare target, direct reuse, candidates."""
    return clips * (2 * pair.passes.source + (candidates + 2) * pair.passes.target)


def score(effect: EndEffect, direct: Updates, candidates: Mapping[str, Updates]) -> tuple[Score, ...]:
    """Return the candidates' scores, in their order; all see the same noise and prompts, so errors are paired."""
    bare, as_it_is = (effect.errors(updates, keep=True) for updates in (NO_UPDATES, direct))
    errors = {label: effect.errors(updates, keep=True) for label, updates in candidates.items()}
    return compare(errors, as_it_is, bare, effect.pair.prompts(effect.clips))


def compare(errors: Mapping[str, Tensor], direct: Tensor, bare: Tensor, prompts: tuple[str, ...]) -> tuple[Score, ...]:
    """Return scores from the errors of each clip [n]."""
    differences = simultaneous_intervals([error - direct for error in errors.values()], prompts)
    rows = []
    for (label, error), difference in zip(errors.items(), differences, strict=True):
        better, worse = int((error < direct).sum()), int((error > direct).sum())
        rows.append(
            Score(
                label,
                mean_interval(error, prompts),
                ratio_interval(error, bare, prompts),
                difference,
                ratio_interval(error, direct, prompts),
                better,
                worse,
                sign_test(better, worse),
            )
        )
    return tuple(rows)


def judged_clips(count: int, seed: int = 0) -> Clips:
    """Return the clips for scores and guards; nothing is ever fitted to them."""
    return Clips("judge", 0, count, seed)
