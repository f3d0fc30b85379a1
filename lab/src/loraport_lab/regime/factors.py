"""What matters: how much of the differences between cells width, drift, paradigm and kind of LoRA account for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import log10
from statistics import NormalDist

import numpy as np

from loraport.reports.rendering import csv_text
from loraport_lab.regime.summary import MOTION
from loraport_lab.regime.table import HERE, Line, as_a_file

RULES_TOLD = ("casa", "undo-orthogonal:0.25", "undo:0.25", "arbitrate-only", "prolora")
CROSSED = ("few-step", "one-step", "matched")
"""The paradigms of the grid; of the others there is one student a family."""
Columns = np.ndarray
"""[cells, columns]"""


def _one_of(value: Callable[[Line], object]) -> Callable[[Sequence[Line]], Columns]:
    """Return the columns of a factor without an order: for each of its values but the first, whether a cell has it."""

    def columns(lines: Sequence[Line]) -> Columns:
        values = list(map(value, lines))
        kinds = list(dict.fromkeys(values))[1:]
        return np.array([[float(one == kind) for kind in kinds] for one in values]).reshape(len(values), len(kinds))

    return columns


def _size_of_drift(lines: Sequence[Line]) -> Columns:
    sizes = np.array([log10(line.statistics["rho2"]) for line in lines])
    return np.stack([sizes, sizes**2], axis=1)  # so that it may help in the middle most, or least


FACTORS: dict[str, Callable[[Sequence[Line]], Columns]] = {
    "base model": _one_of(lambda line: line.base),
    "drift (log ρ₂ and its square)": _size_of_drift,
    "paradigm": _one_of(lambda line: line.student),
    "style or motion": _one_of(lambda line: line.adapter == MOTION),
    "drift, for style and motion apart": lambda lines: _by_kind(lines, _size_of_drift),
}


def _by_kind(lines: Sequence[Line], factor: Callable[[Sequence[Line]], Columns]) -> Columns:
    moves = np.array([[float(line.adapter == MOTION)] for line in lines])
    return np.concatenate([moves, factor(lines), moves * factor(lines)], axis=1)


def factors_csv(lines: Sequence[Line]) -> bytes:
    """Return for each factor the share of the variance of a method's gain that it accounts for alone, and of all."""
    cells = {method: crossed(lines, method) for method in RULES_TOLD}
    rows = [[name, *(_percent(accounted(cells[method], [name])) for method in RULES_TOLD)] for name in FACTORS]
    rows.append(["all of them", *(_percent(accounted(cells[method], list(FACTORS))) for method in RULES_TOLD)])
    rows.append(["the clips' luck", *(_percent(luck(cells[method])) for method in RULES_TOLD)])
    rows.append(["cells", *(str(len(cells[method])) for method in RULES_TOLD)])
    return csv_text(["factor", *RULES_TOLD], rows).encode()


def crossed(lines: Sequence[Line], method: str) -> list[Line]:
    """Return the cells that this program crossed on purpose: its own bases, the grid's paradigms, usual LoRAs."""
    return [
        line
        for line in as_a_file(lines, method)
        if line.where == HERE and line.student in CROSSED and line.usual and line.fidelity is not None
    ]


def accounted(lines: Sequence[Line], names: Sequence[str]) -> float | None:
    """Return the adjusted R² of the gain by least squares on these factors; None with too few cells.

    Adjusted for the number of columns, so that a factor without a meaning has 0 on the mean, at times below.
    """
    y = np.array([line.fidelity.value for line in lines if line.fidelity is not None])
    X = np.concatenate([np.ones((len(lines), 1)), *(FACTORS[name](lines) for name in names)], axis=1)
    rank = int(np.linalg.matrix_rank(X)) if len(lines) else 0
    if len(lines) <= rank + 1 or not np.ptp(y):
        return None
    rest = y - X @ np.linalg.lstsq(X, y, rcond=None)[0]
    return float(1 - (rest @ rest / (len(y) - rank)) / np.var(y, ddof=1))


def luck(lines: Sequence[Line]) -> float | None:
    """Return the share of the variance that clips of the same prompts, drawn again, would account for."""
    known = [line.fidelity for line in lines if line.fidelity is not None]
    y = np.array([one.value for one in known])
    if len(y) < 2 or not np.ptp(y):
        return None
    errors = np.array([(one.high - one.low) / (2 * NormalDist().inv_cdf(0.975)) for one in known])
    return float(np.mean(errors**2) / np.var(y, ddof=1))


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.0f} %".replace("-", "\N{MINUS SIGN}")
