"""Does the end error rank rows as other measures do? Rank correlations and signs, cell by cell."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.sampling.statistics import mean_interval
from loraport_lab.bench.evaluate import RowResult
from loraport_lab.bench.run import CellResult
from loraport_lab.bench.statistics import frechet_distance, rank_correlation
from loraport_lab.family.measure import CONTENT

NEAR = 1.0
"""Rows within so many dB of direct reuse are hard to tell apart; any score can rank the others."""
FEWEST = 4
"""The fewest rows of which a rank correlation is computed."""
RULES = ("method", "control", "calibrated")
"""Groups of rows that are compared, beside direct reuse; chosen rows repeat others."""
RIGHT = 100
"""Sharpness and flicker that are the reference's: both are in percent of it."""


@dataclass(frozen=True)
class Agreement:
    """How one measure agrees with the end error: Spearman's correlation over the rows of a cell, and signs."""

    measure: str
    cells: int
    mean: float
    lowest: float
    lowest_cell: str
    near_cells: int
    near_mean: float | None
    """Over rows within 1 dB of direct reuse alone."""
    agree: int
    """Rows surely better or worse than direct reuse by the measure, and on the same side by the end error's mean."""
    disagree: int


Measure = Callable[[Mapping[str, Tensor]], Tensor | None]
"""One value a clip from a row's values, None where the row lacks them."""


def content(values: Mapping[str, Tensor]) -> Tensor:
    """Return the share of the prompt's attributes that a clip shows, of those that the effect leaves visible."""
    return torch.stack([values[name].double() for name in CONTENT if name in values]).mean(0)


def _as_it_is(name: str) -> Measure:
    return lambda values: values.get(name)


def _near_right(name: str) -> Measure:
    return lambda values: -(values[name] - RIGHT).abs()


MEASURES: Mapping[str, Measure] = {
    "psnr": _as_it_is("psnr"),
    "effect": _as_it_is("effect"),
    "content": content,
    "tint": _as_it_is("tint"),
    "likeness": _as_it_is("likeness"),
    "sharpness": _near_right("sharpness"),
    "flicker": _near_right("flicker"),
}
"""Higher is better; sharpness and flicker by how near they are to the reference's."""


def agreement(cells: Sequence[CellResult]) -> list[Agreement]:
    """Compare every measure over all cells that have it, the Fréchet distance (without signs) at the end."""
    lines = []
    for name, value in MEASURES.items():
        measured = [cell for cell in cells if value(cell.rows["direct"].values) is not None]
        lines += _agreement_over(name, measured, _mean_of(value), value)
    lines += _agreement_over("fréchet", cells, lambda row, cell: -frechet_distance(row.features, cell.real), None)
    return lines


def _mean_of(value: Measure) -> Callable[[RowResult, CellResult], float]:
    return lambda row, cell: float(_value(value, row).double().mean())


def _value(value: Measure, row: RowResult) -> Tensor:
    values = value(row.values)
    return torch.zeros(1) if values is None else values


def _agreement_over(
    name: str,
    cells: Sequence[CellResult],
    number: Callable[[RowResult, CellResult], float],
    value: Measure | None,
) -> list[Agreement]:
    """Compare one measure over the cells; nothing where no cell has enough rows."""
    ranks: dict[str, float] = {}
    near: list[float] = []
    agree = disagree = 0
    for cell in cells:
        rows, direct = compared_rows(cell), cell.rows["direct"]
        whole = _correlation(rows, cell, number)
        if whole is not None:
            ranks[cell.cell.name] = whole
        close = [row for row in rows if abs(float((row.values["psnr"] - direct.values["psnr"]).mean())) < NEAR]
        part = _correlation(close, cell, number)
        near += [] if part is None else [part]
        if value is not None:
            signs = [_signs(row, direct, value, cell.prompts) for row in rows if row is not direct]
            agree += sum(end == other for end, other in signs if other)
            disagree += sum(end != other for end, other in signs if other)
    if not ranks:
        return []
    lowest = min(ranks, key=ranks.__getitem__)
    middle = sum(near) / len(near) if near else None
    mean = sum(ranks.values()) / len(ranks)
    return [Agreement(name, len(ranks), mean, ranks[lowest], lowest, len(near), middle, agree, disagree)]


def compared_rows(cell: CellResult) -> list[RowResult]:
    """Return direct reuse and every rule on weights or samples, once each: chosen rows repeat others.

    The rest of the frame (the bare student, full undo, the oracle) lies so far out that any score ranks it right.
    """
    return [
        row
        for row in cell.rows.values()
        if "end" in row.values and row.facts["chosen"] is None and (row.row == "direct" or row.group in RULES)
    ]


def _correlation(
    rows: Sequence[RowResult], cell: CellResult, number: Callable[[RowResult, CellResult], float]
) -> float | None:
    """Return Spearman's correlation of the measure with the negative end error; None where either is constant."""
    ends = [-float(row.values["end"].double().mean()) for row in rows]
    numbers = [number(row, cell) for row in rows]
    if len(rows) < FEWEST or len(set(ends)) == 1 or len(set(numbers)) == 1:
        return None
    return rank_correlation(ends, numbers)


def _signs(
    row: RowResult,
    direct: RowResult,
    value: Measure,
    prompts: Sequence[str],
) -> tuple[int, int]:
    """Return the end error's side of direct reuse, and the measure's, 0 where its interval holds zero."""
    gain = float((direct.values["end"] - row.values["end"]).double().mean())
    return (gain > 0) - (gain < 0), mean_interval(_value(value, row) - _value(value, direct), prompts).sign
