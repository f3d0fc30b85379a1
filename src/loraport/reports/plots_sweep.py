"""The plots of a sweep: what CASA's outcome does as a setting changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loraport.reports.figures import LORA, Figure, Row, panels


def sweep_lines(rows: Sequence[Row], knob: str, outcomes: Mapping[str, str]) -> Figure:
    """Plot outcomes over one setting: median over layers and the middle 80 %."""
    values = sorted({row[knob] for row in rows})

    def draw(figure: Figure, axes: Any) -> None:
        for axis, (key, label) in zip(axes.flat, outcomes.items(), strict=False):
            known = {value: _known(rows, knob, value, key) for value in values}
            bands = {value: np.quantile(numbers, [0.1, 0.5, 0.9]) for value, numbers in known.items() if numbers}
            if bands:
                low, middle, high = np.array(list(bands.values())).T
                axis.fill_between(list(bands), low, high, color=LORA, alpha=0.18, lw=0)
                axis.plot(list(bands), middle, color=LORA, marker="o", ms=3)
            axis.set(title=label, xlabel=knob)
        for axis in list(axes.flat)[len(outcomes) :]:
            axis.remove()

    lines = -(-len(outcomes) // 3)
    return panels(lines, 3, 2.0 * lines, draw)


def _known(rows: Sequence[Row], knob: str, value: float, key: str) -> list[float]:
    return [row[key] for row in rows if row[knob] == value and row[key] is not None]
