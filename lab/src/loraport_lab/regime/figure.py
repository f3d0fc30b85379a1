"""The map as a figure: the change against direct reuse over the size of the drift."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from loraport.reports.figures import STYLE, as_png
from loraport.sampling.statistics import Interval
from loraport_lab.regime.summary import MOTION
from loraport_lab.regime.table import HERE, Line, as_a_file

COLOURS = ("#c2571a", "#3b8f5a", "#2f5fd0", "#8a4fbf", "#5d6470", "#9a7d1e")
MARKERS = {"few-step": "o", "one-step": "s", "matched": "^", "causal": "D", "accelerator": "P"}
INK = "#1b1e24"
TICKS = (0.03, 0.1, 0.3, 1, 3, 10)
"""Of the drift's scale, in percent."""
BESIDE = 0.025
"""How far the adapters of a student stand beside each other, as a share of its drift."""


@dataclass(frozen=True)
class Panel:
    """One small picture: a method and the number that is drawn of it."""

    title: str
    method: str
    value: Callable[[Line], Interval | None]
    unit: str
    ticks: tuple[float, ...]
    """Of the vertical scale, which is linear up to the second one above zero and logarithmic beyond."""
    factor: float = 1.0
    takes: Callable[[Line], bool] = lambda line: True
    """Which points are drawn."""


_DECIBELS = (-3, -1, -0.5, 0, 0.5, 1, 3)
_KINDS = {"styles": lambda line: line.adapter != MOTION, "a motion": lambda line: line.adapter == MOTION}
PANELS = (
    *(
        Panel(
            f"{method}, {kind}: fidelity",
            method,
            lambda line: line.fidelity,
            "dB against direct",
            _DECIBELS,
            1.0,
            takes,
        )
        for method in ("casa", "undo-orthogonal:0.25")
        for kind, takes in _KINDS.items()
    ),
    Panel("casa: effect", "casa", lambda line: line.effect, "points against direct", (-30, -10, -5, 0, 5, 10, 30)),
    Panel(
        "casa: gap to the oracle closed", "casa", lambda line: line.closed, "%", (-200, -100, -50, 0, 50, 100), 100.0
    ),
)


def draw_map(lines: Sequence[Line]) -> bytes:
    """Return the figure as a PNG; LoRAs that are not as usual are left out."""
    shown = [line for line in lines if line.usual and "rho2" in line.statistics]
    widths = sorted({line.width for line in shown})
    colours = dict(zip(widths, COLOURS, strict=False))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 9.0), layout="constrained")
        drawn = dict(zip(PANELS, figure.subplots(3, 2).flat, strict=True))
        for panel, axes in drawn.items():
            _draw_panel(axes, panel, list(filter(panel.takes, as_a_file(shown, panel.method))), colours)
        _share_scales(drawn, _reach(shown))
        students = [name for name in MARKERS if any(line.student == name for line in shown)]
        handles = [
            *(_sign(f"{width} wide", color=colours[width]) for width in widths),
            *(_sign(name, marker=MARKERS[name], color=INK) for name in students),
        ]
        if any(line.where != HERE for line in shown):
            handles.append(_sign("measured elsewhere", color=INK, hollow=True))
        figure.legend(handles=handles, loc="outside upper center", ncols=min(len(handles), 6), columnspacing=1.2)
    return as_png(figure)


def _sign(label: str, *, color: str, marker: str = "o", hollow: bool = False) -> Line2D:
    return Line2D([], [], linestyle="", label=label, color=color, marker=marker, **_face(color, hollow))


def _face(color: str, hollow: bool) -> dict[str, Any]:
    return {"markerfacecolor": "white" if hollow else color, "markersize": 5}


def _draw_panel(axes: Axes, panel: Panel, lines: Sequence[Line], colours: dict[int, str]) -> None:
    axes.axhline(0, color=INK, linewidth=0.8, zorder=1)
    axes.set_xscale("log")
    linear = min(tick for tick in panel.ticks if tick > 0)
    axes.set_yscale("symlog", linthresh=2 * linear, linscale=1.5)
    axes.set_yticks(panel.ticks, [f"{tick:+g}" if tick else "0" for tick in panel.ticks])
    axes.minorticks_off()
    adapters = list(dict.fromkeys(line.adapter for line in lines))
    for line in lines:
        interval = panel.value(line)
        if interval is None:
            continue
        value, low, high = (panel.factor * end for end in (interval.value, interval.low, interval.high))
        known = isfinite(high - low)  # of some points elsewhere the value alone is known
        drift = 100 * line.statistics["rho2"] * (1 + BESIDE) ** adapters.index(line.adapter)
        axes.errorbar(
            drift, value, yerr=[[value - low], [high - value]] if known else None, elinewidth=0.7,
            color=colours[line.width], marker=MARKERS.get(line.student, "o"),
            alpha=0.45 if known and not interval.sign else 0.9, **_face(colours[line.width], line.where != HERE),
        )  # fmt: skip
    axes.set_title(panel.title, loc="left", color=INK)
    axes.set_ylabel(f"{panel.unit}, logarithmic beyond ±{2 * linear:g}", fontsize="small")
    axes.set_xlabel("ρ₂ of the drift, mean over layers, %")
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])


def _share_scales(drawn: Mapping[Panel, Axes], reach: tuple[float, float]) -> None:
    """Give all panels the same horizontal scale, and those of one unit the same vertical one."""
    for panel, axes in drawn.items():
        ends = [other.get_ylim() for one, other in drawn.items() if one.unit == panel.unit]
        axes.set(xlim=reach, ylim=(min(low for low, _ in ends), max(high for _, high in ends)))


def _reach(lines: Sequence[Line]) -> tuple[float, float]:
    drifts = [100 * line.statistics["rho2"] for line in lines] or [TICKS[0], TICKS[-1]]
    return min(drifts) / 1.3, max(drifts) * 1.5
