"""The plots over all layers of an analysis or a transfer: rows of numbers in, figures out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from loraport.files.names.blocks import short_name
from loraport.reports.figures import (
    BOTH,
    COLOURS,
    DECISION_COLOURS,
    DRIFT,
    GROUPS,
    LORA,
    NAMES,
    SOURCE,
    Figure,
    Row,
    legend_above,
    panels,
)

LEAST_SPAN = 6.0  # of a logarithmic axis, so that it has ticks
SIDES = {"send": "as senders", "receive": "as receivers"}


def drift_by_depth(survey: Sequence[Row], rows: Sequence[Row]) -> Figure:
    """Plot how far distillation and LoRA move each layer, by depth, with the rounding floor."""

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
    """Plot ρ₂ by depth, and against the size of the update that bounds it."""

    def draw(figure: Figure, axes: Any) -> None:
        left, right = axes[0]
        for name, beside in zip(("lora", "drift"), _offsets(2), strict=True):
            known = [row for row in rows if row[f"rho2_{name}"] and row[name]]
            values = [row[f"rho2_{name}"] for row in known]
            depths = [_depth(row) + beside for row in known]
            left.scatter(depths, values, s=9, color=COLOURS[name], alpha=0.7, label=NAMES[name])
            right.scatter([row[name] for row in known], values, s=9, color=COLOURS[name], alpha=0.7)
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
    """Plot how well single directions keep their place in head, middle and tail."""

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
    """Plot clusters over tau: number, largest share, agreement with those in use."""
    measures = (
        ("clusters_tau_", "clusters / k", True),
        ("largest_tau_", "share of the largest", False),
        ("agreement_tau_", f"agreement with tau {tau:g}", False),
    )

    def draw(figure: Figure, axes: Any) -> None:
        for axis, (key, label, per_k) in zip(axes[0], measures, strict=True):
            table = np.array([[row[f"{key}{t:g}"] / (row["k"] if per_k else 1) for t in taus] for row in rows])
            low, middle, high = np.quantile(table, [0.1, 0.5, 0.9], axis=0)
            axis.fill_between(taus, low, high, color=LORA, alpha=0.18, lw=0)
            axis.plot(taus, middle, color=LORA, marker="o", ms=3)
            axis.axvline(tau, color=BOTH, lw=0.9, ls=":")
            axis.set(xscale="log", title=label, ylim=(-0.04, 1.04), xlabel="tau")

    return panels(1, 3, 2.2, draw)


def agreement(rows: Sequence[Row]) -> Figure:
    """Plot the agreement of predicted and observed clusters, by kind."""

    def draw(figure: Figure, axes: Any) -> None:
        _by_kind(axes[0, 0], rows, "agreement_mixed_{}")
        axes[0, 0].set(xlabel="adjusted Rand index of predicted and observed clusters")
        axes[0, 0].axvline(0, color=BOTH, lw=0.9, ls=":")
        legend_above(figure, axes[0, 0])

    return panels(1, 1, _kinds_height(rows), draw)


def coherence(rows: Sequence[Row]) -> Figure:
    """Plot the coherence of clusters against chance, and how unequal their members are."""

    def draw(figure: Figure, axes: Any) -> None:
        for axis, side in zip(axes[0], ("send", "receive"), strict=True):
            for name in ("lora", "drift"):
                known = [row for row in rows if row[f"coherence_{side}_{name}"] is not None]
                x = [row[f"coherence_chance_{side}_{name}"] for row in known]
                y = [row[f"coherence_{side}_{name}"] for row in known]
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
    """Plot LoRA against distillation: Gini over clusters, share in the strongest tenth, share in the first tenth."""
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

    return panels(1, 3, 2.3, draw)


def interference_ranking(rows: Sequence[Row], count: int = 20) -> Figure:
    """Plot the layers where LoRA and drift meet most: constructive to the right, destructive to the left."""
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
            yticks=places,
            yticklabels=[short_name(row["layer"]) for row in ranked],
            ylim=(-0.6, len(ranked) - 0.4),
        )
        axis.set_xlabel("share of ‖C_lora‖·‖C_fft‖")
        axis.grid(axis="y", visible=False)
        legend_above(figure, axis)

    return panels(1, 1, 0.9 + 0.2 * max(3, len(ranked)), draw)


def intervention(rows: Sequence[Row]) -> Figure:
    """Plot what CASA does with the entries, by kind."""

    def draw(figure: Figure, axes: Any) -> None:
        axis, kinds = axes[0, 0], _kinds(rows)
        start = np.zeros(len(kinds))
        for key, colour in DECISION_COLOURS.items():
            share = np.array([np.mean([row[key] for row in rows if row["kind"] == kind]) for kind in kinds])
            axis.barh(np.arange(len(kinds)), share, left=start, color=colour, height=0.72, label=key)
            start += share
        axis.set(yticks=range(len(kinds)), yticklabels=kinds, xlim=(0, 1), xlabel="share of the routing entries")
        axis.grid(axis="y", visible=False)
        legend_above(figure, axis)

    return panels(1, 1, _kinds_height(rows), draw)


def intruder_test(rows: Sequence[Row]) -> Figure:
    """Plot the least similar of the ten leading directions after each update, and its share inside the old head."""

    def draw(figure: Figure, axes: Any) -> None:
        for axis, key, title in zip(
            axes[0], ("similarity", "inside"), ("nearest old direction", "share inside the old head"), strict=True
        ):
            for name, beside in zip(("lora", "drift"), _offsets(2), strict=True):
                depths, values = [_depth(row) + beside for row in rows], [row[f"{key}_{name}"] for row in rows]
                axis.scatter(depths, values, s=9, color=COLOURS[name], alpha=0.7, label=NAMES[name])
            axis.set(ylim=(0, 1.03), xlabel="block", title=title)
        for axis in axes[0]:
            _blocks(axis)
        axes[0, 0].axhline(0.5, color=SOURCE, lw=0.9, ls="--")
        axes[0, 0].set_ylabel("least of the ten leading")
        legend_above(figure, axes[0, 0])

    return panels(1, 2, 2.6, draw, sharey=True)


def norms(rows: Sequence[Row], methods: Mapping[str, str]) -> Figure:
    """Plot the size of each layer's update before and after transfer; `methods` names the columns and their labels."""

    def draw(figure: Figure, axes: Any) -> None:
        axis = axes[0, 0]
        for (key, label), colour in zip(methods.items(), (LORA, GROUPS[2]), strict=False):
            known = [row for row in rows if row["lora"] and row[key]]
            before, after = [row["lora"] for row in known], [row[key] for row in known]
            axis.scatter(before, after, s=10, color=colour, alpha=0.7, label=label)
        top = max(axis.get_xlim()[1], axis.get_ylim()[1])
        axis.plot([0, top], [0, top], color=SOURCE, lw=0.8, ls="--", label="direct reuse")
        axis.set(xlim=(0, None), ylim=(0, None), xlabel="‖D_lora‖ / ‖W‖", ylabel="‖D′‖ / ‖W‖")
        legend_above(figure, axis)

    return panels(1, 1, 3.0, draw)


def shares_by_depth(rows: Sequence[Row], keys: Mapping[str, str], ylabel: str) -> Figure:
    """Plot a few shares of every layer, by depth, those of one layer beside each other."""

    def draw(figure: Figure, axes: Any) -> None:
        for (key, label), colour, beside in zip(keys.items(), (LORA, DRIFT, GROUPS[2]), _offsets(3), strict=False):
            known = [row for row in rows if row.get(key) is not None]
            depths, values = [_depth(row) + beside for row in known], [row[key] for row in known]
            axes[0, 0].scatter(depths, values, s=10, color=colour, alpha=0.7, label=label)
        axes[0, 0].set(xlabel="block", ylabel=ylabel, ylim=(0, None))
        _blocks(axes[0, 0])
        legend_above(figure, axes[0, 0])

    return panels(1, 1, 2.8, draw)


# --- parts of plots


def _by_group(axis: Axes, rows: Iterable[Row], key: str) -> None:
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(str(row["kind"]).split(".")[0] if row["depth"] is not None else "outside", []).append(row)
    for (group, members), colour, beside in zip(groups.items(), GROUPS * 3, _offsets(len(groups)), strict=False):
        x, y = [_depth(row) + beside for row in members], [row[key] for row in members]
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
    """Draw a column of points for each set, spread sideways by rank, with a line at the median."""
    for place, values in zip(places, sets, strict=True):
        known = np.sort([value for value in values if value is not None])
        if not len(known):
            continue
        # multiples of the golden ratio fall evenly into 0 to 1, however many there are
        sideways = 0.1 * (((np.arange(len(known)) * 0.618) % 1) * 2 - 1)
        axis.scatter(place + sideways, known, s=7, color=colour, alpha=0.6, linewidths=0, label=label)
        axis.hlines(np.median(known), place - 0.15, place + 0.15, color=SOURCE, lw=1.4)
        label = None  # one entry in the legend for all columns


def _blocks(axis: Axes) -> None:
    """Put whole numbers along the depth."""
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))


def _log(axis: Any) -> None:
    """Make a logarithmic axis with plain numbers at 1, 2 and 5 of each power, wide enough to hold some of them."""
    low, high = axis.get_view_interval()
    if high < LEAST_SPAN * low:
        reach = (LEAST_SPAN * low / high) ** 0.5
        axis.axes.set(**{f"{axis.axis_name}lim": (low / reach, high * reach)})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _kinds(rows: Sequence[Row]) -> list[str]:
    return sorted({row["kind"] for row in rows}, reverse=True)


def _kinds_height(rows: Sequence[Row]) -> float:
    return 0.9 + 0.24 * max(3, len(_kinds(rows)))


def _depth(row: Row) -> float:
    return -1 if row["depth"] is None else float(row["depth"])


def _offsets(count: int) -> list[float]:
    """Return shifts along the depth, so that points of one block do not hide each other."""
    return [0.4 * ((number + 0.5) / count - 0.5) for number in range(count)]
