"""What an analysis found, in sentences, whichever way the numbers fall; and its tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from loraport.analysis.results import Analysis
from loraport.analysis.survey import Survey
from loraport.reports.transfer_page import LITTLE

Row = dict[str, Any]
SIDES = ("send", "receive")
DECISIONS = ("restored", "preserved", "arbitrated")
KIND_COLUMNS: tuple[tuple[str, str, str], ...] = (  # key, heading, format
    ("drift", "Drift", "{:.3f}"),
    ("lora", "LoRA", "{:.3f}"),
    ("rho2_drift", "ρ₂ drift", "{:.2%}"),
    ("rho2_lora", "ρ₂ LoRA", "{:.2%}"),
    ("gini_send_drift", "Gini drift", "{:.2f}"),
    ("gini_send_lora", "Gini LoRA", "{:.2f}"),
    ("constructive", "Constructive", "{:.3f}"),
    ("destructive", "Destructive", "{:.3f}"),
    ("chance", "Chance", "{:.3f}"),
    ("restored", "Restored", "{:.1%}"),
)
LAYER_COLUMNS: tuple[tuple[str, str, str], ...] = (
    ("layer", "Layer", "{}"),
    ("drift", "Drift", "{:.3f}"),
    ("lora", "LoRA", "{:.3f}"),
    ("cosine", "Cosine", "{:+.3f}"),
    ("k", "k", "{}"),
    ("clusters", "Clusters", "{}"),
    ("largest_cluster", "Largest", "{:.1%}"),
    ("rho2_drift", "ρ₂ drift", "{:.2%}"),
    ("rho2_lora", "ρ₂ LoRA", "{:.2%}"),
    ("agreement_mixed_lora", "Agreement", "{:.2f}"),
    ("constructive", "Constructive", "{:.3f}"),
    ("destructive", "Destructive", "{:.3f}"),
    ("chance", "Chance", "{:.3f}"),
    ("restored", "Restored", "{:.1%}"),
    ("arbitrated", "Arbitrated", "{:.1%}"),
    ("intruders_lora", "Intruders LoRA", "{}"),
    ("intruders_drift", "Intruders drift", "{}"),
    ("degenerate", "Degenerate", "{:.1%}"),
)


def findings(analysis: Analysis) -> list[str]:
    """The most important things first: can this pair be trusted, and which of the paper's claims hold here."""
    rows = [layer.row() for layer in analysis.layers]
    return [analysis.survey.verdict(), *_cautions(analysis.survey), *_claims(rows)]


def _cautions(survey: Survey) -> Iterator[str]:
    if survey.identical:
        yield f"{survey.identical:.0%} of the {len(survey.layers)} layers are identical in both, bit by bit."
    if survey.rounding:
        yield (
            f"In {_listed(survey.rounding)} the drift is within what rounding the files makes: it counts as none, and "
            "a transfer copies the LoRA there, unless --force-drift is given."
        )
    if outliers := survey.outliers():
        yield f"Far from the others' drift: {_listed(outliers)}."
    unpaired = survey.only_source + survey.only_target + survey.other_shape
    if unpaired:
        yield (
            f"Without a partner: {survey.only_source} layers of the source, {survey.only_target} of the target; "
            f"{survey.other_shape} have another shape there."
        )
    if survey.not_fetched:
        yield f"Not compared: {survey.not_fetched} weights in files on the Hub that the LoRA does not touch."


def _claims(rows: Sequence[Row]) -> Iterator[str]:
    lora, drift = (middle(row[f"rho2_{name}"] for row in rows) for name in ("lora", "drift"))
    yield (
        f"Rigidity: the LoRA changes the singular values by {lora:.2%} in the median and "
        f"{_most(rows, 'rho2_lora'):.2%} at most, the distillation by {drift:.2%} and {_most(rows, 'rho2_drift'):.2%}; "
        "the paper finds at most 0.3 %, whose updates may be smaller."
    )
    yield f"“Distillation concentrates, LoRA spreads”: {_concentration(rows)}."
    met = middle((row["constructive"] + row["destructive"]) / (2 * row["chance"]) for row in rows if row["chance"])
    yield (
        f"LoRA and drift meet, for and against each other, {met:.2f} times as much as unrelated updates of the same "
        "shape would (median)."
    )
    head = middle(row["interference_head"] for row in rows)
    yield f"{head:.0%} of where they meet lies in the first tenth of the directions, on either side; 19% would be even."
    yield from _decisions(rows)
    yield (
        f"Predicted and observed clusters agree by {_two(rows, 'agreement_mixed')} where both draw the line at 0.2, by "
        f"{_two(rows, 'agreement')} with the tau in use (LoRA and distillation; 1: the same, 0: chance)."
    )
    counts = {name: sum(row[f"intruders_{name}"] > 0 for row in rows) for name in ("lora", "drift")}
    yield (
        f"Layers with intruder dimensions: {counts['lora']} of {len(rows)} with the LoRA, {counts['drift']} by the "
        "distillation."
    )
    loose = middle(row["degenerate"] for row in rows)
    if loose > 0.01:
        yield (
            f"{loose:.0%} of the leading directions lie within a thousandth of their neighbour (median): single "
            "directions mean nothing there, clusters may."
        )


def _two(rows: Sequence[Row], key: str) -> str:
    """The medians of the LoRA and of the distillation."""
    return " and ".join(f"{middle(row[f'{key}_{name}'] for row in rows):.2f}" for name in ("lora", "drift"))


def _concentration(rows: Sequence[Row]) -> str:
    def more(key: str) -> list[int]:
        return [sum(row[f"{key}_{side}_drift"] > row[f"{key}_{side}_lora"] for row in rows) for side in SIDES]

    gini, head = more("gini"), more("head_tenth")
    most = [2 * count > len(rows) for count in (*gini, *head)]
    verdict = "holds in most layers" if all(most) else "holds in part" if any(most) else "does not hold here"
    return (
        f"{verdict}. By the Gini coefficient over clusters the drift is more concentrated than the LoRA in {gini[0]} "
        f"of {len(rows)} layers as senders and {gini[1]} as receivers; by the share in the first tenth of directions "
        f"in {head[0]} and {head[1]}"
    )


def _decisions(rows: Sequence[Row]) -> Iterator[str]:
    """What CASA does, from the layers' own shares; what a large cluster means depends on whether it dominates."""
    restored, preserved, arbitrated = (middle(row[name] for row in rows) for name in DECISIONS)
    yield (
        f"CASA takes the drift back from {restored:.0%} of the routing entries, leaves {preserved:.0%} alone, and "
        f"keeps only the stronger update in {arbitrated:.0%} (medians)."
    )
    if giants := [row for row in rows if row["largest_cluster"] > 0.5]:
        yield (
            f"In {len(giants)} of {len(rows)} layers one cluster holds more than half of the leading directions. "
            "Dominant, it shields all its entries; weak, it is restored whole: there the drift is taken back from "
            f"{middle(row['restored'] for row in giants):.0%} of the entries in the median."
        )
    if idle := sum(row["preserved"] > LITTLE for row in rows):
        yield f"In {idle} of {len(rows)} layers more than nine tenths of the entries are left alone: CASA does little."


def kind_table(analysis: Analysis) -> list[list[str]]:
    """A row for each kind of module, and one for all: median, and the most in brackets."""
    rows = [layer.row() for layer in analysis.layers]
    kinds = sorted({row["kind"] for row in rows})
    groups = [(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    table = []
    for name, members in [*groups, ("all", rows)]:
        cells = [
            f"{form.format(middle(known))} ({form.format(max(known))})" if known else "–"
            for key, _, form in KIND_COLUMNS
            if (known := [row[key] for row in members if row[key] is not None]) is not None
        ]
        table.append([f"{name} × {len(members)}", *cells])
    return table


def layer_table(analysis: Analysis) -> list[list[str]]:
    """A row for each layer, the one with the most interference first."""
    rows = sorted((layer.row() for layer in analysis.layers), key=lambda row: -(row["interference"] or 0))
    return [["–" if row[key] is None else form.format(row[key]) for key, _, form in LAYER_COLUMNS] for row in rows]


def middle(values: Iterable[float | None]) -> float:
    """Return the median of what is known; 0 of nothing."""
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else 0.0


def _most(rows: Sequence[Row], key: str) -> float:
    return max((row[key] for row in rows if row[key] is not None), default=0.0)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
