"""Scores: one number for each clip and metric, and one for each column where a metric compares whole sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loraport.evaluation.collection import SeenClip
from loraport.evaluation.grid import Grid, Key, clip_name
from loraport.evaluation.metrics.metric import Metric

Values = Mapping[Key, float]


@dataclass(frozen=True)
class Scores:
    """The scores of one grid."""

    by_clip: Mapping[str, Mapping[str, Values]]
    """Metric, column, clip."""
    by_column: Mapping[str, Mapping[str, float]]
    """Metric, column: of metrics that compare sets."""
    notes: tuple[str, ...] = field(default=())
    """What is unequal between clips and their references."""


def score_grid(grid: Grid, clips: Mapping[tuple[str, Key], SeenClip], metrics: Sequence[Metric]) -> Scores:
    """Return all scores; a clip that has no such number, such as the motion of a still picture, is not among them."""
    by_clip: dict[str, dict[str, Values]] = {}
    by_column: dict[str, dict[str, float]] = {}
    for metric in metrics:
        if metric.score is not None:
            by_clip[metric.name] = {
                column.name: found
                for column in grid.columns
                if (found := _column_scores(metric, grid, column.name, clips))
            }
        else:
            by_column[metric.name] = {
                column.name: value
                for column in grid.measured
                if not math.isnan(value := whole_score(metric, *pairs_of(metric, grid, column.name, clips)))
            }
    return Scores(by_clip, by_column, tuple(_unequal(grid, clips)))


def _column_scores(
    metric: Metric, grid: Grid, column: str, clips: Mapping[tuple[str, Key], SeenClip]
) -> dict[Key, float]:
    compared = "reference" in metric.needs
    if metric.score is None or (compared and column == grid.reference):
        return {}
    scores = {}
    for key in grid.keys:
        clip, reference = clips.get((column, key)), clips.get((grid.reference or "", key))
        readings = None if clip is None else clip.readings.get(metric.instrument.name)
        if clip is None or readings is None or clip.frames < metric.least_frames or (compared and reference is None):
            continue
        beside = reference.readings.get(metric.instrument.name) if reference and not metric.instrument.beside else None
        if not math.isnan(value := metric.score(readings, beside)):
            scores[key] = value
    return scores


def pairs_of(
    metric: Metric, grid: Grid, column: str, clips: Mapping[tuple[str, Key], SeenClip]
) -> tuple[list[Key], list[SeenClip], list[SeenClip]]:
    """Return the keys of which column and reference both have readings, and the clips of each."""
    name = metric.instrument.name
    found = [
        (key, own, other)
        for key in grid.keys
        if (own := clips.get((column, key)))
        and (other := clips.get((grid.reference or "", key)))
        and name in own.readings
        and name in other.readings
    ]
    return [key for key, _, _ in found], [own for _, own, _ in found], [other for _, _, other in found]


def whole_score(metric: Metric, keys: Sequence[Key], own: Sequence[SeenClip], others: Sequence[SeenClip]) -> float:
    """Return the one number of a column; NaN where there are no clips."""
    if metric.whole is None or not keys:
        return math.nan
    name = metric.instrument.name
    return metric.whole([clip.readings[name] for clip in own], [clip.readings[name] for clip in others])


def _unequal(grid: Grid, clips: Mapping[tuple[str, Key], SeenClip]) -> list[str]:
    """Say where clips and their references differ in length, speed or size: once a column, with one example."""
    sentences = []
    for column in grid.measured:
        found: dict[str, list[str]] = {}
        for key in grid.keys:
            clip, other = clips.get((column.name, key)), clips.get((grid.reference or "", key))
            if clip is None or other is None:
                continue
            if clip.size != other.size:
                sizes = " against ".join(f"{width} × {height}" for width, height in (clip.size, other.size))
                text = f"{sizes} pixels: not compared pixel by pixel"
                found.setdefault("size", []).append(f"{clip_name(key)} has {text}")
            if clip.fps != other.fps and 1 not in (clip.frames, other.frames):
                text = f"{clip.fps:g} against {other.fps:g} frames a second: frames are paired by time"
                found.setdefault("speed", []).append(f"{clip_name(key)} runs at {text}")
            elif clip.frames != other.frames:
                text = f"{clip.frames} against {other.frames} frames: as many as both have are compared pixel by pixel"
                found.setdefault("length", []).append(f"{clip_name(key)} has {text}")
        for what, examples in found.items():
            others = f" (and {len(examples) - 1} more clips of another {what})" if len(examples) > 1 else ""
            sentences.append(f"{column.name}: {examples[0]}{others}")
    return sentences
