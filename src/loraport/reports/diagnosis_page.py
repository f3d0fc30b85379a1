"""Write the page of a diagnosis: the verdict, where the pair lies among the measured ones, and what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loraport._version import __version__
from loraport.diagnosis.result import Diagnosis
from loraport.diagnosis.rule.advice import NOT_THIS_PAIR, SAFE
from loraport.diagnosis.rule.measured_map import MeasuredMap, measured_map
from loraport.reports.diagnosis_words import diagnosis_words, place, share, signed
from loraport.reports.rendering import Columns, cell, render

COLUMNS: Columns = (
    ("name", "Layer", "{}"),
    ("drift", "Drift", "{:.2%}"),
    ("floor", "Rounding", "{:.2%}"),
    ("lora", "LoRA", "{:.1%}"),
    ("head_drift", "Drift in the head", "{:.0%}"),
    ("head_lora", "LoRA in the head", "{:.0%}"),
    ("cosine", "Cosine of the two", "{:+.3f}"),
    ("rho2", "ρ₂", "{:.2%}"),
    ("same", "Cosine of the weights", "{:.4f}"),
    ("overlap", "Heads in common", "{:.0%}"),
    ("kept", "Kept of casa", "{:.0%}"),
    ("undone", "Kept of undo", "{:.0%}"),
)
CHART_WIDTH, CHART_HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 720, 330, 46, 24, 14, 56
"""Of the picture, and its margins."""
HEADS = (0.3, 0.65)
GAINS = (-1.2, 1.5)
RULES = ("casa", SAFE)
"""What the picture shows of every measured pair."""


def write_diagnosis_page(told: Diagnosis, path: Path | str) -> None:
    """Write the page. Raises OutputError where it cannot be written."""
    chart, words = measured_map(), diagnosis_words(told)
    names = {
        "fits": "Fits",
        "pair": "Pair",
        "drift": "Drift",
        "head": "Head",
        "regime": "Regime",
        "kept": "Kept",
        "transfer": "A transfer",
    }
    render(
        "diagnosis.html.jinja",
        Path(path),
        name=f"{Path(told.lora).name}: {told.source} to {told.target}",
        line=told.line(),
        command=told.command,
        suits=told.verdict != NOT_THIS_PAIR,
        facts={
            "LoRA": told.lora, "Source": told.source, "Target": told.target,
            **{names.get(name, name): text for name, text in words.items() if name not in ("took", "nearest", "LoRA")},
            **({"LoRA's size": words["LoRA"]} if "LoRA" in words else {}),
            "Took": f"{told.seconds:.1f} s",
            "Made by": f"loraport {__version__}",
        },
        notes=told.notes,
        picture=picture(told, chart) if told.traits is not None and told.traits.head_drift is not None else None,
        nearest=[[place(one), *(_of(one.gains, rule) for rule in _rules(chart))] for one in told.advice.nearest],
        rules=_rules(chart),
        regret=[_regret_row(row) for row in chart.regret],
        headings=[heading for _, heading, _ in _shown(told)],
        layers=[[cell(getattr(look, key), form) for key, _, form in _shown(told)] for look in told.looks],
    )  # fmt: skip


def _shown(told: Diagnosis) -> Columns:
    return [column for column in COLUMNS if any(getattr(look, column[0]) is not None for look in told.looks)]


def _rules(chart: MeasuredMap) -> list[str]:
    return [rule for rule in chart.cells[0].gains if rule != "direct"]


def _of(gains: Any, rule: str) -> str:
    return signed(gains[rule], 2)


def _regret_row(row: Any) -> list[str]:
    name = "this advice" if row["rule"] == "advice" else f"always {row['rule']}"
    return [
        name, f"{row['regret']:.2f}", f"{row['bases']:.2f}", f"{row['worst']:.2f}", f"{row['shipped']:.2f}",
        str(row["worse"]), signed(row["worst_effect"], 1),
    ]  # fmt: skip


def picture(told: Diagnosis, chart: MeasuredMap) -> dict[str, Any]:
    """Return the coordinates of the map's picture: measured pairs, the rule's zones, and where this pair lies."""
    traits = told.traits
    head = None if traits is None else traits.head_drift
    unsure, casa = chart.thresholds["unsure"], chart.thresholds["casa"]
    edges = [(HEADS[0], unsure, f"{SAFE}"), (unsure, casa, "choose"), (casa, HEADS[1], "casa")]
    cells = [one for one in chart.cells if one.accelerated == (traits is not None and traits.accelerated)]
    return {
        "width": CHART_WIDTH, "height": CHART_HEIGHT,
        "left": LEFT, "right": CHART_WIDTH - RIGHT, "top": TOP, "bottom": CHART_HEIGHT - BOTTOM,
        "zero": _y(0.0),
        "zones": [(_x(low), _x(high) - _x(low), name) for low, high, name in edges],
        "dots": [
            (rule, _x(one.head_drift), _y(one.gains[rule]), f"{place(one)}: {rule} {signed(one.gains[rule], 2)} dB")
            for one in cells for rule in RULES
        ],
        "here": None if head is None else _x(min(max(head, HEADS[0]), HEADS[1])),
        "here_words": f"this pair, {share(head)}",
        "x_ticks": [(_x(tick / 100), f"{tick} %") for tick in range(30, 70, 5)],
        "y_ticks": [(_y(tick), signed(tick, 1) if tick else "0") for tick in _steps(-1.0, 1.5, 0.5)],
        "accelerated": traits is not None and traits.accelerated,
    }  # fmt: skip


def _steps(low: float, high: float, step: float) -> Sequence[float]:
    return [low + step * number for number in range(int((high - low) / step) + 1)]


def _x(head: float) -> float:
    return round(LEFT + (CHART_WIDTH - LEFT - RIGHT) * (head - HEADS[0]) / (HEADS[1] - HEADS[0]), 1)


def _y(gain: float) -> float:
    inside = min(max(gain, GAINS[0]), GAINS[1])
    return round(TOP + (CHART_HEIGHT - TOP - BOTTOM) * (GAINS[1] - inside) / (GAINS[1] - GAINS[0]), 1)
