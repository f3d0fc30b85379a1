"""The demo as one HTML file: opens offline, readable on a phone, refers to nothing outside itself."""

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, StrictUndefined

from loraport.reports.pictures import animated_png
from loraport.reports.verdict import ColumnLike, DemoLike, Estimate, estimate, verdict

LAYER_COLUMNS: tuple[tuple[str, str, str], ...] = (  # key, heading, format
    ("name", "Layer", "{}"),
    ("status", "Status", "{}"),
    ("shape", "Shape", "{}"),
    ("rank_in", "Rank in", "{}"),
    ("rank_out", "Rank out", "{}"),
    ("drift", "Drift", "{:.3f}"),
    ("lora", "LoRA", "{:.3f}"),
    ("update", "Update", "{:.3f}"),
    ("kept_energy", "Kept energy", "{:.1%}"),
    ("kept_correction", "Kept correction", "{:.1%}"),
    ("k", "k", "{}"),
    ("clusters", "Clusters", "{}"),
    ("largest_cluster", "Largest cluster", "{}"),
    ("arbitrated", "Arbitrated", "{}"),
    ("seconds", "Seconds", "{:.2f}"),
)


def write_page(
    demo: DemoLike,
    path: Path,
    *,
    layers: Sequence[Mapping[str, Any]],
    facts: Mapping[str, str] | None = None,
    shown: int = 8,
) -> None:
    """Write the page of a demo.

    `layers` is the transfer's per-layer table (its JSON form; missing and null values show as a dash), `facts` are
    further lines of the header such as method and settings, `shown` is how many clips appear (all are measured).
    """
    template = files("loraport.reports").joinpath("page.html.jinja").read_text(encoding="utf-8")
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    html = environment.from_string(template).render(
        style=demo.style,
        seed=demo.seed,
        count=len(demo.prompts),
        facts=dict(facts or {}),
        verdict=verdict(demo),
        columns=[column.label for column in demo.columns],
        metrics=demo.metrics,
        scores=[[_cell(column, metric.key) for metric in demo.metrics] for column in demo.columns],
        rows=_clip_rows(demo, shown),
        headings=[heading for _, heading, _ in LAYER_COLUMNS],
        layers=[[_layer_cell(layer, key, form) for key, _, form in LAYER_COLUMNS] for layer in layers],
        skipped=[(str(layer["name"]), str(layer["reason"])) for layer in layers if layer.get("reason")],
    )
    partial = path.with_name(path.name + ".part")
    partial.write_text(html, encoding="utf-8")
    os.replace(partial, path)


def _clip_rows(demo: DemoLike, shown: int) -> list[tuple[str, list[str]]]:
    count = min(shown, len(demo.prompts))
    return [(demo.prompts[i], [animated_png(column.frames[i]) for column in demo.columns]) for i in range(count)]


def _cell(column: ColumnLike, key: str) -> str:
    if key not in column.values:
        return "reference" if column.role == "reference" else "–"
    return format_estimate(estimate(column.values[key]))


def format_estimate(value: Estimate) -> str:
    """`12.3 ± 0.4`, without the error where there is none."""
    return f"{value.mean:.1f}" if value.error == float("inf") else f"{value.mean:.1f} ± {value.error:.1f}"


def _layer_cell(layer: Mapping[str, Any], key: str, form: str) -> str:
    value = layer.get(key)
    if value is None:
        return "–"
    if key == "shape":
        return " × ".join(str(side) for side in value)
    if isinstance(value, float) and form == "{}":
        return f"{value:.3g}"
    return form.format(value)
