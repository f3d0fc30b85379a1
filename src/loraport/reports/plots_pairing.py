"""Which layers of two models are alike: a picture of the similarities by which they were paired."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from loraport.reports.figures import BOTH, WIDTH, Figure, panels


def similarities(pairing: Mapping[str, Any]) -> Figure:
    """Plot a panel for each role and shape: source layers down, target layers across, in order; rings are the pairs."""
    groups = [group for group in pairing["groups"] if len(group["sources"]) > 1] or list(pairing["groups"])
    pairs = {(target, origin) for target, origin, _ in pairing["pairs"]}
    columns = min(3, len(groups))
    rows = -(-len(groups) // columns)

    def draw(figure: Figure, axes: Any) -> None:
        for axis, group in zip(axes.flat, groups, strict=False):
            image = axis.imshow(np.array(group["similarity"]), vmin=0, vmax=1, cmap="Blues", aspect="auto")
            axis.scatter(*_rings(group, pairs), s=9, facecolors="none", edgecolors="#d4691a", linewidths=0.8)
            axis.set_title(_title(group), fontsize=6)
            axis.grid(False)
            axis.tick_params(labelsize=6)
            for line in (axis.xaxis, axis.yaxis):
                line.get_major_locator().set_params(integer=True, nbins=7)
        for axis in axes.flat[len(groups) :]:
            axis.set_visible(False)
        axes[-1, 0].set_xlabel("layer of the target", color=BOTH)
        axes[0, 0].set_ylabel("layer of the source", color=BOTH)
        figure.colorbar(image, ax=axes, shrink=0.6, label="similarity Φ")

    return panels(rows, columns, min(0.6 + WIDTH / 3 * rows, 40), draw)


def _rings(group: Mapping[str, Any], pairs: set[tuple[str, str]]) -> tuple[list[int], list[int]]:
    places: Sequence[tuple[int, int]] = [
        (column, row)
        for column, target in enumerate(group["targets"])
        for row, origin in enumerate(group["sources"])
        if (target, origin) in pairs
    ]
    return [column for column, _ in places], [row for _, row in places]


def _title(group: Mapping[str, Any]) -> str:
    start, _, layer = group["role"].rpartition(".*.")
    return f"{start.partition('.')[0]} {layer}\n{' × '.join(map(str, group['shape']))}".strip()
