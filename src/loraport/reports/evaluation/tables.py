"""Tables of an evaluation as Markdown and LaTeX: the layout of the paper's Tables 1–4, and all of each grid."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loraport.evaluation.comparison import Mean
from loraport.evaluation.grid import SOURCE, TARGET
from loraport.evaluation.metrics.metric import Metric
from loraport.evaluation.results import EvaluationResult, GridResult
from loraport.reports.evaluation.words import findings, interval_words, number
from loraport.sampling.statistics import Interval

PAPER = "CASA"
_SETTING = re.compile(r"(?P<name>.*?[^\W\d_])?[-_:=* ]*(?P<value>\d+(?:\.\d+)?)")
_LATEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "−": "$-$", "±": r"$\pm$", "–": "--", "×": r"$\times$",
    "→": r"$\rightarrow$",
}  # fmt: skip


@dataclass(frozen=True)
class Cell:
    """A number of a table."""

    text: str
    spread: str = ""
    """Half of its interval's width."""
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A table: over its headings perhaps groups of columns, each with how many it spans."""

    title: str
    groups: tuple[tuple[str, int], ...]
    headings: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Sweep:
    """Columns that differ in one number alone, as in the paper's Fig. 8: means over the number, metric by metric."""

    name: str
    values: tuple[float, ...]
    columns: tuple[str, ...]
    means: Mapping[str, tuple[Interval, ...]]


def paper_table(result: EvaluationResult) -> Table:
    """Return all grids in one table, as the paper's Tables 1–4: a row a column, two or more numbers a grid.

    They are the paper's metrics where they were measured, else those of style, content and pixels.
    """
    metrics = shown_metrics(result.metrics)
    names = list(dict.fromkeys(column.name for grid in result.grids for column in grid.grid.columns))
    labels = {column.name: column.label for grid in result.grids for column in grid.grid.columns}
    rows = []
    for name in names:
        cells = [mean_cell(grid, metric, name) for grid in result.grids for metric in metrics]
        rows.append((labels[name], tuple(cells)))
    groups = tuple((grid.grid.name, len(metrics)) for grid in result.grids)
    headings = tuple(heading(metric) for _ in result.grids for metric in metrics)
    return Table("In the layout of the paper's Tables 1–4", groups, headings, tuple(rows))


def shown_metrics(metrics: Sequence[Metric]) -> list[Metric]:
    """Return the metrics of the table in the paper's layout."""
    if papers := [metric for metric in metrics if PAPER in metric.papers]:
        return papers
    own = [metric for metric in metrics if metric.name in ("style", "content", "psnr")]
    return own or list(metrics)[:3]


def means_table(grid: GridResult) -> Table:
    """Return every column's mean in every metric."""
    rows = [
        (column.label, tuple(mean_cell(grid, metric, column.name) for metric in grid.metrics))
        for column in grid.grid.columns
    ]
    return Table(grid.grid.name, (), tuple(map(heading, grid.metrics)), tuple(rows))


def differences_table(grid: GridResult) -> Table | None:
    """Return every column's difference from the baseline, or None where nothing is compared."""
    if not grid.differences:
        return None
    rows = []
    for column in grid.grid.measured:
        found = [grid.difference(metric.name, column.name) for metric in grid.metrics]
        if any(found):
            cells = [
                Cell("–") if one is None else _interval_cell(metric, one.interval, one.verdict == "better")
                for metric, one in zip(grid.metrics, found, strict=True)
            ]
            rows.append((column.label, tuple(cells)))
    return Table(f"{grid.grid.name}: against {grid.baseline}", (), tuple(map(heading, grid.metrics)), tuple(rows))


def sweeps(grid: GridResult) -> list[Sweep]:
    """Return the sets of three or more columns whose names differ in one number alone: `undo:0.1`, `undo:0.25`, …"""
    found: dict[str, list[tuple[float, str]]] = {}
    for column in grid.grid.measured:
        if match := _SETTING.fullmatch(column.name):
            found.setdefault(match["name"] or "", []).append((float(match["value"]), column.name))
    result = []
    for name, columns in found.items():
        if len({value for value, _ in columns}) < 3:
            continue
        columns.sort()
        means: dict[str, tuple[Interval, ...]] = {}
        for metric in shown_metrics(grid.metrics):
            row = [grid.mean(metric.name, column) for _, column in columns]
            known = tuple(one.interval for one in row if one is not None)
            if len(known) == len(columns):
                means[metric.name] = known
        values, names = tuple(value for value, _ in columns), tuple(column for _, column in columns)
        result.append(Sweep(name, values, names, means))
    return [sweep for sweep in result if sweep.means]


def mean_cell(grid: GridResult, metric: Metric, column: str) -> Cell:
    """Return a column's mean in a metric; bold is the best of what was moved, bare models left out."""
    mean = grid.mean(metric.name, column)
    if mean is None:
        return Cell("–")
    reach = mean.interval.high - mean.interval.value
    spread = number(reach, metric.digits) if math.isfinite(reach) else ""
    return Cell(number(mean.interval.value, metric.digits), spread, _is_best(grid, metric, mean))


def heading(metric: Metric) -> str:
    """Return a metric's heading: title, unit, and which way is better."""
    way = {"higher": " ↑", "lower": " ↓", "ideal": f" → {metric.ideal or 0:g}"}.get(metric.better or "", "")
    return f"{metric.title}{', ' + metric.unit if metric.unit else ''}{way}"


def _is_best(grid: GridResult, metric: Metric, mean: Mean) -> bool:
    rivals = [
        one
        for column in grid.grid.measured
        if column.name not in (SOURCE, TARGET) and (one := grid.mean(metric.name, column.name)) is not None
    ]
    if metric.better is None or len(rivals) < 2 or mean not in rivals:
        return False
    gains = [metric.gain(mean.interval.value, one.interval.value) for one in rivals]
    return min(gains) >= 0 and max(gains) > 0


def _interval_cell(metric: Metric, interval: Interval, better: bool) -> Cell:
    return Cell(interval_words(interval, metric.digits, "", signed=True), best=better)


def markdown(result: EvaluationResult) -> str:
    """Return all tables as Markdown."""
    parts = ["# Evaluation\n"]
    if len(result.grids) > 1 or shown_metrics(result.metrics) != list(result.metrics):
        table = paper_table(result)
        parts += [f"## {table.title}\n", _grouped_markdown(table)]
    for grid in result.grids:
        parts.append(f"## {_plain(grid.grid.name)}\n")
        parts += [f"- {_plain(sentence)}" for sentence in findings(grid)] + [""]
        parts.append(_markdown(means_table(grid)))
        if against := differences_table(grid):
            parts += [f"### Against {_plain(grid.baseline or '')}\n", _markdown(against)]
        if grid.controls:
            parts += ["### Controls of style\n", _control_markdown(grid)]
        for sweep in sweeps(grid):
            parts += [f"### By the number of {_plain(sweep.name or 'the column')} (the paper's Fig. 8)\n"]
            parts.append(_sweep_markdown(grid, sweep))
        parts += [f"- left out: {_plain(sentence)}" for sentence in grid.left_out]
    notes = [
        "Means with half the width of their 95 % intervals; clips of one prompt count as one draw. Bold is the best of "
        "what was moved; in differences, what is surely better.",
        *map(str, result.missing),
        *result.skipped,
    ]
    return "\n".join([*parts, "", *map(_plain, notes)]) + "\n"


def _markdown(table: Table) -> str:
    lines = [_row(["", *table.headings]), _row(["---", *["---:"] * len(table.headings)])]
    lines += [_row([_plain(name), *(_cell_markdown(cell) for cell in cells)]) for name, cells in table.rows]
    return "\n".join(lines) + "\n"


def _grouped_markdown(table: Table) -> str:
    """Return a table with the name of its group before each heading: Markdown has no headings over several columns."""
    groups = [group for group, span in table.groups for _ in range(span)]
    headings = [f"{_plain(group)}: {text}" for group, text in zip(groups, table.headings, strict=True)]
    several = len(table.groups) > 1
    return _markdown(Table(table.title, (), tuple(headings) if several else table.headings, table.rows))


def _control_markdown(grid: GridResult) -> str:
    titles = {metric.name: metric for metric in grid.metrics}
    headings = ["", "metric", f"gain over {_plain(grid.baseline or '')}", "undoing alone", "gain beyond it"]
    lines = [_row(headings), _row(["---", "---", "---:", "---:", "---:"])]
    for one in grid.controls:
        metric = titles[one.metric]
        parts = [
            "–" if part is None else interval_words(part, metric.digits, "", signed=True)
            for part in (one.gain, one.undoing, one.beyond)
        ]
        lines.append(_row([_plain(one.column), metric.title, *parts]))
    return "\n".join(lines) + "\n"


def _sweep_markdown(grid: GridResult, sweep: Sweep) -> str:
    titles = {metric.name: metric for metric in grid.metrics}
    lines = [_row(["", *(heading(titles[name]) for name in sweep.means)]), _row(["---:", *["---:"] * len(sweep.means)])]
    for place, value in enumerate(sweep.values):
        cells = [interval_words(own[place], titles[name].digits, "") for name, own in sweep.means.items()]
        lines.append(_row([f"{value:g}", *cells]))
    return "\n".join(lines) + "\n"


def _cell_markdown(cell: Cell) -> str:
    text = f"**{cell.text}**" if cell.best else cell.text
    return f"{text} ± {cell.spread}" if cell.spread else text


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _plain(text: str) -> str:
    """Return text that is no markup: a column may be called anything."""
    return re.sub(r"([|\\`*_\[\]<>])", r"\\\1", text).replace("\n", " ")


def latex(result: EvaluationResult) -> str:
    """Return all tables as LaTeX for the package booktabs."""
    tables = [paper_table(result)]
    for grid in result.grids:
        tables += [table for table in (means_table(grid), differences_table(grid)) if table is not None]
    head = "% Made by loraport evaluate; needs \\usepackage{booktabs}.\n"
    return head + "\n".join(_latex_table(table) for table in tables)


def _latex_table(table: Table) -> str:
    lines = [r"\begin{table}", r"\centering", rf"\caption{{{_escape(table.title)}}}"]
    lines += [rf"\begin{{tabular}}{{l{'r' * len(table.headings)}}}", r"\toprule"]
    if table.groups:
        spans = [rf"\multicolumn{{{span}}}{{c}}{{{_escape(group)}}}" for group, span in table.groups]
        lines.append(" & ".join(["", *spans]) + r" \\")
    lines.append(" & ".join(["", *map(_escape, table.headings)]) + r" \\")
    lines.append(r"\midrule")
    for name, cells in table.rows:
        lines.append(" & ".join([_escape(name), *map(_cell_latex, cells)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", r"\end{table}", ""])


def _cell_latex(cell: Cell) -> str:
    text = rf"\textbf{{{_escape(cell.text)}}}" if cell.best else _escape(cell.text)
    return rf"{text}\,{{\scriptsize$\pm${_escape(cell.spread)}}}" if cell.spread else text


def _escape(text: str) -> str:
    arrows = {"↑": r"$\uparrow$", "↓": r"$\downarrow$"}
    return "".join((_LATEX | arrows).get(letter, letter) for letter in text.replace("\n", " "))
