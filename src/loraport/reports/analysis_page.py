"""Write an analysis as a folder: a page that opens offline, figures as SVG and PNG, numbers as CSV and JSON."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport._version import __version__
from loraport.analysis.results import Analysis
from loraport.errors import OutputError
from loraport.files.disk.atomic import write_whole
from loraport.files.disk.user_paths import expand_home
from loraport.plain_json import json_text
from loraport.progress import NO_PROGRESS, Progress
from loraport.reports.analysis_figures import FigureSpec, all_figures, sweep_figures
from loraport.reports.analysis_words import (
    ANALYSIS_COLUMNS,
    KIND_COLUMNS,
    analysis_findings,
    analysis_table,
    kind_table,
)
from loraport.reports.figures import as_png, as_svg
from loraport.reports.rendering import csv_text, data_address, in_words, render

DRAWING = "drawing"
FILES = ("analysis.json", "layers.csv", "survey.csv", "sweep.csv", "figures/*")
"""What an analysis leaves beside its page; the first of them always, and before the others."""


def write_analysis(analysis: Analysis, folder: Path | str, *, progress: Progress = NO_PROGRESS) -> tuple[Path, float]:
    """Write the folder; the page comes last, so that it is there only when all of it is.

    Returns the page and the seconds that drawing took. Raises OutputError where something cannot be written.
    """
    place = folder_of(folder)
    tables = {
        "layers.csv": [layer.row() for layer in analysis.layers],
        "survey.csv": analysis.survey.as_json()["layers"],
        "sweep.csv": [row for sweep in analysis.sweeps for row in sweep.table()],
    }
    write_whole(place / FILES[0], (json_text(analysis.as_json(), indent=1, ensure_ascii=False) + "\n").encode())
    for name, rows in tables.items():
        if rows:
            write_whole(place / name, as_csv(rows).encode())
    began = time.perf_counter()
    sections = _draw(analysis, place / "figures", progress)
    drawing = time.perf_counter() - began
    render("analysis.html.jinja", place / "index.html", **_page(analysis, sections, drawing))
    return place / "index.html", drawing


def folder_of(folder: Path | str) -> Path:
    """Make the output folder, with one for figures in it, and return it. Raises OutputError where that fails."""
    place = expand_home(folder)
    try:
        (place / "figures").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{place} cannot be made: {error.strerror or error}; name another folder") from error
    return place


def summary(analysis: Analysis, page: Path, drawing: float) -> dict[str, Any]:
    """Return what the terminal shows: where the page is, and what it says first; `drawing`: seconds for the figures."""
    return {
        "wrote": str(page),
        "layers": f"{len(analysis.layers)} analysed, {len(analysis.curves)} of them in detail, "
        f"{len(analysis.left_out)} left out",
        "found": analysis_findings(analysis),
        "took": _cost(analysis, drawing),
    }


def _cost(analysis: Analysis, drawing: float) -> str:
    return (
        f"{analysis.seconds:.1f} s on {analysis.device}, and {drawing:.1f} s for the figures, at most "
        f"{analysis.peak_rss_bytes / 1e9:.2f} GB of memory"
    )


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return a tidy table: a row an observation, the union of the columns in order, nothing for what is not known."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return csv_text(names, [[row.get(name) for name in names] for row in rows])


def _draw(analysis: Analysis, folder: Path, progress: Progress) -> dict[str | None, list[tuple[FigureSpec, str]]]:
    """Write every figure as SVG and PNG. Returns them by layer, each with its SVG as an address that needs no file."""
    figures = [*all_figures(analysis), *(("sweep", spec) for spec in sweep_figures(analysis.sweeps))]
    sections: dict[str | None, list[tuple[FigureSpec, str]]] = {}
    progress.advance(DRAWING, 0, len(figures))
    for number, (layer, spec) in enumerate(figures, 1):
        figure = spec.draw()
        svg = as_svg(figure)
        write_whole(folder / f"{spec.key}.svg", svg)
        write_whole(folder / f"{spec.key}.png", as_png(figure))
        sections.setdefault(layer, []).append((spec, data_address("svg+xml", svg)))
        progress.advance(DRAWING, number, len(figures))
    return sections


def _page(
    analysis: Analysis, sections: dict[str | None, list[tuple[FigureSpec, str]]], drawing: float
) -> dict[str, Any]:
    facts = analysis.facts
    return {
        "name": facts["lora"],
        "facts": {
            "LoRA": facts["lora"],
            "Source": facts["source"],
            "Target": facts["target"],
            "Analysed": f"{len(analysis.layers)} of the LoRA's {facts['layers_of_lora']} layers",
            "Settings": in_words(facts["settings"]),
            "Took": _cost(analysis, drawing),
            "Made by": f"loraport {__version__}",
        },
        "findings": analysis_findings(analysis),
        "notes": analysis.notes,
        "left_out": analysis.left_out,
        "kind_headings": ["Kind", *(heading for _, heading, _ in KIND_COLUMNS)],
        "kinds": kind_table(analysis),
        "layer_headings": [heading for _, heading, _ in ANALYSIS_COLUMNS],
        "layer_rows": analysis_table(analysis),
        "overview": sections.pop(None, []),
        "sweep": sections.pop("sweep", []),
        "details": list(sections.items()),
    }
