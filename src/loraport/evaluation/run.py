"""Run an evaluation: read the folders, look at the clips, compare the columns, write the numbers."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraport.compute import find_device, peak_rss_bytes
from loraport.errors import InputError, MismatchError, MissingError, SettingsError
from loraport.evaluation.catalogue import INSTALL, Choice, check_needs, missing_modules
from loraport.evaluation.collection import Collected, collect
from loraport.evaluation.compare_folder import is_compare_folder, read_compare_folder
from loraport.evaluation.comparison import column_means, differences
from loraport.evaluation.controls import own_effects, style_controls
from loraport.evaluation.grid import Grid, choose_baseline, paired
from loraport.evaluation.metrics.metric import Instrument, Look, Metric, Need
from loraport.evaluation.plain_folders import read_plain_folders
from loraport.evaluation.readings import ReadingStore
from loraport.evaluation.results import EvaluationResult, GridResult
from loraport.evaluation.scores import score_grid
from loraport.evaluation.weights import Missing, check_folder, fetch_weights, find_weights, lacking, weights_digest
from loraport.files.disk.atomic import write_whole
from loraport.files.disk.user_paths import expand_home
from loraport.plain_json import json_text
from loraport.progress import NO_PROGRESS, Progress

ROWS, TABLE, SUMMARY = "metrics.jsonl", "metrics.csv", "evaluation.json"
"""What is written; the page and its tables are `loraport.reports`'."""
_LACKING: dict[Need, str] = {
    "reference": "give --reference FOLDER",
    "prompt": "give --prompts FILE",
}


@dataclass(frozen=True)
class EvaluationRequest:
    """What to evaluate, and how."""

    folders: tuple[str, ...]
    output: Path
    choice: Choice
    reference: str | None = None
    """A folder, or the name of a column."""
    against: str | None = None
    prompts: Mapping[str, str] | None = None
    weights: Path | None = None
    download: bool = False
    device: str = "auto"
    cache: str | None = None


def read_grids(request: EvaluationRequest) -> list[Grid]:
    """Return the grids of the folders: one for each comparison, or one of all plain folders.

    Plain folders beside a single comparison are further columns of it. Raises InputError.
    """
    folders = [expand_home(folder) for folder in request.folders]
    for folder in folders:
        if not folder.exists():
            raise InputError(f"{folder} does not exist; give a folder of clips, or one that `loraport compare` wrote")
    ours = [folder for folder in folders if is_compare_folder(folder)]
    plain = [folder for folder in folders if folder not in ours]
    if len(ours) > 1 and plain:
        raise SettingsError(
            f"{plain[0]} has no manifest: beside several comparisons it is not known to which it belongs; evaluate it "
            "with one of them"
        )
    grids = [read_compare_folder(folder) for folder in ours]
    if plain:
        more = read_plain_folders(plain, request.prompts)
        if grids:
            grids = [replace(grids[0], columns=(*grids[0].columns, *more.columns), notes=more.notes)]
        else:
            grids = [more]
    grids = [_with_reference(grid, request.reference) for grid in grids]
    named = [replace(grid, prompts={**grid.prompts, **(request.prompts or {})}) for grid in grids]
    return [paired(_distinct(grid)) for grid in named]


def _with_reference(grid: Grid, reference: str | None) -> Grid:
    """Return the grid with the reference that was named: one of its columns, or a folder, which becomes one."""
    if reference is None:
        return grid
    if grid.column(reference) is not None:
        return replace(grid, reference=reference)
    folder = expand_home(reference)
    if not folder.is_dir():
        columns = ", ".join(column.name for column in grid.columns)
        raise InputError(f"--reference {reference} is neither a folder nor a column of {grid.name} ({columns})")
    more = read_plain_folders([folder])
    if len(more.columns) != 1:
        raise InputError(f"--reference {reference} holds several folders of clips; name one of them")
    column = more.columns[0]
    if grid.column(column.name) is not None:
        column = replace(column, name=f"reference {column.name}", label=f"reference {column.label}")
    return replace(grid, columns=(column, *grid.columns), reference=column.name, notes=(*grid.notes, *more.notes))


def _distinct(grid: Grid) -> Grid:
    names = [column.name for column in grid.columns]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SettingsError(f"two columns are called {min(twice)!r}; rename one of the folders")
    return grid


def evaluate(request: EvaluationRequest, progress: Progress = NO_PROGRESS) -> EvaluationResult:
    """Evaluate the clips of some folders and write the numbers into the output folder.

    Raises InputError for what cannot be read at all; what is left out is in the result.
    """
    started = time.perf_counter()
    check_folder(request.weights)
    device = str(find_device(request.device))
    grids = read_grids(request)
    for grid in grids:
        choose_baseline(grid, request.against)  # a name that is no column is said before the work
    has: dict[Need, bool] = {
        "reference": any(grid.reference for grid in grids),
        "prompt": any(grid.prompts for grid in grids),
    }
    metrics, sentences = check_needs(request.choice, has, _LACKING)
    metrics, missing, places = _available(metrics, request)
    if request.choice.named and not metrics:
        raise MissingError("; ".join(map(str, missing)))
    skipped = [*sentences, *([] if request.choice.named else _in_short(missing))]
    store = ReadingStore(request.cache)

    def open_instrument(instrument: Instrument) -> Look:
        return instrument.open(places.get(instrument.name, ()), device)

    instruments = list({metric.instrument.name: metric.instrument for metric in metrics}.values())
    results = []
    weights = {one.name: weights_digest(one, places[one.name]) for one in instruments}
    for grid in grids:
        found = collect(grid, instruments, open_instrument, store, progress, weights)
        results.append(_grid_result(grid, metrics, found, request.against))
    result = EvaluationResult(
        str(request.output), tuple(results), tuple(missing if request.choice.named else ()), tuple(skipped),
        store.made, store.found, time.perf_counter() - started, peak_rss_bytes(),
    )  # fmt: skip
    _write(result, request.output)
    return result


def _in_short(missing: Sequence[Missing]) -> list[str]:
    """Return a sentence for what nobody asked for: the networks together, since there are many."""
    of_networks = [name for one in missing if one.command != INSTALL for name in one.metrics]
    sentences = [str(one) for one in missing if one.command == INSTALL]
    if of_networks:
        sentences.append(
            f"not measured, since their weights are not here: {', '.join(of_networks)}; `loraport evaluate --list` "
            "says how each is had"
        )
    return sentences


def _available(
    metrics: Sequence[Metric], request: EvaluationRequest
) -> tuple[tuple[Metric, ...], list[Missing], dict[str, tuple[Path, ...]]]:
    """Return the metrics that can be measured, what has to be fetched for the others, and where the weights lie."""
    places: dict[str, tuple[Path, ...]] = {}
    missing: list[Missing] = []
    for instrument in {metric.instrument.name: metric.instrument for metric in metrics}.values():
        of_it = [metric for metric in metrics if metric.instrument.name == instrument.name]
        names = tuple(metric.name for metric in of_it)
        if modules := missing_modules(of_it[0]):
            missing.append(Missing(names, f"the package {', '.join(modules)} is", INSTALL))
            continue
        found = find_weights(instrument, request.weights)
        if found is None and request.download:
            found = fetch_weights(instrument, request.weights)
        if found is None:
            weights = lacking(instrument, request.weights)
            repos = " and ".join(one.repo for one in weights)
            command = " && ".join(one.command for one in weights)
            after = "; then give --weights ." if any(one.address for one in weights) else ""
            missing.append(Missing(names, f"the weights of {repos} are", command + after))
            continue
        places[instrument.name] = found
    return tuple(metric for metric in metrics if metric.instrument.name in places), missing, places


def _grid_result(grid: Grid, metrics: Sequence[Metric], found: Collected, against: str | None) -> GridResult:
    if not found.clips:
        raise MismatchError(f"no clip of {grid.name} can be read: {found.left_out[0] if found.left_out else 'none'}")
    usable = [metric for metric in metrics if metric.instrument.name not in found.failed]
    scores = score_grid(grid, found.clips, usable)
    measured = tuple(
        metric for metric in usable if scores.by_clip.get(metric.name) or scores.by_column.get(metric.name)
    )
    baseline = choose_baseline(grid, against)
    failed = [f"{name} is not measured: {why}" for name, why in found.failed.items()]
    return GridResult(
        grid,
        baseline,
        measured,
        found.clips,
        scores,
        tuple(column_means(grid, measured, scores, found.clips)),
        tuple(differences(grid, measured, scores, found.clips, baseline)) if baseline else (),
        tuple(style_controls(grid, measured, scores, baseline)) if baseline else (),
        tuple(own_effects(grid, measured, found.clips)),
        (*grid.notes, *found.notes, *scores.notes),
        (*grid.left_out, *found.left_out, *failed),
    )


def _write(result: EvaluationResult, folder: Path) -> None:
    """Write the rows of all clips and the summary. Raises OutputError."""
    rows = [row for grid in result.grids for row in grid.rows()]
    write_whole(folder / ROWS, "".join(json_text(row, ensure_ascii=False) + "\n" for row in rows).encode())
    write_whole(folder / TABLE, _csv(rows).encode())
    write_whole(folder / SUMMARY, (json_text(result.as_json(), indent=2, ensure_ascii=False) + "\n").encode())


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    headings = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([headings, *([row.get(name) for name in headings] for row in rows)])
    return text.getvalue()
