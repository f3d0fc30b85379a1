"""Controls beside every style score: a score against source + LoRA also rewards undoing the distillation.

The source without any LoRA has nothing of the style, and still may look more like source + LoRA than the target does.
What it gains over the target without LoRA is what undoing alone is worth; a method that gains no more may have moved no
style at all. And the part of the LoRA's own effect: along the way that the LoRA takes on the source, how far a clip is
from the target without LoRA.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from loraport.evaluation.collection import SeenClip
from loraport.evaluation.comparison import shared_keys
from loraport.evaluation.grid import REFERENCE, SOURCE, TARGET, Grid, Key
from loraport.evaluation.metrics.metric import Metric
from loraport.evaluation.scores import Scores, Values
from loraport.sampling.statistics import Interval, mean_interval, ratio_interval


@dataclass(frozen=True)
class StyleControl:
    """What a style score of one column is worth."""

    metric: str
    column: str
    baseline: str
    gain: Interval
    """Over the baseline."""
    undoing: Interval | None
    """Of the source without LoRA over the target without LoRA; None where the columns are not there."""
    beyond: Interval | None
    """Gain minus undoing: above zero, more was won than undoing alone is worth."""

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON output."""
        parts = {"gain": self.gain, "undoing": self.undoing, "beyond": self.beyond}
        names = {"metric": self.metric, "column": self.column, "baseline": self.baseline}
        return {**names, **{name: part and part.as_json() for name, part in parts.items()}}


@dataclass(frozen=True)
class OwnEffect:
    """How much of the LoRA's own effect on the source a column shows, in percent, by one style's features."""

    metric: str
    column: str
    interval: Interval

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON output."""
        return {"metric": self.metric, "column": self.column, **self.interval.as_json()}


def style_controls(grid: Grid, metrics: Sequence[Metric], scores: Scores, baseline: str) -> list[StyleControl]:
    """Return the controls of every style score and column, the bare models left out."""
    found = []
    for metric in metrics:
        values = scores.by_clip.get(metric.name, {})
        if not metric.style or baseline not in values:
            continue
        for column in grid.measured:
            if column.name in (SOURCE, TARGET, baseline) or column.name not in values:
                continue
            bare = [values[name] for name in (SOURCE, TARGET) if name in values]
            keys = shared_keys([values[column.name], values[baseline], *bare])
            if not keys:
                continue
            gain = _difference(values[column.name], values[baseline], keys)
            undoing = _difference(bare[0], bare[1], keys) if len(bare) == 2 else None
            prompts = [key.prompt for key in keys]
            found.append(
                StyleControl(
                    metric.name, column.name, baseline, mean_interval(gain, prompts),
                    None if undoing is None else mean_interval(undoing, prompts),
                    None if undoing is None else mean_interval(gain - undoing, prompts),
                )
            )  # fmt: skip
    return found


def own_effects(grid: Grid, metrics: Sequence[Metric], clips: Mapping[tuple[str, Key], SeenClip]) -> list[OwnEffect]:
    """Return how much of the LoRA's own effect each column shows; nothing where a bare model's clips are missing."""
    found: list[OwnEffect] = []
    if grid.reference != REFERENCE or grid.column(SOURCE) is None or grid.column(TARGET) is None:
        return found
    for metric in metrics:
        if metric.vector is None:
            continue
        for column in grid.columns:
            if column.name == TARGET:
                continue
            parts = {key: part for key in grid.keys if (part := _along(metric, clips, column.name, key))}
            if not parts:
                continue
            along, whole = (torch.tensor([part[place] for part in parts.values()]) for place in (0, 1))
            if interval := ratio_interval(100 * along, whole, [key.prompt for key in parts]):
                found.append(OwnEffect(metric.name, column.name, interval))
    return found


def _along(
    metric: Metric, clips: Mapping[tuple[str, Key], SeenClip], column: str, key: Key
) -> tuple[float, float] | None:
    """Return ⟨clip − target, reference − source⟩ and ‖reference − source‖² of one clip's features."""
    features: list[Tensor] = []
    for name in (column, TARGET, REFERENCE, SOURCE):
        clip = clips.get((name, key))
        readings = None if clip is None else clip.readings.get(metric.instrument.name)
        if readings is None:
            return None
        features.append(readings[metric.vector or ""].double())
    frames = min(map(len, features))
    clip_features, target, reference, source = (one[:frames] for one in features)
    effect = reference - source
    return float(((clip_features - target) * effect).sum()), float(effect.square().sum())


def _difference(one: Values, other: Values, keys: Sequence[Key]) -> Tensor:
    return torch.tensor([one[key] - other[key] for key in keys], dtype=torch.float64)
