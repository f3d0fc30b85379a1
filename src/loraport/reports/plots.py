"""The plots of the microscope and of reports, and how they become files: numbers in, figures out, files on request.

Figures are five inches wide, so that a phone shows their text at a readable size and a page may blow them up. The same
numbers give the same bytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure as Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from torch import Tensor

from loraport.files.names.blocks import short_name
from loraport.reports.rendering import data_address

WIDTH = 5.2
LEAST_SPAN = 6.0  # of a logarithmic axis, so that it has ticks
LORA, DRIFT, BOTH, SOURCE = "#2f5fd0", "#d4691a", "#6b7280", "#1b1e24"
COLOURS = {"lora": LORA, "drift": DRIFT, "both": BOTH}
NAMES = {"lora": "LoRA", "drift": "distillation", "both": "LoRA on the distilled model"}
SIDES = {"send": "as senders", "receive": "as receivers"}
GROUPS = ("#4063b8", "#c2572b", "#3a8f5f", "#8a6bb0", "#9a7d1e", "#5d6470")
DECISIONS = ("#c9ced8", "#7fb3a2", "#b3382c")  # preserved, restored, arbitrated
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 8.5, "axes.titlesize": 9, "axes.labelsize": 8.5, "legend.fontsize": 8,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.7, "axes.grid": True,
    "grid.color": "#e6e8ee", "grid.linewidth": 0.6, "axes.axisbelow": True, "legend.frameon": False,
    "lines.linewidth": 1.3, "svg.fonttype": "path", "svg.hashsalt": "loraport", "xtick.labelsize": 8,
    "ytick.labelsize": 8, "figure.dpi": 160, "image.interpolation": "nearest",
}  # fmt: skip

Row = Mapping[str, Any]
Curves = Mapping[str, Tensor]


def as_svg(figure: Figure) -> bytes:
    """The figure as SVG without a date."""
    return _saved(figure, "svg", {"Date": None, "Creator": None})


def as_png(figure: Figure) -> bytes:
    """The figure at 160 dots an inch."""
    return _saved(figure, "png", {"Software": None})


def address(figure: Figure) -> str:
    """The figure as an address that needs no file."""
    return data_address("svg+xml", as_svg(figure))


def _saved(figure: Figure, format: str, metadata: dict[str, None]) -> bytes:
    target = io.BytesIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(target, format=format, metadata=metadata, facecolor="white")
    figure.set_layout_engine("none")  # laid out once; a second file keeps the places
    return target.getvalue()


def panels(rows: int, columns: int, height: float, draw: Callable[[Figure, Any], None], **grid: Any) -> Figure:
    """A figure of the common width and style with a grid of axes, drawn by the function."""
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure, figure.subplots(rows, columns, squeeze=False, **grid))
    return figure


# --- all layers


def drift_by_depth(survey: Sequence[Row], rows: Sequence[Row]) -> Figure:
    """How far distillation and LoRA move each layer, by depth, with the rounding floor."""

    def draw(figure: Figure, axes: Any) -> None:
        top, bottom = axes[0, 0], axes[1, 0]
        _by_group(top, [row for row in survey if row["drift"]], "drift")
        floors = [(_depth(row), row["floor"]) for row in survey if row["floor"]]
        if floors:
            top.scatter(*zip(*floors, strict=True), marker="_", s=30, color=BOTH, linewidths=1, label="rounding floor")
        _by_group(bottom, [row for row in rows if row["lora"]], "lora")
        for axis, title in ((top, "distillation"), (bottom, "LoRA")):
            axis.set(yscale="log", ylabel="size / ‖W‖", title=title)
            _log(axis.yaxis)
            _blocks(axis)
        bottom.set_xlabel("block (left of 0: layers outside of blocks)")
        legend_above(figure, top)

    return panels(2, 1, 4.4, draw, sharex=True)


def rigidity(rows: Sequence[Row]) -> Figure:
    """ρ₂ by depth, and against the size of the update that bounds it."""

    def draw(figure: Figure, axes: Any) -> None:
        left, right = axes[0]
        for name, size in (("lora", "lora"), ("drift", "drift")):
            here = [row for row in rows if row[f"rho2_{name}"] and row[size]]
            values = [row[f"rho2_{name}"] for row in here]
            left.scatter([_depth(row) for row in here], values, s=9, color=COLOURS[name], alpha=0.7, label=NAMES[name])
            right.scatter([row[size] for row in here], values, s=9, color=COLOURS[name], alpha=0.7)
        for axis in (left, right):
            axis.axhline(0.003, color=BOTH, lw=0.9, ls=":", label="0.3 %" if axis is right else None)
            axis.set(yscale="log")
        right.set(xscale="log", xlabel="‖D‖ / ‖W‖", title="against the update's size")
        _log(right.xaxis)
        right.plot(right.get_xlim(), right.get_xlim(), color=SOURCE, lw=0.9, ls="--", label="bound: ρ₂ = size")
        left.set(xlabel="block", ylabel="ρ₂ = ‖S′ − S‖ / ‖S‖", title="by depth")
        left.legend(loc="best")
        right.legend(loc="best")
        _blocks(left)
        _log(left.yaxis)

    return panels(1, 2, 2.9, draw, sharey=True)


def turning(rows: Sequence[Row]) -> Figure:
    """How well single directions keep their place in head, middle and tail."""

    def draw(figure: Figure, axes: Any) -> None:
        axis = axes[0, 0]
        places = ("head", "middle", "tail")
        for offset, name in ((-0.18, "lora"), (0.18, "drift")):
            sets = [[row[f"kept_{place}_{name}"] for row in rows] for place in places]
            _swarm(axis, np.arange(3) + offset, sets, COLOURS[name], NAMES[name])
        axis.set(xticks=range(3), xticklabels=places, ylim=(0, 1.03), ylabel="mean |cosine| with itself")
        legend_above(figure, axis)

    return panels(1, 1, 2.8, draw)


def stability(rows: Sequence[Row], taus: Sequence[float], tau: float) -> Figure:
    """Clusters over tau: number, largest share, agreement with those in use."""
    wanted = (
        ("clusters_tau_", "clusters / k", True),
        ("largest_tau_", "share of the largest", False),
        ("agreement_tau_", f"agreement with tau {tau:g}", False),
    )

    def draw(figure: Figure, axes: Any) -> None:
        for axis, (key, label, per_k) in zip(axes[0], wanted, strict=True):
            table = np.array([[row[f"{key}{t:g}"] / (row["k"] if per_k else 1) for t in taus] for row in rows])
            low, middle, high = np.quantile(table, [0.1, 0.5, 0.9], axis=0)
            axis.fill_between(taus, low, high, color=LORA, alpha=0.18, lw=0)
            axis.plot(taus, middle, color=LORA, marker="o", ms=3)
            axis.axvline(tau, color=BOTH, lw=0.9, ls=":")
            axis.set(xscale="log", title=label, ylim=(-0.04, 1.04), xlabel="tau")

    return panels(1, 3, 2.2, draw)


def agreement(rows: Sequence[Row]) -> Figure:
    """Predicted against observed clusters, by kind."""

    def draw(figure: Figure, axes: Any) -> None:
        _by_kind(axes[0, 0], rows, "agreement_mixed_{}")
        axes[0, 0].set(xlabel="adjusted Rand index of predicted and observed clusters")
        axes[0, 0].axvline(0, color=BOTH, lw=0.9, ls=":")
        legend_above(figure, axes[0, 0])

    return panels(1, 1, _kinds_height(rows), draw)


def coherence(rows: Sequence[Row]) -> Figure:
    """Pattern coherence of clusters against chance, and how unequal their members are."""

    def draw(figure: Figure, axes: Any) -> None:
        for axis, side in zip(axes[0], ("send", "receive"), strict=True):
            for name in ("lora", "drift"):
                here = [row for row in rows if row[f"coherence_{side}_{name}"] is not None]
                x = [row[f"coherence_chance_{side}_{name}"] for row in here]
                y = [row[f"coherence_{side}_{name}"] for row in here]
                axis.scatter(x, y, s=9, color=COLOURS[name], alpha=0.7, label=NAMES[name])
            axis.plot([0, 1], [0, 1], color=SOURCE, lw=0.8, ls="--")
            axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="chance", title=SIDES[side])
            axis.set_aspect("equal")
        axes[0, 0].set_ylabel("mean |cosine| inside clusters")
        for axis, side in zip(axes[1], ("send", "receive"), strict=True):
            sets = [[row[f"variation_{side}_{name}"] for row in rows] for name in ("lora", "drift")]
            for place, (name, values) in enumerate(zip(("lora", "drift"), sets, strict=True)):
                _swarm(axis, [place], [values], COLOURS[name], None)
            axis.set(xticks=(0, 1), xticklabels=("LoRA", "distillation"), xlim=(-0.6, 1.6), ylim=(0, None))
        axes[1, 0].set_ylabel("coefficient of variation")
        legend_above(figure, axes[0, 0])

    return panels(2, 2, 4.8, draw, height_ratios=(3, 2))


def concentration(rows: Sequence[Row]) -> Figure:
    """LoRA against distillation: Gini over clusters, share in the strongest tenth, share in the first tenth."""
    measures = (
        ("gini", "Gini over clusters"),
        ("top_tenth", "in the top tenth of clusters"),
        ("head_tenth", "in the first tenth"),
    )

    def draw(figure: Figure, axes: Any) -> None:
        for axis, (key, title) in zip(axes[0], measures, strict=True):
            for side, marker, colour in (("send", "o", GROUPS[0]), ("receive", "^", GROUPS[2])):
                x = [row[f"{key}_{side}_lora"] for row in rows]
                y = [row[f"{key}_{side}_drift"] for row in rows]
                axis.scatter(x, y, s=10, marker=marker, color=colour, alpha=0.65, label=SIDES[side], linewidths=0)
            top = max(axis.get_xlim()[1], axis.get_ylim()[1])
            axis.plot([0, top], [0, top], color=SOURCE, lw=0.8, ls="--")
            axis.set(xlim=(0, top), ylim=(0, top), title=title, xlabel="LoRA")
            axis.set_aspect("equal")
        axes[0, 0].set_ylabel("distillation")
        legend_above(figure, axes[0, 0])

    return panels(1, 3, 2.5, draw)


def interference_ranking(rows: Sequence[Row], count: int = 20) -> Figure:
    """The layers where LoRA and drift meet most: constructive to the right, destructive to the left."""
    ranked = sorted(rows, key=lambda row: -(row["interference"] or 0))[:count][::-1]

    def draw(figure: Figure, axes: Any) -> None:
        axis, places = axes[0, 0], np.arange(len(ranked))
        axis.barh(places, [row["constructive"] for row in ranked], color="#b3382c", height=0.7, label="constructive")
        axis.barh(places, [-row["destructive"] for row in ranked], color=GROUPS[0], height=0.7, label="destructive")
        for sign in (1, -1):
            axis.plot([sign * row["chance"] for row in ranked], places, ls="", marker="|", ms=7, color=SOURCE,
                      label="chance" if sign == 1 else None)  # fmt: skip
        axis.axvline(0, color=SOURCE, lw=0.8)
        axis.set(
            yticks=places, yticklabels=[short_name(row["layer"]) for row in ranked], ylim=(-0.6, len(ranked) - 0.4)
        )
        axis.set_xlabel("share of ‖C_lora‖·‖C_fft‖")
        axis.grid(axis="y", visible=False)
        legend_above(figure, axis)

    return panels(1, 1, 0.9 + 0.2 * max(3, len(ranked)), draw)


def intervention(rows: Sequence[Row]) -> Figure:
    """What CASA does with the entries, by kind."""
    keys = ("preserved", "restored", "arbitrated")

    def draw(figure: Figure, axes: Any) -> None:
        axis, kinds = axes[0, 0], _kinds(rows)
        start = np.zeros(len(kinds))
        for key, colour in zip(keys, DECISIONS, strict=True):
            share = np.array([np.mean([row[key] for row in rows if row["kind"] == kind]) for kind in kinds])
            axis.barh(np.arange(len(kinds)), share, left=start, color=colour, height=0.72, label=key)
            start += share
        axis.set(yticks=range(len(kinds)), yticklabels=kinds, xlim=(0, 1), xlabel="share of the routing entries")
        axis.grid(axis="y", visible=False)
        legend_above(figure, axis)

    return panels(1, 1, _kinds_height(rows), draw)


def intruder_test(rows: Sequence[Row]) -> Figure:
    """The least similar of the ten leading directions after each update, and how much of it is inside the old head."""

    def draw(figure: Figure, axes: Any) -> None:
        for axis, key, title in zip(
            axes[0], ("similarity", "inside"), ("nearest old direction", "share inside the old head"), strict=True
        ):
            for name in ("lora", "drift"):
                axis.scatter([_depth(row) for row in rows], [row[f"{key}_{name}"] for row in rows], s=9,
                             color=COLOURS[name], alpha=0.7, label=NAMES[name])  # fmt: skip
            axis.set(ylim=(0, 1.03), xlabel="block", title=title)
        for axis in axes[0]:
            _blocks(axis)
        axes[0, 0].axhline(0.5, color=SOURCE, lw=0.9, ls="--")
        axes[0, 0].set_ylabel("least of the ten leading")
        legend_above(figure, axes[0, 0])

    return panels(1, 2, 2.6, draw, sharey=True)


def norms(rows: Sequence[Row], methods: Mapping[str, str]) -> Figure:
    """The size of each layer's update before and after transfer; `methods` names the columns and their labels."""

    def draw(figure: Figure, axes: Any) -> None:
        axis = axes[0, 0]
        for (key, label), colour in zip(methods.items(), (LORA, GROUPS[2]), strict=False):
            here = [row for row in rows if row["lora"] and row[key]]
            axis.scatter(
                [row["lora"] for row in here], [row[key] for row in here], s=10, color=colour, alpha=0.7, label=label
            )
        top = max(axis.get_xlim()[1], axis.get_ylim()[1])
        axis.plot([0, top], [0, top], color=SOURCE, lw=0.8, ls="--", label="direct reuse")
        axis.set(xlim=(0, None), ylim=(0, None), xlabel="‖D_lora‖ / ‖W‖", ylabel="‖D′‖ / ‖W‖")
        legend_above(figure, axis)

    return panels(1, 1, 3.0, draw)


def shares_by_depth(rows: Sequence[Row], keys: Mapping[str, str], ylabel: str) -> Figure:
    """A few shares of every layer, by depth."""

    def draw(figure: Figure, axes: Any) -> None:
        for (key, label), colour in zip(keys.items(), (LORA, DRIFT, GROUPS[2]), strict=False):
            here = [row for row in rows if row.get(key) is not None]
            axes[0, 0].scatter(
                [_depth(row) for row in here], [row[key] for row in here], s=10, color=colour, alpha=0.7, label=label
            )
        axes[0, 0].set(xlabel="block", ylabel=ylabel, ylim=(0, None))
        _blocks(axes[0, 0])
        legend_above(figure, axes[0, 0])

    return panels(1, 1, 2.8, draw)


# --- parts of plots


def _by_group(axis: Axes, rows: Iterable[Row], key: str) -> None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["kind"]).split(".")[0] if row["depth"] is not None else "outside", []).append(row)
    for (group, members), colour in zip(groups.items(), GROUPS * 3, strict=False):
        x, y = [_depth(row) for row in members], [row[key] for row in members]
        axis.scatter(x, y, s=10, color=colour, alpha=0.75, label=group, linewidths=0)


def _by_kind(axis: Axes, rows: Sequence[Row], key: str) -> None:
    kinds = _kinds(rows)
    for offset, name in ((0.16, "lora"), (-0.16, "drift")):
        x = [row[key.format(name)] for row in rows]
        axis.scatter(
            x,
            [kinds.index(row["kind"]) + offset for row in rows],
            s=9,
            color=COLOURS[name],
            alpha=0.7,
            label=NAMES[name],
            linewidths=0,
        )
    axis.set(yticks=range(len(kinds)), yticklabels=kinds, ylim=(-0.6, len(kinds) - 0.4))


def _swarm(axis: Axes, places: Any, sets: Sequence[Sequence[float | None]], colour: str, label: str | None) -> None:
    """A column of points for each set, spread sideways by rank, with a line at the median."""
    for place, values in zip(places, sets, strict=True):
        known = np.sort([value for value in values if value is not None])
        if not len(known):
            continue
        sideways = 0.1 * (((np.arange(len(known)) * 0.618) % 1) * 2 - 1)
        axis.scatter(place + sideways, known, s=7, color=colour, alpha=0.6, linewidths=0, label=label)
        axis.hlines(np.median(known), place - 0.15, place + 0.15, color=SOURCE, lw=1.4)
        label = None


def _blocks(axis: Axes) -> None:
    """Whole numbers along the depth."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _log(axis: Any) -> None:
    """A logarithmic axis with plain numbers at 1, 2 and 5 of each power, wide enough to hold some of them."""
    low, high = axis.get_view_interval()
    if high < LEAST_SPAN * low:
        reach = (LEAST_SPAN * low / high) ** 0.5
        axis.axes.set(**{f"{axis.axis_name}lim": (low / reach, high * reach)})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def legend_above(figure: Figure, axis: Axes) -> None:
    """Put one legend above all panels of a figure."""
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=min(4, max(1, len(labels))),
        handletextpad=0.4,
        columnspacing=1.2,
    )


def _kinds(rows: Sequence[Row]) -> list[str]:
    return sorted({row["kind"] for row in rows}, reverse=True)


def _kinds_height(rows: Sequence[Row]) -> float:
    return 0.9 + 0.24 * max(3, len(_kinds(rows)))


def _depth(row: Row) -> float:
    return -1 if row["depth"] is None else float(row["depth"])


def colours(*names: str) -> ListedColormap:
    """A map of these colours, for values 0, 1, 2, …"""
    return ListedColormap(names)
