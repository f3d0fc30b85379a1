"""Write the page and the table about many transfers: what was made, what was there, what failed and why."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from loraport.batches.results import JobRow, ManyResult
from loraport.files.disk.atomic import write_whole
from loraport.reports.rendering import csv_text, percent, render
from loraport.reports.transfer_page import lacks, transfer_section


def write_many_table(done: ManyResult, path: Path) -> None:
    """Write a row for every transfer as CSV. Raises OutputError where it cannot be written."""
    names = [one.name for one in fields(JobRow) if one.name != "lost_keys"]
    text = csv_text(names, ([getattr(row, name) for name in names] for row in done.rows))
    write_whole(path, text.encode(errors="replace"))


def write_many_page(done: ManyResult, path: Path) -> tuple[str, ...]:
    """Write the page of many transfers; those whose whole results are held have a section each.

    Returns what the page lacks, in sentences. Raises OutputError where it cannot be written.
    """
    made, there, failed = done.of("made"), done.of("there already"), done.of("failed")
    folder = _shared_folder([row.output for row in (*made, *there)])
    lacking = lacks()
    render(
        "many.html.jinja",
        path,
        title=f"{len(done.rows)} transfers",
        counts=f"{len(made)} made, {len(there)} there already, {len(failed)} failed",
        took=f"{done.seconds['total']:.1f} s, at most {done.peak_rss_bytes / 1e9:.2f} GB of memory",
        folder=folder,
        failed=[(f"{row.lora}{f', {row.method}' if row.method else ''}", row.reason) for row in failed],
        made=[_cells(row, folder) for row in made],
        there=[_inside(row.output, folder) for row in there],
        runs=[{**transfer_section(run), "name": _inside(run.output, folder)} for run in done.runs],
        left_out=len(made) - len(done.runs),
        lacking=lacking,
    )
    return lacking


def _shared_folder(outputs: Sequence[str]) -> str:
    """Return the folder that all outputs lie in; empty where there is none."""
    try:
        return os.path.commonpath([os.path.dirname(output) for output in outputs]) if outputs else ""
    except ValueError:  # on different drives
        return ""


def _inside(output: str, folder: str) -> str:
    return os.path.relpath(output, folder) if folder else output


def _cells(row: JobRow, folder: str) -> list[Any]:
    shares = (row.size, row.cosine, row.kept_energy, row.kept_correction)
    cells = [_inside(row.output, folder), f"{row.transferred} of {row.layers}", row.rank]
    cells += ["–" if share is None else percent(share, 1) for share in shares]
    return [*cells, row.dropped, f"{row.seconds:.1f}"]
