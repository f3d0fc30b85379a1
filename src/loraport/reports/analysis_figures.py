"""The list of an analysis' figures: their order, headings, and how to read each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from loraport.analysis.layer_statistics import TAUS
from loraport.analysis.results import Analysis, SweepResult
from loraport.reports import plots, plots_layer, plots_sweep
from loraport.reports.figures import Curves, Figure, Row


@dataclass(frozen=True)
class FigureSpec:
    """One figure: its file name, heading, how to read it, and the function that draws it."""

    key: str
    title: str
    reading: str
    draw: Callable[[], Figure]


def overview(analysis: Analysis) -> Iterator[FigureSpec]:
    """Yield the figures over all layers."""
    rows = [layer.row() for layer in analysis.layers]
    yield from _moved(analysis.survey.as_json()["layers"], rows)
    yield from _clustered(rows)
    yield from _routed(rows)
    yield _stability(rows, analysis.facts["settings"]["tau"])  # last, so that two columns are about as long


def _moved(survey: Sequence[Row], rows: Sequence[Row]) -> Iterator[FigureSpec]:
    yield FigureSpec(
        "drift", "How far each layer moved",
        "Each point is a layer; its height is the size of the update as a share of its weight. A drift near the grey "
        "floor is rounding error; check layers that are far from the others.",
        lambda: plots.drift_by_depth(survey, rows),
    )  # fmt: skip
    yield FigureSpec(
        "rigidity", "Spectral rigidity (Eq. 1; the paper's Fig. 2 and 15)",
        "ρ₂ is how much an update changes the singular values. It can never exceed the update's own size (dashed), so "
        "rigidity is how far below that line a point lies; the dotted line is the paper's 0.3 %.",
        lambda: plots.rigidity(rows),
    )  # fmt: skip
    yield FigureSpec(
        "turning", "Which directions keep their place (Fig. 3 in numbers)",
        "Each point is a layer: the mean |cosine| of single directions with themselves after the update. Near 1 they "
        "stay; low values in the tail are what any update of full rank does: neighbours there lie too close together.",
        lambda: plots.turning(rows),
    )  # fmt: skip


def _clustered(rows: Sequence[Row]) -> Iterator[FigureSpec]:
    yield FigureSpec(
        "agreement", "Do the predicted clusters exist?",
        "Clusters by predicted rotation (Eq. 4, above 0.2) against those by observed mixing (cosine above 0.2), each "
        "update by its own routing. 1: the same clusters; 0: no better than chance.",
        lambda: plots.agreement(rows),
    )  # fmt: skip
    yield FigureSpec(
        "coherence", "Coherence of the clusters (Fig. 4)",
        "Above: each point is a layer; above the dashed line the members of a cluster route more alike than random "
        "directions do. Below: how unequal the members' strengths are, 0 where all are equal.",
        lambda: plots.coherence(rows),
    )  # fmt: skip


def _stability(rows: Sequence[Row], tau: float) -> FigureSpec:
    return FigureSpec(
        "stability", "How much the clusters depend on tau",
        "Left: clusters per leading direction (1: all alone). Middle: share of the largest one (1: all directions in "
        "one cluster, and then everything dominates). Right: agreement with the clusters in use. Line: median over "
        "layers; band: the middle 80 %.",
        lambda: plots.stability(rows, TAUS, tau),
    )  # fmt: skip


def _routed(rows: Sequence[Row]) -> Iterator[FigureSpec]:
    yield FigureSpec(
        "concentration", "Does distillation concentrate, and LoRA spread? (Fig. 5, 11, 12)",
        "Each point is a layer, seen as senders or as receivers. Above the dashed line the distillation is the more "
        "concentrated of the two, below it the LoRA is. In the first tenth of directions an even spread holds 0.1.",
        lambda: plots.concentration(rows),
    )  # fmt: skip
    yield FigureSpec(
        "interference", "Where LoRA and drift interfere (Fig. 6, 17)",
        "The layers with the most interference, by mass and size of both updates. Red: blocks where both push the same "
        "way; blue: against each other; upright marks: what unrelated updates would show.",
        lambda: plots.interference_ranking(rows),
    )  # fmt: skip
    yield FigureSpec(
        "intervention", "What CASA does (Fig. 7)",
        "Share of the routing entries that are left alone (preserved), whose drift is removed (restored), and in which "
        "only the stronger update stays (arbitrated).",
        lambda: plots.intervention(rows),
    )  # fmt: skip
    yield FigureSpec(
        "intruders", "Intruder dimensions (Shuttleworth et al.)",
        "Each point is a layer's worst case among its ten leading directions. Left, below the dashed line: an "
        "intruder, unlike every direction before. Right: low values tell a new direction from rotation among old ones.",
        lambda: plots.intruder_test(rows),
    )  # fmt: skip
    yield FigureSpec(
        "norms", "Size before and after transfer (ProLoRA's Fig. 8)",
        "Each point is a layer. Below the dashed line the method shrinks the update, above it grows it; CASA before "
        "truncation, ProLoRA at 99 % of the energy.",
        lambda: plots.norms(rows, {"norm_casa": "CASA", "norm_prolora": "ProLoRA"}),
    )  # fmt: skip


def detail(analysis: Analysis, name: str) -> Iterator[FigureSpec]:
    """Yield the figures of one layer."""
    curves, key = analysis.curves[name], name.replace("/", "-")
    yield FigureSpec(
        f"{key}-spectra", "Singular values (Fig. 2)",
        "Before and after each update, with the relative change below. The dotted line is k: the directions left of it "
        "hold 90 % of the energy.",
        lambda: plots_layer.spectra(curves),
    )  # fmt: skip
    yield _turned(curves, key, "U", "outputs")
    yield FigureSpec(
        f"{key}-clusters", "Clusters",
        "Each leading direction by its cluster, strongest at the left. The same colours in two strips mean nothing; "
        "the same pattern of pieces does.",
        lambda: plots_layer.cluster_strips(curves),
    )  # fmt: skip
    yield _turned(curves, key, "V", "inputs")  # not beside the outputs: two columns are about as long so
    yield FigureSpec(
        f"{key}-routing", "Routing energy (Fig. 5, 11, 12)",
        "Above: energy of each cluster as sender and receiver over the layer's own average, larger points for larger "
        "clusters. Below: the same for pairs of clusters; red routes more than the average, blue less.",
        lambda: plots_layer.routing_energy(curves),
    )  # fmt: skip
    yield FigureSpec(
        f"{key}-meeting", "Interference and intervention (Fig. 6, 7)",
        "Left: where both updates are strong. Middle: red where they push the same way, blue where they cancel (a "
        "block of one entry is always one or the other). Right: what CASA decides for more than half of a block.",
        lambda: plots_layer.meeting(curves),
    )  # fmt: skip


OUTCOMES = {
    "restored": "share restored",
    "arbitrated": "share arbitrated",
    "kept_energy": "kept energy",
    "kept_correction": "kept correction",
    "distance": "distance, all ranks",
    "distance_written": "distance, as written",
}


def sweep_figures(sweeps: Sequence[SweepResult]) -> Iterator[FigureSpec]:
    """Yield a figure for each setting of each grid."""
    for number, sweep in enumerate(sweeps, 1):
        for knob in sweep.knobs:
            yield FigureSpec(
                f"sweep-{number}-{knob}", f"{knob}",
                "Median over layers (and over the grid's other settings), band: the middle 80 %. Distance: of the "
                "effective routing to source + LoRA, over the LoRA's size; 0 rolls the target back completely, "
                "direct reuse has the drift's size over the LoRA's.",
                partial(plots_sweep.sweep_lines, sweep.rows, knob, OUTCOMES),
            )  # fmt: skip


def all_figures(analysis: Analysis) -> Sequence[tuple[str | None, FigureSpec]]:
    """Return every figure with its layer, None for those over all layers."""
    figures: list[tuple[str | None, FigureSpec]] = [(None, spec) for spec in overview(analysis)]
    for name in analysis.curves:
        figures += [(name, spec) for spec in detail(analysis, name)]
    return figures


def _turned(curves: Curves, key: str, side: str, word: str) -> FigureSpec:
    return FigureSpec(
        f"{key}-turned-{side}", f"Turned directions, {word} (|{side}ᵀ{side}′|; Fig. 3, 9, 10, 16)",
        "A strong diagonal: directions stay. Strong blocks: directions turn into each other, mostly where the curve of "
        "singular values above is flat. A haze: they dissolve into many.",
        partial(plots_layer.turned, curves, side),
    )  # fmt: skip
