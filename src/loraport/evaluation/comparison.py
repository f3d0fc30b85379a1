"""Means of columns and their differences, in pairs of clips, with intervals that know which clips share a prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from loraport.evaluation.collection import SeenClip
from loraport.evaluation.grid import SOURCE, TARGET, Grid, Key
from loraport.evaluation.metrics.metric import Metric
from loraport.evaluation.scores import Scores, Values, pairs_of, whole_score
from loraport.sampling.statistics import Interval, mean_interval, simultaneous_intervals


@dataclass(frozen=True)
class Mean:
    """A column's mean in one metric."""

    metric: str
    column: str
    interval: Interval
    clips: int

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON output."""
        return {"metric": self.metric, "column": self.column, **self.interval.as_json(), "clips": self.clips}


@dataclass(frozen=True)
class Difference:
    """How much a column differs from the baseline in one metric, over the clips that all compared columns have.

    Of a metric with an ideal value, how much closer it is to that value.
    """

    metric: str
    column: str
    baseline: str
    interval: Interval
    clips: int
    prompts: int
    verdict: str
    """"better" or "worse" where the interval is all on one side of zero and the metric has a direction, else ""."""

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON output."""
        names = {"metric": self.metric, "column": self.column, "baseline": self.baseline}
        counts = {"clips": self.clips, "prompts": self.prompts, "verdict": self.verdict}
        return {**names, **self.interval.as_json(), **counts}


def column_means(
    grid: Grid, metrics: Sequence[Metric], scores: Scores, clips: Mapping[tuple[str, Key], SeenClip]
) -> list[Mean]:
    """Return the means of all columns in all metrics."""
    means = []
    for metric in metrics:
        for column in grid.columns:
            if metric.whole is not None:
                value = scores.by_column[metric.name].get(column.name)
                if value is not None:
                    keys, own, others = pairs_of(metric, grid, column.name, clips)
                    interval = _jackknife(metric, keys, [own], others, value)
                    means.append(Mean(metric.name, column.name, interval, len(keys)))
            elif values := scores.by_clip[metric.name].get(column.name):
                means.append(Mean(metric.name, column.name, _mean(values), len(values)))
    return means


def differences(
    grid: Grid,
    metrics: Sequence[Metric],
    scores: Scores,
    clips: Mapping[tuple[str, Key], SeenClip],
    baseline: str,
) -> list[Difference]:
    """Return every other column's difference from the baseline.

    The intervals of one metric hold together for all that was moved; those of the bare models stand alone.
    """
    found: list[Difference] = []
    for metric in metrics:
        if metric.whole is not None:
            found += _whole_differences(grid, metric, scores, clips, baseline)
            continue
        values = scores.by_clip[metric.name]
        if baseline not in values:
            continue
        others = [column.name for column in grid.measured if column.name in values and column.name != baseline]
        moved = [name for name in others if name not in (SOURCE, TARGET)]
        for together in (moved, *([name] for name in others if name not in moved)):
            found += _joint_differences(metric, values, together, baseline)
    order = {column.name: place for place, column in enumerate(grid.columns)}
    places = {metric.name: place for place, metric in enumerate(metrics)}
    return sorted(found, key=lambda one: (places[one.metric], order[one.column]))


def _joint_differences(
    metric: Metric, values: Mapping[str, Values], columns: Sequence[str], baseline: str
) -> list[Difference]:
    """Return the differences of some columns over the clips that all of them have; their intervals hold together."""
    keys = shared_keys([values[baseline], *(values[name] for name in columns)]) if columns else []
    if not keys:
        return []
    changes = [
        torch.tensor([_change(metric, values[name][key], values[baseline][key]) for key in keys], dtype=torch.float64)
        for name in columns
    ]
    prompts = [key.prompt for key in keys]
    return [
        Difference(metric.name, name, baseline, interval, len(keys), len(set(prompts)), _verdict(metric, interval))
        for name, interval in zip(columns, simultaneous_intervals(changes, prompts), strict=True)
    ]


def shared_keys(columns: Sequence[Values]) -> list[Key]:
    """Return the clips that all columns have a score of, in order."""
    return sorted(set.intersection(*({*values} for values in columns))) if columns else []


def _change(metric: Metric, value: float, other: float) -> float:
    return metric.gain(value, other) if metric.better == "ideal" else value - other


def _verdict(metric: Metric, interval: Interval) -> str:
    sign = interval.sign * (-1 if metric.better == "lower" else 1)
    return "" if metric.better is None or not sign else "better" if sign > 0 else "worse"


def _mean(values: Values) -> Interval:
    keys = sorted(values)
    return mean_interval(torch.tensor([values[key] for key in keys], dtype=torch.float64), [key.prompt for key in keys])


def _whole_differences(
    grid: Grid, metric: Metric, scores: Scores, clips: Mapping[tuple[str, Key], SeenClip], baseline: str
) -> list[Difference]:
    """Return the differences of a metric that compares sets, over the clips of both columns; each by itself."""
    values, found = scores.by_column[metric.name], []
    for column in (column.name for column in grid.measured):
        if column == baseline or column not in values or baseline not in values:
            continue
        pairs = {name: pairs_of(metric, grid, name, clips) for name in (column, baseline)}
        keys = [key for key in pairs[column][0] if key in set(pairs[baseline][0])]
        if not keys:
            continue
        own, base = ([clips[name, key] for key in keys] for name in (column, baseline))
        others = [clips[grid.reference or "", key] for key in keys]
        value = _change(metric, whole_score(metric, keys, own, others), whole_score(metric, keys, base, others))
        interval = _jackknife(metric, keys, [own, base], others, value)
        prompts = {key.prompt for key in keys}
        found.append(
            Difference(metric.name, column, baseline, interval, len(keys), len(prompts), _verdict(metric, interval))
        )
    return found


def _jackknife(
    metric: Metric, keys: Sequence[Key], columns: Sequence[Sequence[SeenClip]], others: Sequence[SeenClip], value: float
) -> Interval:
    """Return the interval of a score of sets, or of two columns' difference in it, by leaving out a prompt at a time.

    With one prompt alone, a clip at a time.
    """
    groups = [key.prompt for key in keys]
    if len(set(groups)) < 2:
        groups = [key.seed for key in keys]
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        return Interval(value, -math.inf, math.inf)
    pseudo = []
    for name in names:
        kept = [place for place, group in enumerate(groups) if group != name]
        scores = [
            whole_score(metric, [keys[i] for i in kept], [own[i] for i in kept], [others[i] for i in kept])
            for own in columns
        ]
        without = scores[0] if len(scores) == 1 else _change(metric, scores[0], scores[1])
        pseudo.append(len(names) * value - (len(names) - 1) * without)
    interval = mean_interval(torch.tensor(pseudo, dtype=torch.float64), names)
    reach = interval.high - interval.value
    return Interval(value, value - reach, value + reach)
