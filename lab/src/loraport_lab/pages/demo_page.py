"""The demo as a page: the clips side by side, the numbers with how to read them, the layers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport.files.disk.atomic import write_whole
from loraport.plain_json import json_text
from loraport.reports.rendering import in_words, layer_table, render
from loraport.transfers.results import TransferResult
from loraport_lab.demo import ColumnResult, DemoResult
from loraport_lab.pages.pictures import animated_png, write_contact_sheet
from loraport_lab.pages.verdict import Estimate, estimate, verdict

DEMO_FILES = ("demo.json", "contact-sheet.png")
"""What a demo leaves beside its page; the first of them before the others."""


def write_page(
    demo: DemoResult,
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
    render(
        "demo.html.jinja",
        path,
        package="loraport_lab.pages",
        style=demo.style,
        seed=demo.seed,
        count=len(demo.prompts),
        facts=dict(facts or {}),
        verdict=verdict(demo),
        columns=[column.label for column in demo.columns],
        metrics=demo.metrics,
        scores=[[_cell(column, metric.key) for metric in demo.metrics] for column in demo.columns],
        rows=_clip_rows(demo, shown),
        **layer_table(layers),
    )


def _clip_rows(demo: DemoResult, shown: int) -> list[tuple[str, list[str]]]:
    count = min(shown, len(demo.prompts))
    return [(demo.prompts[i], [animated_png(column.frames[i]) for column in demo.columns]) for i in range(count)]


def _cell(column: ColumnResult, key: str) -> str:
    if key not in column.values:
        return "reference" if column.role == "reference" else "–"
    return format_estimate(estimate(column.values[key]))


def format_estimate(value: Estimate) -> str:
    """`12.3 ± 0.4`, without the error where there is none."""
    return f"{value.mean:.1f}" if value.error == float("inf") else f"{value.mean:.1f} ± {value.error:.1f}"


def write_demo(demo: DemoResult, result: TransferResult, folder: Path) -> Path:
    """Write the demo's page, its contact sheet and its numbers into a folder; returns the page."""
    page = folder / "index.html"
    numbers = json_text(demo_facts(demo, result, page, words=False), indent=2) + "\n"
    write_whole(folder / DEMO_FILES[0], numbers.encode())
    facts = {"LoRA": result.output, "Method": result.method, "Settings": in_words(result.settings)}
    write_page(demo, page, layers=[layer.as_json() for layer in result.layers], facts=facts)
    write_contact_sheet(demo, folder / DEMO_FILES[1])
    return page


def demo_facts(demo: DemoResult, result: TransferResult, page: Path, *, words: bool) -> dict[str, Any]:
    """Return what the demo found: sentences for a terminal, or every number for a program."""
    if words:
        scores = {
            column.label: ", ".join(f"{metric.title} {_cell(column, metric.key)}" for metric in demo.metrics)
            for column in demo.columns
        }
        return {**scores, "found": verdict(demo), "page": page}
    columns = []
    for column in demo.columns:
        values = {key: estimate(value) for key, value in column.values.items()}
        numbers = {key: {"mean": value.mean, "standard_error": value.error} for key, value in values.items()}
        columns.append({"label": column.label, "role": column.role, **numbers})
    return {
        "page": str(page),
        "style": demo.style,
        "clips": len(demo.prompts),
        "seed": demo.seed,
        "found": verdict(demo),
        "columns": columns,
        "transfer": result.as_json(),
    }
