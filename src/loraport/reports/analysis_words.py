"""Say what an analysis found, in sentences that follow the numbers, and in tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from loraport.analysis.results import Analysis
from loraport.analysis.survey import Survey
from loraport.reports.rendering import Columns, cell, percent
from loraport.reports.transfer_page import MOSTLY_IDLE

Numbers = Mapping[str, Any]
KIND_COLUMNS: Columns = (
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
ANALYSIS_COLUMNS: Columns = (
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


def analysis_findings(analysis: Analysis) -> list[str]:
    """Return the findings: first whether this is a pair at all, then which of the paper's claims hold here."""
    rows = [layer.row() for layer in analysis.layers]
    return [analysis.survey.verdict(), *_cautions(analysis.survey), *_claims(rows)]


def _cautions(survey: Survey) -> Iterator[str]:
    if survey.identical:
        yield f"{percent(survey.identical)} of the {len(survey.layers)} layers are identical in both, bit by bit."
    if survey.rounding:
        yield (
            f"In {_listed(survey.rounding)} the drift is within the rounding error of the files: it counts as none, "
            "and a transfer copies the LoRA there, unless --force-drift is given."
        )
    if outliers := survey.outliers():
        yield f"Layers whose drift is far from that of the others: {_listed(outliers)}."
    unpaired = survey.only_source + survey.only_target + survey.other_shape
    if unpaired:
        yield (
            f"Layers without a partner: {survey.only_source} of the source and {survey.only_target} of the target; "
            f"{survey.other_shape} have another shape in the target."
        )
    if survey.not_fetched:
        yield (
            f"Not compared: {survey.not_fetched} weights that the LoRA does not touch, in files that were not "
            "downloaded."
        )


def _claims(rows: Sequence[Numbers]) -> Iterator[str]:
    lora, drift = (middle(row[f"rho2_{name}"] for row in rows) for name in ("lora", "drift"))
    yield (
        f"Rigidity: the LoRA changes the singular values by {percent(lora, 2)} (median; at most "
        f"{percent(_most(rows, 'rho2_lora'), 2)}), the distillation by {percent(drift, 2)} (at most "
        f"{percent(_most(rows, 'rho2_drift'), 2)}). The paper finds at most 0.3 %, possibly for smaller updates."
    )
    yield f"“Distillation concentrates, LoRA spreads”: {_concentration(rows)}."
    met = middle((row["constructive"] + row["destructive"]) / (2 * row["chance"]) for row in rows if row["chance"])
    yield (
        f"LoRA and drift overlap, for and against each other, {met:.2f} times as much as unrelated updates of the same "
        "shape would (median)."
    )
    head = middle(row["interference_head"] for row in rows)
    yield f"{percent(head)} of their overlap lies in the first tenth of the directions, on either side (evenly: 19 %)."
    yield from _decisions(rows)
    yield (
        "Predicted and observed clusters agree (1: the same, 0: as by chance; LoRA and distillation) by "
        f"{_two(rows, 'agreement_mixed')} with the paper's threshold of 0.2 for both, by {_two(rows, 'agreement')} "
        "with the tau in use."
    )
    counts = {name: sum(row[f"intruders_{name}"] > 0 for row in rows) for name in ("lora", "drift")}
    yield (
        f"Layers with intruder dimensions: {counts['lora']} of {len(rows)} by the LoRA, {counts['drift']} by the "
        "distillation."
    )
    loose = middle(row["degenerate"] for row in rows)
    if loose > 0.01:
        yield (
            f"{percent(loose)} of the leading singular values lie within a thousandth of their neighbour (median): "
            "there single directions mean nothing, clusters may."
        )


def _two(rows: Sequence[Numbers], key: str) -> str:
    """Return the medians of the LoRA and of the distillation."""
    return " and ".join(f"{middle(row[f'{key}_{name}'] for row in rows):.2f}" for name in ("lora", "drift"))


def _concentration(rows: Sequence[Numbers]) -> str:
    def more(key: str) -> list[int]:
        return [
            sum(row[f"{key}_{side}_drift"] > row[f"{key}_{side}_lora"] for row in rows) for side in ("send", "receive")
        ]

    gini, head = more("gini"), more("head_tenth")
    most = [2 * count > len(rows) for count in (*gini, *head)]
    verdict = "holds in most layers" if all(most) else "holds in part" if any(most) else "does not hold here"
    return (
        f"{verdict}. By the Gini coefficient over clusters the drift is more concentrated than the LoRA in {gini[0]} "
        f"of {len(rows)} layers as senders and {gini[1]} as receivers; by the share in the first tenth of directions "
        f"in {head[0]} and {head[1]}"
    )


def _decisions(rows: Sequence[Numbers]) -> Iterator[str]:
    """Say what CASA does, from the layers' own shares; what a large cluster means depends on whether it dominates."""
    restored, preserved, arbitrated = (
        middle(row[name] for row in rows) for name in ("restored", "preserved", "arbitrated")
    )
    yield (
        f"CASA removes the drift from {percent(restored)} of the routing entries, leaves {percent(preserved)} alone, "
        f"and keeps only the stronger update in {percent(arbitrated)} (medians)."
    )
    if giants := [row for row in rows if row["largest_cluster"] > 0.5]:
        yield (
            f"In {len(giants)} of {len(rows)} layers one cluster holds more than half of the leading directions. "
            "If it is dominant, all its entries are preserved; if not, all are restored. There CASA removes the drift "
            f"from {percent(middle(row['restored'] for row in giants))} of the entries (median)."
        )
    if idle := sum(row["preserved"] > MOSTLY_IDLE for row in rows):
        yield f"In {idle} of {len(rows)} layers CASA leaves more than nine tenths of the entries alone: it does little."


def kind_table(analysis: Analysis) -> list[list[str]]:
    """Return a row for each kind of module, and one for all: median, and the largest in brackets."""
    rows = [layer.row() for layer in analysis.layers]
    kinds = sorted({row["kind"] for row in rows})
    groups = [(kind, [row for row in rows if row["kind"] == kind]) for kind in kinds]
    table = []
    for name, members in [*groups, ("all", rows)]:
        table.append(
            [f"{name} × {len(members)}", *(_median_and_most(members, key, form) for key, _, form in KIND_COLUMNS)]
        )
    return table


def _median_and_most(rows: Sequence[Numbers], key: str, form: str) -> str:
    known = [row[key] for row in rows if row[key] is not None]
    return f"{cell(middle(known), form)} ({cell(max(known), form)})" if known else cell(None, form)


def analysis_table(analysis: Analysis) -> list[list[str]]:
    """Return a row for each layer, the one with the most interference first."""
    rows = sorted((layer.row() for layer in analysis.layers), key=lambda row: -(row["interference"] or 0))
    return [[cell(row[key], form) for key, _, form in ANALYSIS_COLUMNS] for row in rows]


def middle(values: Iterable[float | None]) -> float:
    """Return the median of what is known; 0 of nothing."""
    known = [value for value in values if value is not None]
    return float(statistics.median(known)) if known else 0.0


def _most(rows: Sequence[Numbers], key: str) -> float:
    return max((row[key] for row in rows if row[key] is not None), default=0.0)


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
