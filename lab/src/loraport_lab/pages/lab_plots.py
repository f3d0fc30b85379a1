"""The lab's figures: SVG, as data addresses that a page can hold."""

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from loraport.reports.figures import STYLE, address

INK, SOFT, MARK = "#1b1e24", "#5d6470", "#2f5fd0"
PALETTE = ("#2f5fd0", "#c2571a", "#3b8f5a", "#8a4fbf")
LIMIT = 2.0  # dB at which the heat map's colours end


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")


def change_map(facts: Mapping[str, Any], names: Sequence[str]) -> str:
    """Draw rows against cells: the change of fidelity against direct reuse in dB, discriminating cells on the left."""
    cells = sorted(facts["cells"], key=lambda cell: not cell["discriminating"])
    table = {cell["name"]: {row["name"]: row["metrics"]["psnr"] for row in cell["rows"]} for cell in cells}
    values = np.array([[table[cell["name"]][name]["change"] for cell in cells] for name in names])
    with matplotlib.rc_context(STYLE):
        figure = _figure(1.8 + 0.46 * len(cells), 1.4 + 0.27 * len(names))
        axes = figure.add_subplot()
        axes.grid(visible=False)
        axes.imshow(values, cmap="RdBu", vmin=-LIMIT, vmax=LIMIT, aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if abs(value) > 0.7 * LIMIT else INK
            axes.text(
                column, row, f"{value:+.1f}".replace("-", "−"), ha="center", va="center", fontsize=7, color=colour
            )
        border = sum(cell["discriminating"] for cell in cells) - 0.5
        axes.axvline(border, color=INK, linewidth=1.2)
        axes.set_xticks(range(len(cells)), [cell["name"] for cell in cells], rotation=60, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        return address(figure)


def trade_off(pooled: Sequence[Mapping[str, Any]]) -> str:
    """Draw every row's mean change of fidelity against its mean change of effect, over all cells.

    Both scales are linear up to 0.5 dB and 5 points, logarithmic beyond; the names stand beside, in the points' order.
    """
    points = sorted(((row["psnr"]["change"], row["effect"]["change"], row) for row in pooled), key=lambda at: at[1])
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8.4, 4.8))  # with places of its own, not laid out
        axes = figure.add_axes((0.09, 0.11, 0.55, 0.85))
        axes.axhline(0, color="#dfe2e8", zorder=0)
        axes.axvline(0, color="#dfe2e8", zorder=0)
        axes.set_xscale("symlog", linthresh=0.5, linscale=1.5)
        axes.set_yscale("symlog", linthresh=5, linscale=1.5)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_major_formatter("{x:g}")
        for place, (x, y, row) in enumerate(points):
            colour = SOFT if row["group"] == "frame" else MARK
            axes.plot(x, y, "s" if row["group"] == "frame" else "o", color=colour, markersize=5)
            height = place / max(1, len(points) - 1)
            axes.annotate(
                row["name"], (x, y), xytext=(1.08, height), textcoords="axes fraction", fontsize=7, color=INK,
                va="center", arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.4, "alpha": 0.6},
            )  # fmt: skip
        axes.set_xlabel("fidelity against direct reuse, dB, mean over cells")
        axes.set_ylabel("effect against direct reuse, points")
        return address(figure)


def partly_distilled(facts: Mapping[str, Any]) -> str | None:
    """Draw the adapter on students whose drift was thinned out, or disturbed: a line for each cell that was studied."""
    cells = [cell for cell in facts["cells"] if any(row["group"] == "partly distilled" for row in cell["rows"])]
    if not cells:
        return None
    with matplotlib.rc_context(STYLE):
        figure = _figure(8.6, 2.9)
        for axes, (metric, label) in zip(
            figure.subplots(1, 2), (("psnr", "fidelity, dB"), ("content", "content, points")), strict=True
        ):
            axes.axhline(0, color="#dfe2e8", zorder=0)
            for colour, cell in zip(PALETTE, cells, strict=False):
                changes = {row["name"]: row["metrics"][metric]["change"] for row in cell["rows"]}
                kept = {float(n.split()[-1]): value for n, value in changes.items() if n.startswith("dominant only")}
                axes.plot(list(kept), list(kept.values()), "o-", color=colour, markersize=3, label=cell["name"])
                disturbed = [value for name, value in changes.items() if name.startswith("peaks")]
                axes.plot([1.15 + 0.35 * i for i in range(len(disturbed))], disturbed, "x", color=colour, markersize=5)
            axes.set_xticks([0, 0.3, 0.6, 0.9, 1.15, 1.5], ["0", "0.3", "0.6", "0.9", "×2", "×2 ± √5"])
            axes.set_xlabel("only drift above quantile   |   its peaks")
            axes.set_title(f"{label} against direct")
            axes.tick_params(axis="x", rotation=35)
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return address(figure)


def dials(facts: Mapping[str, Any], names: Sequence[str]) -> Figure | None:
    """Draw a column a dial: changes of fidelity and of effect against direct reuse, a line for each studied cell.

    After the paper's Fig. 8. None where no cell was studied.
    """
    cells = [cell for cell in facts["cells"] if any(row["group"] == "sensitivity" for row in cell["rows"])]
    if not cells:
        return None
    with matplotlib.rc_context(STYLE):
        figure = _figure(2.3 * len(names), 4.4)
        grid = figure.subplots(2, len(names), sharey="row", sharex="col")
        for line, (metric, label) in zip(
            grid, (("psnr", "fidelity, dB against direct"), ("effect", "effect, points against direct")), strict=True
        ):
            for dial, axes in zip(names, line, strict=True):
                axes.axhline(0, color="#dfe2e8", zorder=0)
                for colour, cell in zip(PALETTE, cells, strict=False):
                    points = sorted(
                        (float(row["name"].split()[1]), row["metrics"][metric]["change"])
                        for row in cell["rows"]
                        if row["group"] == "sensitivity" and row["name"].split()[0] == dial
                    )
                    axes.plot(*zip(*points, strict=True), "o-", color=colour, markersize=3, label=cell["name"])
                if dial == "tau":
                    axes.set_xscale("log")
            line[0].set_ylabel(label)
        for dial, axes in zip(names, grid[0], strict=True):
            axes.set_title(dial)
        grid[0][-1].legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return figure


def ranks(facts: Mapping[str, Any]) -> str | None:
    """Draw CASA at several ranks: fidelity and effect against direct reuse, a line for each cell that was studied."""
    cells = [cell for cell in facts["cells"] if any(row["group"] == "rank" for row in cell["rows"])]
    if not cells:
        return None
    with matplotlib.rc_context(STYLE):
        figure = _figure(6.6, 2.9)
        for axes, (metric, label) in zip(
            figure.subplots(1, 2), (("psnr", "fidelity, dB"), ("effect", "effect, points")), strict=True
        ):
            axes.axhline(0, color="#dfe2e8", zorder=0)
            for colour, cell in zip(PALETTE, cells, strict=False):
                rows = [row for row in cell["rows"] if row["name"].startswith("casa, rank ")]
                words = [row["name"].removeprefix("casa, rank ") for row in rows]
                axes.plot(
                    words,
                    [row["metrics"][metric]["change"] for row in rows],
                    "o-",
                    color=colour,
                    markersize=3,
                    label=cell["name"],
                )
            axes.set_title(f"{label} against direct")
        axes.legend(fontsize=7, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
        return address(figure)
