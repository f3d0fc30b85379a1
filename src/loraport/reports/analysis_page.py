"""An analysis as a folder: one page that opens offline, every figure as SVG and PNG, every number as CSV and JSON."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport.analysis.results import Analysis
from loraport.errors import OutputError
from loraport.files.disk.atomic import write_whole
from loraport.files.disk.user_paths import expand_home
from loraport.plain_json import json_text
from loraport.progress import NO_PROGRESS, Progress
from loraport.reports.analysis_figures import FigureSpec, all_figures, sweep_figures
from loraport.reports.analysis_words import KIND_COLUMNS, LAYER_COLUMNS, findings, kind_table, layer_table
from loraport.reports.plots import as_png, as_svg
from loraport.reports.rendering import data_address, in_words, render

DRAWING = "drawing"
FILES = ("analysis.json", "layers.csv", "survey.csv", "sweep.csv", "figures/*")
"""What an analysis leaves beside its page; the first of them always, and before the others."""


def write_analysis(analysis: Analysis, folder: Path | str, *, progress: Progress = NO_PROGRESS) -> Path:
    """Write the folder and return its page; the page comes last, so that it is there only when all of it is.

    Raises OutputError where something cannot be written.
    """
    place = folder_of(folder)
    tables = {
        "layers.csv": [layer.row() for layer in analysis.layers],
        "survey.csv": analysis.survey.as_json()["layers"],
        "sweep.csv": [row for sweep in analysis.swept for row in sweep.table()],
    }
    write_whole(place / FILES[0], (json_text(analysis.as_json(), indent=1, ensure_ascii=False) + "\n").encode())
    for name, rows in tables.items():
        if rows:
            write_whole(place / name, as_csv(rows).encode())
    sections = _drawn(analysis, place / "figures", progress)
    render("analysis.html.jinja", place / "index.html", **_page(analysis, sections))
    return place / "index.html"


def folder_of(folder: Path | str) -> Path:
    """The output folder with its place for figures, made if it is not there. Raises OutputError where it cannot be."""
    place = expand_home(folder)
    try:
        (place / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place} cannot be made: {error.strerror or error}; name another folder") from error
    return place


def summary(analysis: Analysis, page: Path) -> dict[str, Any]:
    """For the terminal: where the page is, and what it says first."""
    return {
        "wrote": str(page),
        "layers": f"{len(analysis.layers)} looked at, {len(analysis.curves)} of them in detail, "
        f"{len(analysis.left_out)} left out",
        "found": findings(analysis),
        "took": f"{analysis.seconds:.1f} s, at most {analysis.peak_rss_bytes / 1e9:.2f} GB of memory",
    }


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """A tidy table: a row an observation, the union of the columns in order, nothing for what is not known."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, names, lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue()


def _drawn(analysis: Analysis, folder: Path, progress: Progress) -> dict[str | None, list[tuple[FigureSpec, str]]]:
    """Every figure written as SVG and PNG; by layer, each with its SVG as an address that needs no file."""
    figures = [*all_figures(analysis), *(("sweep", shown) for shown in sweep_figures(analysis.swept))]
    sections: dict[str | None, list[tuple[FigureSpec, str]]] = {}
    for number, (layer, shown) in enumerate(figures, 1):
        figure = shown.draw()
        svg = as_svg(figure)
        write_whole(folder / f"{shown.key}.svg", svg)
        write_whole(folder / f"{shown.key}.png", as_png(figure))
        sections.setdefault(layer, []).append((shown, data_address("svg+xml", svg)))
        progress.advance(DRAWING, number, len(figures))
    return sections


def _page(analysis: Analysis, sections: dict[str | None, list[tuple[FigureSpec, str]]]) -> dict[str, Any]:
    facts = analysis.facts
    looked = f"{len(analysis.layers)} of the LoRA's {facts['layers_of_lora']} layers"
    return {
        "name": facts["lora"],
        "facts": {
            "LoRA": facts["lora"],
            "Source": facts["source"],
            "Target": facts["target"],
            "Looked at": looked,
            "Settings": in_words(facts["settings"]),
            "Took": f"{analysis.seconds:.0f} s, at most {analysis.peak_rss_bytes / 1e9:.2f} GB of memory",
        },
        "findings": findings(analysis),
        "notes": analysis.notes,
        "left_out": analysis.left_out,
        "kind_headings": ["Kind", *(heading for _, heading, _ in KIND_COLUMNS)],
        "kinds": kind_table(analysis),
        "layer_headings": [heading for _, heading, _ in LAYER_COLUMNS],
        "layer_rows": layer_table(analysis),
        "overview": sections.pop(None, []),
        "sweep": sections.pop("sweep", []),
        "details": list(sections.items()),
    }
