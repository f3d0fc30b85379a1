"""The map as a table: a line for each point, adapter and row, with its intervals and the cell's statistics."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from math import isfinite
from pathlib import Path
from typing import Any

from torch import Tensor, tensor

from loraport.sampling.statistics import Interval, mean_interval
from loraport_lab.bench.statistics import gap_closed
from loraport_lab.regime.cells import METRICS
from loraport_lab.regime.points import BLOCKS, MapCell, shipped_base
from loraport_lab.training.recipe import SHIPPED

HERE = "here"
"""Where a line was measured, if this program did it."""
STATISTICS = (
    *("drift", "rho2", "lora", "cosine", "clusters", "largest_cluster", "head_drift", "head_lora"),
    *("restored", "arbitrated", "kept"),
)
"""The statistics of a cell, in the order of the table's columns."""
OF_THE_LAB = {
    **{row: row for row in ("student", "direct", "oracle", "casa", "casa, full rank", "core", "prolora")},
    "restore-only, rank 2r": "restore-only",
    "arbitrate-only, rank 2r": "arbitrate-only",
    "undo:0.25, rank 2r": "undo",
    "undo-orthogonal:0.25, rank 2r": "undo-orthogonal",
    "undo:1": "full undo",
}
"""Row of the map -> row of the lab, which cuts halves and undo to the rank of a file too."""


@dataclass(frozen=True)
class Line:
    """One row on one adapter on one student, against direct reuse of the same adapter there."""

    where: str
    """`here` for what this program measured, else a name for what did."""
    width: int
    blocks: int
    base_steps: int
    seed: int
    student: str
    rate: float | None
    steps: int | None
    adapter: str
    strength: float
    lora_length: int
    """How many times as long as others the adapter was trained."""
    row: str
    level: float | None
    """Fidelity itself, in dB."""
    fidelity: Interval | None
    effect: Interval | None
    content: Interval | None
    closed: Interval | None
    """The share of the gap in fidelity to the oracle that is closed; None where there is no such gap."""
    statistics: Mapping[str, float]

    @property
    def cell(self) -> tuple[object, ...]:
        """What tells cells apart."""
        return (*self.distilled, self.adapter, self.strength, self.lora_length)

    @property
    def distilled(self) -> tuple[object, ...]:
        """What tells students apart."""
        return (self.where, *self.base, self.student, self.rate, self.steps)

    @property
    def usual(self) -> bool:
        """Whether the LoRA is used at its own strength and was trained as long as others."""
        return self.strength == 1 and self.lora_length == 1

    @property
    def base(self) -> tuple[object, ...]:
        """What tells bases apart."""
        return (self.width, self.blocks, self.base_steps, self.seed)


_INTERVALS = ("fidelity", "effect", "content", "closed")
_PLAIN = tuple(field.name for field in fields(Line) if field.name not in (*_INTERVALS, "statistics"))
_ENDS = ("value", "low", "high")
COLUMNS = (*_PLAIN, *(f"{name} {end}" for name in _INTERVALS for end in _ENDS), *STATISTICS)


def lines_of(cell: MapCell, facts: Mapping[str, Any]) -> list[Line]:
    """Return a cell's lines, from what was measured of each clip."""
    prompts, point = facts["prompts"], cell.point
    rows = {row: {metric: tensor(values[metric]) for metric in METRICS} for row, values in facts["rows"].items()}
    direct, oracle = rows["direct"], rows.get("oracle")
    lines = []
    for row, values in rows.items():
        changes = {metric: mean_interval(values[metric] - direct[metric], prompts) for metric in METRICS}
        closed = None
        if oracle is not None:
            closed = gap_closed(values["psnr"], direct["psnr"], oracle["psnr"], prompts)
        lines.append(
            Line(
                HERE, point.base.width, BLOCKS, point.base.steps, point.base.seed, point.student.name,
                point.distillation.rate, point.steps, cell.adapter.name, cell.strength, point.base.lora_length, row,
                _mean(values["psnr"]), changes["psnr"], changes["effect"], changes["content"], closed,
                facts["statistics"],
            )
        )  # fmt: skip
    return lines


def lines_of_lab(facts: Mapping[str, Any], seed: int = 0) -> list[Line]:
    """Return the lines of the shipped family's cells, from the JSON of a lab run on it; or on one of another seed.

    A student's rate and steps are those that moved it last.
    """
    base, lines = shipped_base(), []
    for cell in facts["cells"]:
        rows, schedule = {row["name"]: row for row in cell["rows"]}, SHIPPED.last_schedule(cell["student"])
        known = {name: value for name, value in cell["premises"].items() if value is not None}
        for row, theirs in OF_THE_LAB.items():
            metrics, gap = rows[theirs]["metrics"], rows[theirs]["gap_closed"]["psnr"]
            fidelity, effect, content = (_change(metrics[metric]) for metric in METRICS)
            closed = None if gap is None else Interval(gap["value"], gap["low"], gap["high"])
            lines.append(
                Line(
                    HERE, base.width, BLOCKS, base.steps, seed, cell["student"], schedule.rate, schedule.steps,
                    cell["adapter"], 1.0, 1, row, metrics["psnr"]["mean"], fidelity, effect, content, closed, known,
                )
            )  # fmt: skip
    return lines


def _change(numbers: Mapping[str, float]) -> Interval:
    return Interval(numbers["change"], numbers["change_low"], numbers["change_high"])


def _mean(values: Tensor) -> float:
    return float(values.double().mean())


def as_csv(lines: Iterable[Line]) -> bytes:
    """Return the table as a CSV file."""
    target = io.StringIO()
    writer = csv.DictWriter(target, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in lines:
        plain = {name: getattr(line, name) for name in _PLAIN}
        cells = {f"{name} {end}": _end(getattr(line, name), end) for name in _INTERVALS for end in _ENDS}
        writer.writerow({name: _text(value) for name, value in (plain | cells | dict(line.statistics)).items()})
    return target.getvalue().encode()


def _end(interval: Interval | None, end: str) -> float | None:
    value = None if interval is None else float(asdict(interval)[end])
    return value if value is not None and isfinite(value) else None


def _text(value: object) -> object:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else value


def read_lines(file: Path) -> list[Line]:
    """Return the lines of a table."""
    with file.open(newline="") as opened:
        return [_line(record) for record in csv.DictReader(opened)]


def _line(record: Mapping[str, str]) -> Line:
    def number(name: str) -> float | None:
        return float(record[name]) if record[name] else None

    def whole(name: str) -> int:
        return int(record[name])

    def interval(name: str) -> Interval | None:
        value, low, high = (number(f"{name} {end}") for end in _ENDS)
        if value is None:
            return None
        return Interval(value, float("-inf") if low is None else low, float("inf") if high is None else high)

    steps = int(record["steps"]) if record["steps"] else None
    fidelity, effect, content, closed = map(interval, _INTERVALS)
    statistics = {key: float(record[key]) for key in STATISTICS if record[key]}
    return Line(
        record["where"], whole("width"), whole("blocks"), whole("base_steps"), whole("seed"), record["student"],
        number("rate"), steps, record["adapter"], float(record["strength"]), whole("lora_length"), record["row"],
        number("level"), fidelity, effect, content, closed, statistics,
    )  # fmt: skip


def as_a_file(lines: Iterable[Line], method: str) -> list[Line]:
    """Return a method's lines, a cell each: cut to a file's rank where that was measured, else at full rank."""
    found: dict[tuple[object, ...], Line] = {}
    for line in lines:
        if line.row == f"{method}, rank 2r" or (line.row == method and line.cell not in found):
            found[line.cell] = line
    return list(found.values())
