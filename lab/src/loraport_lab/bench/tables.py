"""The lab's numbers as plain tables: what the JSON, the CSV and the page show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from loraport.sampling.statistics import Interval, mean_interval, ratio_interval
from loraport_lab.bench.agreement import agreement, content
from loraport_lab.bench.evaluate import RowResult
from loraport_lab.bench.material import ADMISSION_SEEDS, EVALUATION_SEEDS, TUNING_CELL, TUNING_SEEDS
from loraport_lab.bench.rows import SINGLE_STUDIES
from loraport_lab.bench.run import CellResult, LabResult
from loraport_lab.bench.statistics import frechet_distance, gap_closed, pooled_gap

GAP_METRICS = ("psnr", "effect")


def lab_facts(result: LabResult) -> dict[str, Any]:
    """Everything, as JSON."""
    return {
        "made_from": result.made_from,
        "clips": result.clips,
        "evaluation_seeds": list(EVALUATION_SEEDS),
        "tuning_seeds": list(TUNING_SEEDS),
        "admission_seeds": list(ADMISSION_SEEDS),
        "tuning_cell": "/".join(TUNING_CELL),
        "cells": [_cell(cell) for cell in result.cells],
        "pooled": pooled(result.cells),
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
        "rows": [_row(row, result) for row in result.rows.values()],
    }


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
            for name, value in values.items()
        },
        "end_share": None if share is None else _numbers(share, "value"),
        "gap_closed": {name: None if gap is None else _numbers(gap, "value") for name, gap in gaps.items()},
    }


def pooled(cells: Sequence[CellResult]) -> list[dict[str, Any]]:
    """Every row but those of single studies: over the discriminating cells without the tuned one, and over all."""
    names = [name for name, row in cells[0].rows.items() if row.group not in SINGLE_STUDIES]
    fair = [cell for cell in cells if cell.admission.discriminating and not cell.cell.tuned]
    return [_pooled_row(name, cells, fair) for name in names]


def _pooled_row(name: str, cells: Sequence[CellResult], fair: Sequence[CellResult]) -> dict[str, Any]:
    changes = [_change(cell, name, "psnr") for cell in cells]
    effects = [_change(cell, name, "effect") for cell in cells]
    contents = [
        mean_interval(content(c.rows[name].values) - content(c.rows["direct"].values), c.prompts) for c in cells
    ]
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
    for label, intervals in (("psnr", changes), ("effect", effects), ("content", contents)):
        facts[label] = {
            "change": sum(i.value for i in intervals) / len(intervals),
            "worst": min(i.value for i in intervals),
            "better": sum(i.sign > 0 for i in intervals),
            "worse": sum(i.sign < 0 for i in intervals),
        }
    return facts


def _change(cell: CellResult, row: str, metric: str) -> Interval:
    return mean_interval(cell.rows[row].values[metric] - cell.rows["direct"].values[metric], cell.prompts)


def _numbers(interval: Interval, value: str = "mean", prefix: str = "") -> dict[str, float]:
    return {value: interval.value, f"{prefix}low": interval.low, f"{prefix}high": interval.high}
