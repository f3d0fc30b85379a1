"""The changes against the LoRA as it is: dots with their intervals over an axis, placed in percent of its width."""

import math
from dataclasses import dataclass

from loraport.sampling.statistics import Interval
from loraport_lab.demo import DemoResult
from loraport_lab.pages.verdict import column_of, compare, signed

_MARGIN = 0.05
"""Of a track's width, left free at either end."""
_MOST_TICKS = 5


@dataclass(frozen=True)
class Whisker:
    """One change: its interval from `left` over `width`, its value at `dot`, all in percent of the track."""

    left: float
    width: float
    dot: float
    sure: bool
    words: str


@dataclass(frozen=True)
class Tick:
    """A number of the axis, in percent of the track; the LoRA as it is stands at zero."""

    place: float
    label: str


@dataclass(frozen=True)
class Panel:
    """The changes in one metric over an axis in its unit."""

    title: str
    ticks: tuple[Tick, ...]
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
        for key, title, digits in (("psnr", "Fidelity, change in dB", 2), ("effect", "Effect, change in points", 1))
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
    numbers, decimals = _axis(low, low + span)
    ticks = [Tick(place(number), _label(number, decimals)) for number in numbers]
    return Panel(title, tuple(ticks), tuple(whiskers))


def _axis(low: float, high: float) -> tuple[list[float], int]:
    """Return numbers between two, as many as an axis has room for, and their decimals: multiples of a 1, 2 or 5."""
    least = math.floor(math.log10((high - low) / _MOST_TICKS))
    steps = [digit * 10.0**power for power in range(least, least + 3) for digit in (1, 2, 5)]
    step = next(step for step in steps if math.floor(high / step) - math.ceil(low / step) < _MOST_TICKS)
    numbers = [number * step for number in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return numbers, max(0, -math.floor(math.log10(step)))


def _label(number: float, decimals: int) -> str:
    return f"{number:+.{decimals}f}".replace("-", "−") if round(number, decimals) else "0"
