"""The lab's tables as CSV files; those of the whole lab lie in `lab/results/`, and the documentation shows them."""

from collections.abc import Iterator, Mapping
from typing import Any

from loraport.reports.rendering import csv_text
from loraport_lab.pages.lab_calibration import calibration_tables

STUDIES = {"rank": "ranks", "sensitivity": "dials", "probe": "probes"}
"""{a group of rows: the file of its table}."""

Lines = tuple[list[str], list[list[str]]]
"""(columns, lines), all of them texts."""


def table_files(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return {file name: CSV text}: cells with their admission, rows pooled, changes by cell, studies, calibration."""
    tables: dict[str, Lines] = {
        "cells": _admission(facts),
        "rows": _pooled(facts),
        "fidelity": _changes(facts, "psnr", 1),
        "effect": _changes(facts, "effect", 0),
    }
    tables |= dict(_studies(facts))
    tables |= {table.name: ([*table.head], [[*line] for line in table.lines]) for table in calibration_tables(facts)}
    return {f"{name}.csv": _csv(table) for name, table in tables.items()}


def _csv(table: Lines) -> str:
    """Minus signs are hyphens here, as programs that read numbers want them."""
    return csv_text(*table).replace("−", "-")


def _admission(facts: Mapping[str, Any]) -> Lines:
    names = list(facts["cells"][0]["standard_errors"])
    lines = [
        [
            cell["name"] + (" (tuned on)" if cell["tuned"] else ""),
            *(_signed(cell["standard_errors"][name], 1) for name in names),
            "yes" if cell["discriminating"] else "no: " + cell["reason"],
        ]
        for cell in facts["cells"]
    ]
    return ["cell", *(f"{name}, s.e." for name in names), "discriminating"], lines


def _pooled(facts: Mapping[str, Any]) -> Lines:
    head = ["row", "gap closed, fidelity", "gap closed, effect", "fidelity, dB", "worst", "better / worse"]
    head += ["effect, points", "worst", "better / worse", "content, points"]
    lines = []
    for row in facts["pooled"]:
        line = [row["name"], _gap(row["gap_psnr"]), _gap(row["gap_effect"])]
        for metric, digits in (("psnr", 2), ("effect", 1)):
            value = row[metric]
            line += [_signed(value["change"], digits), _signed(value["worst"], digits)]
            line.append(f"{value['better']} / {value['worse']}")
        lines.append([*line, _signed(row["content"]["change"], 1)])
    return head, lines


def _changes(facts: Mapping[str, Any], metric: str, digits: int) -> Lines:
    """Rows against cells; a change whose interval holds zero is in brackets."""
    names = [row["name"] for row in facts["pooled"] if row["name"] != "direct"]
    cells = sorted(facts["cells"], key=lambda cell: not cell["discriminating"])
    table = {cell["name"]: {row["name"]: row["metrics"][metric] for row in cell["rows"]} for cell in cells}
    lines = [[name, *(_sure(table[cell["name"]][name], digits) for cell in cells)] for name in names]
    return [metric, *(cell["name"] for cell in cells)], lines


def _studies(facts: Mapping[str, Any]) -> Iterator[tuple[str, Lines]]:
    """Ranks, dials and probes on the cells that were studied: the change of fidelity, and for probes of content too."""
    for group, metrics in (("rank", ["psnr"]), ("sensitivity", ["psnr"]), ("probe", ["psnr", "content"])):
        cells = [cell for cell in facts["cells"] if any(row["group"] == group for row in cell["rows"])]
        if not cells:
            continue
        tables = [{row["name"]: row["metrics"] for row in cell["rows"] if row["group"] == group} for cell in cells]
        lines = [
            [
                name,
                *(_sure(rows[name][metric], 2 if metric == "psnr" else 0) for metric in metrics for rows in tables),
            ]
            for name in tables[0]
        ]
        yield STUDIES[group], ([group, *(f"{cell['name']}, {metric}" for metric in metrics for cell in cells)], lines)


def _sure(value: Mapping[str, float], digits: int) -> str:
    text = _signed(value["change"], digits)
    return text if value["change_low"] > 0 or value["change_high"] < 0 else f"({text})"


def _gap(gap: Mapping[str, float] | None) -> str:
    return "–" if gap is None else f"{100 * gap['value']:.0f} % ({100 * gap['low']:.0f} to {100 * gap['high']:.0f})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
