"""The figures of one layer in detail: spectra, turned directions, clusters, routing, interference."""

from __future__ import annotations

from typing import Any

import numpy as np

from loraport.reports.figures import (
    BOTH,
    COLOURS,
    DECISION_COLOURS,
    GROUPS,
    NAMES,
    SOURCE,
    Curves,
    Figure,
    colours,
    legend_above,
    panels,
)

PLACES = ("head", "middle", "tail")
STRIPS = ("#dfe2e8", *GROUPS, "#d2699a", "#3aa0b0", "#1b1e24")
"""Single directions, then clusters by size."""


def spectra(curves: Curves) -> Figure:
    """Plot singular values before and after each update, and their relative change."""
    S = curves["S"].numpy()
    changes = {name: 100 * (curves[f"S_{name}"].numpy() - S) / np.maximum(S, S[0] * 1e-6) for name in ("lora", "drift")}

    def draw(figure: Figure, axes: Any) -> None:
        top, bottom = axes[0, 0], axes[1, 0]
        ranks = np.arange(1, len(S) + 1)
        top.plot(ranks, S, color=SOURCE, lw=2.2, label="source")
        for name, style in (("lora", "--"), ("drift", "-")):
            after = curves[f"S_{name}"].numpy()
            top.plot(
                ranks, after, color=COLOURS[name], ls=style, label={"lora": "source + LoRA", "drift": "target"}[name]
            )
            bottom.plot(ranks, changes[name], color=COLOURS[name], lw=1)
        top.axvline(len(curves["labels"]), color=BOTH, lw=0.9, ls=":", label="k")
        bottom.axvline(len(curves["labels"]), color=BOTH, lw=0.9, ls=":")
        bottom.axhline(0, color=SOURCE, lw=0.8)
        # the smallest values change by any share: the axis leaves the widest 3 % of the changes out
        limit = np.quantile(np.abs(np.concatenate(list(changes.values()))), 0.97)
        bottom.set(xlabel="direction", ylabel="change, %", ylim=(-1.3 * limit, 1.3 * limit))
        top.set(ylabel="singular value", ylim=(0, None))
        legend_above(figure, top)

    return panels(2, 1, 3.6, draw, sharex=True, height_ratios=(2, 1))


def turned(curves: Curves, side: str) -> Figure:
    """Plot |cosine| of every direction before with every one after, in three windows, and their singular values.

    `side` is U (left directions, outputs) or V (right directions, inputs).
    """
    names = [name for name in ("lora", "drift", "both") if f"mixing_{side}_{name}_head" in curves]
    S = curves["S"].numpy()

    def draw(figure: Figure, axes: Any) -> None:
        for column, place in enumerate(PLACES):
            width = curves[f"mixing_{side}_lora_{place}"].shape[0]
            start = {"head": 0, "middle": (len(S) - width) // 2, "tail": len(S) - width}[place]
            edge = axes[0, column]
            edge.plot(np.arange(width) + 0.5, S[start : start + width], color=SOURCE, lw=1)
            edge.set(title=f"{place}: {start + 1}–{start + width}", xlim=(0, width), xticks=[])
            edge.tick_params(labelsize=6.5)
            for line, name in enumerate(names, 1):
                axis = axes[line, column]
                image = curves[f"mixing_{side}_{name}_{place}"].numpy().astype(float) / 255
                last = axis.imshow(image, cmap="magma_r", vmin=0, vmax=1, extent=(0, width, width, 0))
                axis.set(xticks=[], yticks=[])
                axis.grid(visible=False)
                if column == 0:
                    label = NAMES[name].replace("LoRA on the distilled model", "LoRA on\nthe target")
                    axis.set_ylabel(label, color=COLOURS[name])
        bar = figure.colorbar(last, ax=axes[1:], location="bottom", shrink=0.5, aspect=30, pad=0.02)
        bar.set_label("|cosine|: rows before, columns after")

    heights = (0.35, *(1 for _ in names))
    return panels(1 + len(names), 3, 0.9 + 1.62 * len(names) + 0.5, draw, height_ratios=heights)


def cluster_strips(curves: Curves) -> Figure:
    """Plot which leading directions belong together: as predicted, and as observed after each update."""
    strips = {
        "predicted for the LoRA": "labels",
        "observed, LoRA": "observed_lora",
        "observed, distillation": "observed_drift",
    }

    def draw(figure: Figure, axes: Any) -> None:
        for axis, (title, key) in zip(axes[:, 0], strips.items(), strict=True):
            labels = curves[key].numpy()
            sizes = np.bincount(labels)
            order = np.argsort(-sizes, kind="stable")
            number = np.zeros(len(sizes), dtype=int)
            several = [m for m in order if sizes[m] > 1]
            number[several] = 1 + np.arange(len(several)) % (len(STRIPS) - 1)
            axis.imshow(number[labels][None, :], aspect="auto", cmap=colours(*STRIPS), vmin=0, vmax=9)
            axis.set(yticks=[], title=f"{title}: {len(sizes)} clusters, largest {sizes.max()} of {len(labels)}")
            axis.title.set_fontsize(8)
            axis.grid(visible=False)
        axes[-1, 0].set_xlabel("leading direction (grey: alone)")

    return panels(3, 1, 2.3, draw, sharex=True)


def routing_energy(curves: Curves) -> Figure:
    """Plot the RMS energy of every cluster as sender and receiver, and the block maps of both updates."""
    labels = curves["labels"].numpy()
    place = np.array([np.mean(np.flatnonzero(labels == m)) + 1 for m in range(labels.max() + 1)])
    sizes = np.bincount(labels)

    def draw(figure: Figure, axes: Any) -> None:
        for axis, side, title in zip(axes[0], ("send", "receive"), ("as senders", "as receivers"), strict=True):
            for name in ("lora", "drift"):
                energy = curves[f"energy_{side}_{name}"].numpy()
                area = 5 + 2.5 * np.minimum(sizes, 40)
                axis.scatter(place, energy, s=area, color=COLOURS[name], alpha=0.6, label=NAMES[name], linewidths=0)
            axis.axhline(1, color=SOURCE, lw=0.8, ls="--")
            axis.set(title=title, xlabel="place of the cluster", ylim=(0, None))
        axes[0, 0].set_ylabel("RMS energy (even: 1)")
        maps = [np.log10(np.maximum(curves[f"map_energy_{name}"].numpy(), 1e-3)) for name in ("lora", "drift")]
        for axis, image, name in zip(axes[1], maps, ("lora", "drift"), strict=True):
            last = axis.imshow(image, cmap="RdBu_r", vmin=-1, vmax=1)
            axis.set(xticks=[], yticks=[], xlabel="sends", title=NAMES[name])
            axis.grid(visible=False)
        axes[1, 0].set_ylabel("receives")
        bar = figure.colorbar(last, ax=axes[1, :], location="bottom", shrink=0.6, aspect=30, ticks=(-1, 0, 1))
        bar.ax.set_xticklabels(("a tenth", "even", "ten times"))
        legend_above(figure, axes[0, 0])

    return panels(2, 2, 5.2, draw, height_ratios=(1, 1.45))


def meeting(curves: Curves) -> Figure:
    """Plot overlap, alignment and CASA's decision, block by block."""

    def draw(figure: Figure, axes: Any) -> None:
        overlap = np.log10(np.maximum(curves["map_overlap"].numpy(), 1e-3))
        images = [
            axes[0, 0].imshow(overlap, cmap="magma_r", vmin=-1, vmax=1.5),
            axes[0, 1].imshow(curves["map_alignment"].numpy(), cmap="RdBu_r", vmin=-1, vmax=1),
            axes[0, 2].imshow(curves["map_decision"].numpy(), cmap=colours(*DECISION_COLOURS.values()), vmin=0, vmax=2),
        ]
        for axis, title in zip(axes[0], ("overlap", "alignment", "CASA's decision"), strict=True):
            axis.set(xticks=[], yticks=[], title=title, xlabel="sends")
            axis.grid(visible=False)
        axes[0, 0].set_ylabel("receives")
        # a bar under the third map too, not a legend: only so do the three maps stand side by side at one height
        ticks = (
            ((-1, 0, 1), ("0.1", "1", "10")),
            ((-1, 0, 1), ("opposed", "0", "aligned")),
            ((1 / 3, 1, 5 / 3), tuple(DECISION_COLOURS)),
        )
        for image, axis, (places, words) in zip(images, axes[0], ticks, strict=True):
            bar = figure.colorbar(image, ax=axis, location="bottom", ticks=places, aspect=14)
            bar.ax.set_xticklabels(words, fontsize=7 if axis is not axes[0, 2] else 5.6)

    return panels(1, 3, 2.4, draw)
