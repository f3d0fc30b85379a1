"""The changes against the LoRA as it is as dots with their intervals, placed in percent of a track's width."""

import math
from dataclasses import dataclass

from loraport.sampling.statistics import Interval
from loraport_lab.demo import DemoResult
from loraport_lab.pages.verdict import column_of, compare, signed

_MARGIN = 0.06
"""Of a track's width, left free at either end."""


@dataclass(frozen=True)
class Whisker:
    """One change: its interval from `left` over `width`, its value at `dot`, all in percent of the track."""

    left: float
    width: float
    dot: float
    sure: bool
    words: str


@dataclass(frozen=True)
class Panel:
    """The changes in one metric, and where no change lies."""

    title: str
    zero: float
    whiskers: tuple[Whisker, ...]


@dataclass(frozen=True)
class Chart:
    """A line for each column that takes the LoRA along, but for direct reuse: (label, role), and a panel a metric."""

    lines: tuple[tuple[str, str], ...]
    panels: tuple[Panel, ...]


def draw_chart(demo: DemoResult) -> Chart | None:
    """Return the chart; None where there is nothing to compare with or to compare."""
    direct = column_of(demo, "direct")
    columns = [column for column in demo.columns if column.role in ("transfer", "beside", "oracle")]
    if direct is None or not columns:
        return None
    panels = tuple(
        _panel(title, [compare(demo, column, direct, key) for column in columns], digits)
        for key, title, digits in (("psnr", "fidelity, dB", 2), ("effect", "effect, points", 1))
    )
    return Chart(tuple((column.label, column.role) for column in columns), panels)


def _panel(title: str, changes: list[Interval], digits: int) -> Panel:
    ends = [0.0, *(end for change in changes for end in (change.low, change.value, change.high) if math.isfinite(end))]
    low, span = min(ends), (max(ends) - min(ends)) or 1.0

    def place(value: float) -> float:
        share = min(max((value - low) / span, 0.0), 1.0)
        return round(100 * (_MARGIN + (1 - 2 * _MARGIN) * share), 2)

    whiskers = [
        Whisker(
            place(change.low),
            round(place(change.high) - place(change.low), 2),
            place(change.value),
            change.sign != 0,
            signed(change, digits),
        )
        for change in changes
    ]
    return Panel(title, place(0.0), tuple(whiskers))
