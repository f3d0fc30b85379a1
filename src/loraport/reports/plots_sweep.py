"""CASA over its settings, drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loraport.reports.plots import LORA, Figure, Row, panels


def sweep_lines(rows: Sequence[Row], knob: str, outcomes: Mapping[str, str]) -> Figure:
    """Outcomes over one setting: median over layers and the middle 80 %."""
    values = sorted({row[knob] for row in rows})

    def draw(figure: Figure, axes: Any) -> None:
        for axis, (key, label) in zip(axes.flat, outcomes.items(), strict=False):
            known = [[row[key] for row in rows if row[knob] == value and row[key] is not None] for value in values]
            some = [
                (value, np.quantile(here, [0.1, 0.5, 0.9])) for value, here in zip(values, known, strict=True) if here
            ]
            x = [value for value, _ in some]
            low, middle, high = np.array([bounds for _, bounds in some]).T if some else ([], [], [])
            axis.fill_between(x, low, high, color=LORA, alpha=0.18, lw=0)
            axis.plot(x, middle, color=LORA, marker="o", ms=3)
            axis.set(title=label, xlabel=knob)
        for axis in list(axes.flat)[len(outcomes) :]:
            axis.remove()

    lines = -(-len(outcomes) // 3)
    return panels(lines, 3, 2.0 * lines, draw)
