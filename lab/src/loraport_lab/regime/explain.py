"""Which statistic of a cell goes with the gain: rank correlations, and the sign told on bases not fitted to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log10

import numpy as np

from loraport_lab.bench.statistics import rank_correlation
from loraport_lab.regime.table import STATISTICS, Line

LOGARITHMIC = ("drift", "rho2", "lora", "arbitrated", "correction", "width")
FEWEST = 4
"""Cells below which nothing is said."""


@dataclass(frozen=True)
class Explanation:
    """How one statistic goes with a gain over cells."""

    statistic: str
    cells: int
    correlation: float
    """Spearman's, over all cells."""
    within: float | None
    """The mean of the same within each base that has enough cells: what width and training do to both is left out."""
    signs: float | None
    """Share of cells whose side of zero a line through the statistic tells, fitted to the other bases alone."""
    guess: float | None
    """The same for the other bases' more frequent side: what a statistic has to beat."""


def explain(lines: Sequence[Line], row: str) -> list[Explanation]:
    """Return an explanation of a row's change of fidelity by each statistic, the strongest correlation first."""
    known = [line for line in lines if line.row == row and line.fidelity is not None]
    levels = {line.cell: line.level for line in lines if line.row == "direct"}
    found = [_explained(name, [(line, _value(line, name, levels)) for line in known]) for name in _names()]
    return sorted((one for one in found if one is not None), key=lambda one: -abs(one.correlation))


def _names() -> tuple[str, ...]:
    return (*STATISTICS, "LoRA over drift", "width", "direct's fidelity")


def _value(line: Line, name: str, levels: Mapping[tuple[object, ...], float | None]) -> float | None:
    others = {"width": float(line.width), "direct's fidelity": levels.get(line.cell)}
    known: Mapping[str, float | None] = {**line.statistics, **others}
    if name == "LoRA over drift":
        lora, drift = (line.statistics.get(key) for key in ("lora", "drift"))
        return log10(lora / drift) if lora and drift else None
    value = known.get(name)
    if value is None or name not in LOGARITHMIC:
        return value
    return log10(value) if value > 0 else None


def _explained(name: str, pairs: Sequence[tuple[Line, float | None]]) -> Explanation | None:
    cells = [(line, value) for line, value in pairs if value is not None]
    if len(cells) < FEWEST or len({value for _, value in cells}) < 2:
        return None
    x, y = np.array([value for _, value in cells]), np.array([_gain(line) for line, _ in cells])
    bases = [line.base for line, _ in cells]
    signs, guess = _signs_told(x, y, bases)
    return Explanation(name, len(cells), rank_correlation(x.tolist(), y.tolist()), _within(x, y, bases), signs, guess)


def _gain(line: Line) -> float:
    return line.fidelity.value if line.fidelity is not None else 0.0


def _members(bases: Sequence[object]) -> list[np.ndarray]:
    return [np.array([base == one for base in bases]) for one in dict.fromkeys(bases)]


def _within(x: np.ndarray, y: np.ndarray, bases: Sequence[object]) -> float | None:
    found = [
        rank_correlation(x[own].tolist(), y[own].tolist())
        for own in _members(bases)
        if own.sum() >= FEWEST and len(set(x[own])) > 1 and len(set(y[own])) > 1
    ]
    return float(np.mean(found)) if found else None


def _signs_told(x: np.ndarray, y: np.ndarray, bases: Sequence[object]) -> tuple[float | None, float | None]:
    """Return the shares of signs told by a line and by the more frequent side, each base told by the others."""
    groups = _members(bases)
    if len(groups) < 2:
        return None, None
    told, guessed = np.zeros(len(x), dtype=bool), np.zeros(len(x), dtype=bool)
    for own in groups:
        slope, height = np.polyfit(x[~own], y[~own], 1) if len(set(x[~own])) > 1 else (0.0, y[~own].mean())
        told[own] = ((slope * x[own] + height) > 0) == (y[own] > 0)
        guessed[own] = (np.mean(y[~own] > 0) > 0.5) == (y[own] > 0)
    return float(told.mean()), float(guessed.mean())
