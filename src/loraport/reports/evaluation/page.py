"""The page of an evaluation, and its tables as files."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from loraport._version import __version__
from loraport.evaluation.grid import SOURCE, TARGET
from loraport.evaluation.metrics.metric import Metric
from loraport.evaluation.results import EvaluationResult, GridResult
from loraport.files.disk.atomic import write_whole
from loraport.reports.evaluation.tables import (
    Sweep,
    heading,
    latex,
    markdown,
    mean_cell,
    paper_table,
    shown_metrics,
    sweeps,
)
from loraport.reports.evaluation.words import (
    NO_CONTROLS,
    WHY_CONTROLS,
    change,
    findings,
    interval_words,
    number,
)
from loraport.reports.rendering import render
from loraport.sampling.statistics import Interval

EVALUATION_FILES = ("metrics.jsonl", "metrics.csv", "evaluation.json", "table.md", "table.tex")
"""What an evaluation leaves beside its page; the first marks a folder as one of ours."""
_MARGIN = 0.04
_WIDTH, _HEIGHT, _EDGE = 320, 150, 34
"""Of a sweep's plot, and what its labels take."""


@dataclass(frozen=True)
class DifferenceBar:
    """A difference as a dot with its interval, in percent of a track's width."""

    label: str
    left: float
    width: float
    dot: float
    verdict: str
    words: str
    control: bool
    beyond: bool
    """Whether its value lies outside of the track."""


def write_evaluation_page(result: EvaluationResult, folder: Path) -> Path:
    """Write index.html, table.md and table.tex; return the page. Raises OutputError."""
    write_whole(folder / "table.md", markdown(result).encode())
    write_whole(folder / "table.tex", latex(result).encode())
    page = folder / "index.html"
    render(
        "evaluation.html.jinja",
        page,
        package="loraport.reports.evaluation",
        title=" and ".join(grid.grid.name for grid in result.grids[:2])
        + (" and others" if len(result.grids) > 2 else ""),
        grids=[_grid_section(grid) for grid in result.grids],
        overview=_overview(result),
        metrics=[(heading(metric), metric.words, _needs(metric)) for metric in result.metrics],
        missing=[str(one) for one in result.missing],
        skipped=result.skipped,
        files=EVALUATION_FILES,
        why_controls=WHY_CONTROLS,
        facts={
            "Clips": str(sum(len(grid.clips) for grid in result.grids)),
            "Took": f"{result.seconds:.1f} s; {result.recalled} readings were known, {result.decoded} were made",
            "Memory": f"{result.peak_rss_bytes / 1e9:.2f} GB",
            "Made by": f"loraport {__version__}",
        },
    )
    return page


def _overview(result: EvaluationResult) -> dict[str, Any] | None:
    """Return the table in the paper's layout, where it is not the same as the only grid's own."""
    if len(result.grids) == 1 and shown_metrics(result.metrics) == list(result.metrics):
        return None
    table = paper_table(result)
    return {"title": table.title, "groups": table.groups, "headings": table.headings, "rows": table.rows}


def _grid_section(grid: GridResult) -> dict[str, Any]:
    """Return what the template shows of one grid."""
    sentences = findings(grid)
    return {
        "name": grid.grid.name,
        "findings": [one for one in sentences if one != NO_CONTROLS]
        or ["There is one column, so nothing is compared."],
        "warning": NO_CONTROLS if NO_CONTROLS in sentences else "",
        "reference": grid.grid.reference,
        "baseline": grid.baseline,
        "columns": [(one.label, _role(grid, one.name)) for one in grid.grid.columns],
        "rows": [
            (heading(metric), [_number(grid, metric, one.name) for one in grid.grid.columns]) for metric in grid.metrics
        ],
        "charts": [chart for metric in grid.metrics if (chart := _chart(grid, metric))],
        "controls": _controls(grid),
        "effects": [
            (one.column, _title(grid, one.metric), interval_words(one.interval, 0, "%")) for one in grid.effects
        ],
        "sweeps": [_sweep_plots(grid, sweep) for sweep in sweeps(grid)],
        "notes": grid.notes,
        "left_out": grid.left_out,
        "clips": _clip_table(grid),
    }


def _role(grid: GridResult, column: str) -> str:
    if column == grid.grid.reference:
        return "reference"
    return "control" if column in (SOURCE, TARGET) else "baseline" if column == grid.baseline else "moved"


def _number(grid: GridResult, metric: Metric, column: str) -> dict[str, Any]:
    cell, difference = mean_cell(grid, metric, column), grid.difference(metric.name, column)
    text = "reference" if cell.text == "–" and column == grid.grid.reference else cell.text
    words = "" if difference is None else interval_words(difference.interval, metric.digits, "", signed=True)
    return {"value": text, "spread": cell.spread, "best": cell.best, "change": words,
            "verdict": "" if difference is None else difference.verdict}  # fmt: skip


def _chart(grid: GridResult, metric: Metric) -> dict[str, Any] | None:
    """Return a metric's differences on one track; None where nothing differs, or it has no direction."""
    found = [one for one in grid.differences if one.metric == metric.name]
    if metric.better is None or not any(one.interval.low or one.interval.high for one in found):
        return None
    moved = [one for one in found if one.column not in (SOURCE, TARGET)] or found
    ends = [0.0]  # of what was moved: the bare models are far away where a style is measured
    for one in moved:
        ends += [end for end in (one.interval.low, one.interval.value, one.interval.high) if math.isfinite(end)]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        share = min(max((value - low) / span, 0.0), 1.0)
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * share), 2)

    bars = [
        DifferenceBar(
            one.column, place(one.interval.low), round(place(one.interval.high) - place(one.interval.low), 2),
            place(one.interval.value), one.verdict, change(metric, one.interval), one.column in (SOURCE, TARGET),
            not low <= one.interval.value <= max(ends),
        )
        for one in found
    ]  # fmt: skip
    title = f"closeness to {metric.ideal:g} in {metric.title}" if metric.better == "ideal" else heading(metric)
    return {"title": title, "zero": place(0.0), "bars": bars}


def _controls(grid: GridResult) -> list[tuple[str, ...]]:
    titles = {metric.name: metric for metric in grid.metrics}
    rows = []
    for one in grid.controls:
        parts = [
            "–" if part is None else change(titles[one.metric], part) for part in (one.gain, one.undoing, one.beyond)
        ]
        rows.append((one.column, titles[one.metric].title, *parts))
    return rows


def _title(grid: GridResult, name: str) -> str:
    return next(metric.title for metric in grid.metrics if metric.name == name)


def _needs(metric: Metric) -> str:
    weights = ", ".join(f"{one.repo} ({one.licence})" for one in metric.instrument.weights)
    version = f"{metric.instrument.name}, version {metric.instrument.version}"
    papers = f"; in the tables of {' and '.join(metric.papers)}" if metric.papers else ""
    return f"{version}{'; weights ' + weights if weights else ''}{papers}"


def _clip_table(grid: GridResult) -> dict[str, Any]:
    shown = [metric for metric in grid.metrics if metric.score is not None]
    rows = []
    for row in grid.rows():
        scores = [row[metric.name] for metric in shown]
        cells = [
            "–" if score is None else number(score, metric.digits) for metric, score in zip(shown, scores, strict=True)
        ]
        rows.append([row["column"], row["prompt"], row["seed"], *cells])
    return {"headings": ["Column", "Prompt", "Seed", *map(heading, shown)], "rows": rows}


def _sweep_plots(grid: GridResult, sweep: Sweep) -> dict[str, Any]:
    """Return the plots of a sweep: points in a picture's pixels, each with its interval."""
    plots = []
    for name, intervals in sweep.means.items():
        metric = next(one for one in grid.metrics if one.name == name)
        plots.append({"title": heading(metric), **_plot(sweep.values, intervals, metric.digits)})
    return {"name": sweep.name or "the column", "plots": plots, "width": _WIDTH, "height": _HEIGHT}


def _plot(values: tuple[float, ...], intervals: tuple[Interval, ...], digits: int) -> dict[str, Any]:
    ends = [end for one in intervals for end in (one.low, one.value, one.high) if math.isfinite(end)]
    low, high = min(ends), max(ends)
    span, reach = (high - low) or 1.0, (values[-1] - values[0]) or 1.0

    def across(value: float) -> float:
        return round(_EDGE + (value - values[0]) / reach * (_WIDTH - _EDGE - 12), 1)

    def down(value: float) -> float:
        share = (min(max(value, low), high) - low) / span
        return round(12 + (1 - share) * (_HEIGHT - 36), 1)

    points = [
        (across(value), down(one.value), down(one.low), down(one.high), f"{value:g}")
        for value, one in zip(values, intervals, strict=True)
    ]
    return {"points": points, "line": " ".join(f"{x},{y}" for x, y, *_ in points), "base": _HEIGHT - 8,
            "ticks": [(down(end), number(end, digits)) for end in (low, high)]}  # fmt: skip
