"""The lab's numbers as plain tables: what the JSON, the CSV and the page show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from loraport.sampling.statistics import Interval, mean_interval, ratio_interval
from loraport_lab.bench.agreement import agreement, content
from loraport_lab.bench.evaluate import RowResult
from loraport_lab.bench.material import ADMISSION_SEEDS, EVALUATION_SEEDS, TUNING_CELL, TUNING_SEEDS
from loraport_lab.bench.regret import regrets
from loraport_lab.bench.rows import SINGLE_STUDIES
from loraport_lab.bench.run import CellResult, LabResult
from loraport_lab.bench.statistics import frechet_distance, gap_closed, holm, p_value, pooled_gap

GAP_METRICS = ("psnr", "effect")
TESTED = ("psnr", "effect", "content")
"""Measures of which a table has every row against every cell; Holm's correction is over each of these tables."""
LEVEL = 0.05
ABLATION = ("direct", "restore-only", "arbitrate-only", "casa", "casa, no clusters", "casa, no dominance")
"""The rows of the paper's Table 2, and the two ablations that it lacks."""
METHODS_COMPARED = ("direct", "prolora", "lora-x", "casa", "oracle")
"""Those of its Table 3, and the adapter trained on the student."""


def lab_facts(result: LabResult) -> dict[str, Any]:
    """Everything, as JSON."""
    cells = [_cell(cell) for cell in result.cells]
    correct_for_many(cells)
    return {
        "made_from": result.made_from,
        "clips": result.clips,
        "evaluation_seeds": list(EVALUATION_SEEDS),
        "tuning_seeds": list(TUNING_SEEDS),
        "admission_seeds": list(ADMISSION_SEEDS),
        "tuning_cell": "/".join(TUNING_CELL),
        "cells": cells,
        "pooled": pooled(result.cells, cells),
        "ablation": [compared(name, result.cells) for name in ABLATION],
        "methods": [compared(name, result.cells) for name in METHODS_COMPARED],
        "regret": [asdict(line) for measure in GAP_METRICS for line in regrets(result.cells, measure)],
        "agreement": [asdict(line) for line in agreement(result.cells)],
    }


def _cell(result: CellResult) -> dict[str, Any]:
    cell, admission = result.cell, result.admission
    return {
        "name": cell.name,
        "student": cell.student.name,
        "adapter": cell.adapter.name,
        "effect": cell.adapter.effect,
        "rank": cell.adapter.rank,
        "tuned": cell.tuned,
        "discriminating": admission.discriminating,
        "reason": admission.reason,
        "standard_errors": {
            "oracle over direct": admission.oracle_over_direct,
            "direct over full undo": admission.direct_over_undo,
            "direct over the base in as many steps": admission.direct_over_base,
        },
        "premises": {name: _mean(values) for name, values in result.premises.items()},
        "rows": [_row(row, result) for row in result.rows.values()],
    }


def _mean(values: Tensor) -> float | None:
    """Return the mean over the layers that have a value; None where none has one."""
    known = values[~values.isnan()]
    return float(known.mean()) if len(known) else None


def correct_for_many(cells: Sequence[dict[str, Any]]) -> None:
    """Give every change of the tables of rows against cells Holm's corrected chance, `p_holm`, beside its own, `p`."""
    names = _everywhere(cells)
    for measure in TESTED:
        tested = [
            row["metrics"][measure]
            for cell in cells
            for row in cell["rows"]
            if row["name"] in names and row["name"] != row["against"]
        ]
        for value, chance in zip(tested, holm([value["p"] for value in tested]), strict=True):
            value["p_holm"] = chance


def _everywhere(cells: Sequence[dict[str, Any]]) -> set[str]:
    """Return the names of the rows that stand in the tables: those that are no single study."""
    return {row["name"] for row in cells[0]["rows"] if row["group"] not in SINGLE_STUDIES}


def _row(row: RowResult, result: CellResult) -> dict[str, Any]:
    direct, oracle = result.rows[row.against], result.rows["oracle"]
    values = {**row.values, "content": content(row.values)}
    plain = {**direct.values, "content": content(direct.values)}
    alone = row.against == "direct"
    gaps = {
        m: gap_closed(row.values[m], direct.values[m], oracle.values[m], result.prompts) if alone else None
        for m in GAP_METRICS
    }
    share = None
    if "end" in row.values:
        share = ratio_interval(row.values["end"], direct.values["end"], result.end_prompts)
    return {
        "name": row.row,
        "group": row.group,
        "against": row.against,
        **row.facts,
        "frechet": frechet_distance(row.features, result.real),
        "metrics": {
            name: _numbers(mean_interval(value, result.prompts_of(name)))
            | _numbers(mean_interval(value - plain[name], result.prompts_of(name)), "change", "change_")
            | {"p": p_value(value - plain[name], result.prompts_of(name))}
            for name, value in values.items()
        },
        "end_share": None if share is None else _numbers(share, "value"),
        "gap_closed": {name: None if gap is None else _numbers(gap, "value") for name, gap in gaps.items()},
    }


def pooled(cells: Sequence[CellResult], facts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every row but those of single studies: over the discriminating cells without the tuned one, and over all.

    `facts` are those of the cells, with their corrected chances.
    """
    names = [name for name, row in cells[0].rows.items() if row.group not in SINGLE_STUDIES]
    fair = [cell for cell in cells if cell.admission.discriminating and not cell.cell.tuned]
    rows = [{row["name"]: row["metrics"] for row in cell["rows"]} for cell in facts]
    return [_pooled_row(name, cells, fair, [row[name] for row in rows]) for name in names]


def _pooled_row(
    name: str, cells: Sequence[CellResult], fair: Sequence[CellResult], metrics: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "name": name,
        "group": cells[0].rows[name].group,
        "cells": len(fair),
        "cells_in_all": len(cells),
    }
    for metric in GAP_METRICS:
        gains = [c.rows[name].values[metric] - c.rows["direct"].values[metric] for c in fair]
        gaps = [c.rows["oracle"].values[metric] - c.rows["direct"].values[metric] for c in fair]
        gap = pooled_gap(gains, gaps, cells[0].prompts)
        facts[f"gap_{metric}"] = None if gap is None else {**_numbers(gap, "value"), "cells": len(fair)}
    for label in TESTED:
        values = [cell[label] for cell in metrics]
        surviving = [value["change"] for value in values if value.get("p_holm", 1.0) < LEVEL]
        facts[label] = {
            "change": sum(value["change"] for value in values) / len(values),
            "worst": min(value["change"] for value in values),
            "better": sum(value["change_low"] > 0 for value in values),
            "worse": sum(value["change_high"] < 0 for value in values),
            "surely_better": sum(change > 0 for change in surviving),
            "surely_worse": sum(change < 0 for change in surviving),
        }
    return facts


def compared(name: str, cells: Sequence[CellResult]) -> dict[str, Any]:
    """Return a row's means by student and over all cells, and its change against direct reuse over all cells."""
    students = {student: [c for c in cells if c.cell.student.name == student] for student in _students(cells)}
    values = {measure: _mean_over(cells, name, measure) for measure in TESTED}
    changes = {measure: values[measure] - _mean_over(cells, "direct", measure) for measure in TESTED}
    return {
        "name": name,
        "students": {
            student: {measure: float(_mean_over(own, name, measure).mean()) for measure in TESTED}
            for student, own in students.items()
        },
        "all": {measure: float(values[measure].mean()) for measure in TESTED},
        "change": {m: _numbers(mean_interval(changes[m], cells[0].prompts), "value") for m in TESTED},
    }


def _students(cells: Sequence[CellResult]) -> list[str]:
    return list(dict.fromkeys(cell.cell.student.name for cell in cells))


def _mean_over(cells: Sequence[CellResult], name: str, measure: str) -> Tensor:
    """Return a row's values clip by clip, the mean over cells, which all see the same clips: [clips]."""
    values = [cell.rows[name].values for cell in cells]
    return torch.stack([content(v) if measure == "content" else v[measure].double() for v in values]).mean(0)


def _numbers(interval: Interval, value: str = "mean", prefix: str = "") -> dict[str, float]:
    return {value: interval.value, f"{prefix}low": interval.low, f"{prefix}high": interval.high}
