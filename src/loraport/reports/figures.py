"""How figures look, and how they become files: the same numbers give the same bytes.

Figures are five inches wide, so that a phone shows their text at a readable size and a page may blow them up.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Figure
from torch import Tensor

from loraport.reports.rendering import data_address

WIDTH = 5.2
LORA, DRIFT, BOTH, SOURCE = "#2f5fd0", "#d4691a", "#6b7280", "#1b1e24"
COLOURS = {"lora": LORA, "drift": DRIFT, "both": BOTH}
NAMES = {"lora": "LoRA", "drift": "distillation", "both": "LoRA on the distilled model"}
GROUPS = ("#4063b8", "#c2572b", "#3a8f5f", "#8a6bb0", "#9a7d1e", "#5d6470")
DECISION_COLOURS = {"preserved": "#c9ced8", "restored": "#7fb3a2", "arbitrated": "#b3382c"}
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.grid": True,
    "grid.color": "#e6e8ee", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.3, "svg.fonttype": "path", "svg.hashsalt": "loraport", "xtick.labelsize": 8,
    "ytick.labelsize": 8, "figure.dpi": 160, "image.interpolation": "nearest",
}  # fmt: skip
LEGEND_LETTERS = 45
"""Labels of more letters than this do not fit into one line of a legend."""

Row = Mapping[str, Any]
Curves = Mapping[str, Tensor]


def as_svg(figure: Figure) -> bytes:
    """Return the figure as SVG without a date."""
    return _saved(figure, "svg", {"Date": None, "Creator": None})


def as_png(figure: Figure) -> bytes:
    """Return the figure as PNG, 160 dots an inch."""
    return _saved(figure, "png", {"Software": None})


def address(figure: Figure) -> str:
    """Return the figure as an address that needs no file."""
    return data_address("svg+xml", as_svg(figure))


def _saved(figure: Figure, format: str, metadata: dict[str, None]) -> bytes:
    target = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(target, format=format, metadata=metadata, facecolor="white")
    # the layout is found while the first file is written; solving it again for the second would move things a little
    figure.set_layout_engine("none")
    return target.getvalue()


def panels(rows: int, columns: int, height: float, draw: Callable[[Figure, Any], None], **grid: Any) -> Figure:
    """Return a figure of the common width and style with a grid of axes, drawn by the function."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure, figure.subplots(rows, columns, squeeze=False, **grid))
    return figure


def legend_above(figure: Figure, axis: Axes) -> None:
    """Put the legend of an axis above the whole figure, in one line where it fits."""
    handles, labels = axis.get_legend_handles_labels()
    one_line = sum(map(len, labels)) <= LEGEND_LETTERS
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=max(1, len(labels) if one_line else min(4, len(labels))),
        handletextpad=0.4,
        columnspacing=1.2,
    )


def colours(*names: str) -> ListedColormap:
    """Return a map of these colours, for values 0, 1, 2, …"""
    return ListedColormap(names)
