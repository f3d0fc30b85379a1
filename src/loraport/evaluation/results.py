"""What an evaluation gives back, and the rows of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from loraport._version import __version__
from loraport.evaluation.collection import SeenClip
from loraport.evaluation.comparison import Difference, Mean
from loraport.evaluation.controls import OwnEffect, StyleControl
from loraport.evaluation.grid import Column, Grid, Key
from loraport.evaluation.metrics.metric import Metric
from loraport.evaluation.scores import Scores
from loraport.evaluation.weights import Missing

FORMAT = 1
"""Of the rows and the summary that are written."""


@dataclass(frozen=True)
class GridResult:
    """The numbers of one grid."""

    grid: Grid
    baseline: str | None
    metrics: tuple[Metric, ...]
    """Those that some clip has a number of."""
    clips: Mapping[tuple[str, Key], SeenClip]
    scores: Scores
    means: tuple[Mean, ...]
    differences: tuple[Difference, ...]
    controls: tuple[StyleControl, ...]
    effects: tuple[OwnEffect, ...]
    notes: tuple[str, ...]
    left_out: tuple[str, ...]

    def mean(self, metric: str, column: str) -> Mean | None:
        """Return a column's mean in a metric, or None."""
        return next((one for one in self.means if (one.metric, one.column) == (metric, column)), None)

    def difference(self, metric: str, column: str) -> Difference | None:
        """Return a column's difference from the baseline, or None."""
        return next((one for one in self.differences if (one.metric, one.column) == (metric, column)), None)

    def rows(self) -> list[dict[str, Any]]:
        """Return a row for each clip: which it is, and its score in every metric, None where it has none."""
        names = [metric.name for metric in self.metrics if metric.score is not None]
        rows = []
        for column in self.grid.columns:
            for key in self.grid.keys:
                clip = self.clips.get((column.name, key))
                if clip is None:
                    continue
                width, height = clip.size
                scores = {name: self.scores.by_clip[name].get(column.name, {}).get(key) for name in names}
                rows.append(
                    {
                        "grid": self.grid.name, "column": column.name, "prompt": key.prompt, "seed": key.seed,
                        "file": str(clip.path), "sha256": clip.digest, "frames": clip.frames, "width": width,
                        "height": height, "fps": clip.fps, **scores,
                    }
                )  # fmt: skip
        return rows

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON output: means, differences and controls."""
        return {
            "name": self.grid.name,
            "reference": self.grid.reference,
            "baseline": self.baseline,
            "columns": [{"name": one.name, "label": one.label, "clips": self._count(one)} for one in self.grid.columns],
            "metrics": [metric.name for metric in self.metrics],
            "means": [mean.as_json() for mean in self.means],
            "differences": [difference.as_json() for difference in self.differences],
            "style_controls": [control.as_json() for control in self.controls],
            "own_effects": [effect.as_json() for effect in self.effects],
            "notes": list(self.notes),
            "left_out": list(self.left_out),
        }

    def _count(self, column: Column) -> int:
        return sum(name == column.name for name, _ in self.clips)


@dataclass(frozen=True)
class EvaluationResult:
    """All grids of one command."""

    output: str
    grids: tuple[GridResult, ...]
    missing: tuple[Missing, ...]
    """What was asked for, and has to be fetched first."""
    skipped: tuple[str, ...]
    """What nobody asked for and could be had, a sentence each."""
    decoded: int
    """How many readings were made, and not recalled from the cache."""
    recalled: int
    seconds: float
    peak_rss_bytes: int

    @property
    def left_out(self) -> tuple[str, ...]:
        """What of the input was left out, a sentence each."""
        return tuple(sentence for grid in self.grids for sentence in grid.left_out)

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """The metrics of all grids."""
        return tuple({metric.name: metric for grid in self.grids for metric in grid.metrics}.values())

    def as_json(self) -> dict[str, Any]:
        """Return it for the JSON output and evaluation.json."""
        return {
            "format": FORMAT,
            "loraport": __version__,
            "output": self.output,
            "grids": [grid.as_json() for grid in self.grids],
            "missing": [{"metrics": list(m.metrics), "what": m.what, "command": m.command} for m in self.missing],
            "skipped": list(self.skipped),
            "left_out": list(self.left_out),
            "readings": {"made": self.decoded, "recalled": self.recalled},
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }
