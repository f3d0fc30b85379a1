"""What calibration, guard and score did in the lab, as tables of words: before and after, controls, harm, agreement."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraport_lab.bench.agreement import FEWEST, RULES
from loraport_lab.bench.statistics import rank_correlation

FITTED = ("gains", "gains + readout")
CHOSEN = ("calibrated, guarded", "auto", "auto, calibrated too")
HARM = (("psnr", "dB", 1), ("effect", "points", 1), ("content", "points", 1), ("likeness", "points", 1))
CHANGES = (("psnr", 1), ("effect", 0), ("content", 0))
NAMES = {"psnr": "fidelity", "effect": "effect", "content": "content"}
APART = ("calibration", "harm", "controls", "agreement", "agreement-by-cell")
"""The tables of calibration, guard and score, which may come from a run of their own."""


@dataclass(frozen=True)
class Table:
    """The columns and the lines of a table, all of them texts; its name is that of its heading and of its file."""

    name: str
    head: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


def calibration_tables(facts: Mapping[str, Any]) -> tuple[Table, ...]:
    """Those that the facts have rows for; the score's agreement is always there."""
    cells = sorted(facts["cells"], key=lambda cell: not cell["discriminating"])
    rows = [_rows(cell) for cell in cells]
    made = (
        *(_before_and_after(cells, rows), _harm(cells, rows), _study(cells, rows)),
        *(_agreement(facts["agreement"]), _agreement_by_cell(cells)),
    )
    return tuple(table for table in made if table.lines)


def _rows(cell: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    return {row["name"]: row for row in cell["rows"]}


def _before_and_after(cells: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Mapping[str, Any]]]) -> Table:
    lines = []
    for cell, own in zip(cells, rows, strict=True):
        if not all(name in own for name in (*FITTED, *CHOSEN)):
            continue
        direct, fitted = own["direct"]["metrics"], own[FITTED[-1]]
        lines.append(
            (
                cell["name"] + ("" if cell["discriminating"] else " (cannot discriminate)"),
                " / ".join(f"{direct[metric]['mean']:.{digits}f}" for metric, digits in CHANGES),
                _changes(own["oracle"]),
                *(_changes(own[name]) for name in FITTED),
                " / ".join(_share(own[name]) for name in ("oracle", *FITTED)),
                " / ".join(_gap(fitted["gap_closed"][metric]) for metric in ("psnr", "effect")),
                *(str(own[name]["chosen"]) for name in CHOSEN),
            )
        )
    return Table(
        "calibration",
        (
            *("cell", "direct reuse", "oracle", "gains", "gains + readout", "end error of direct's", "gap closed"),
            *("guard keeps", "auto", "auto, calibrated too"),
        ),
        tuple(lines),
    )


def _harm(cells: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Mapping[str, Any]]]) -> Table:
    lines = []
    for name in (*FITTED, *CHOSEN):
        measured = [(cell, own) for cell, own in zip(cells, rows, strict=True) if name in own]
        if not measured:
            continue
        kept = sum(own[name]["chosen"] == "direct" for _, own in measured)
        line = [f"`{name}`", str(len(measured)), str(kept) if name in CHOSEN else "–"]
        for metric, unit, digits in HARM:
            values = [(cell["name"], own[name]["metrics"][metric]) for cell, own in measured]
            better = sum(value["change_low"] > 0 for _, value in values)
            worse = [(place, value["change"]) for place, value in values if value["change_high"] < 0]
            losses = ", ".join(f"{place} {_signed(change, digits)} {unit}" for place, change in worse)
            line.append(f"{better} / {len(worse)}" + (f" ({losses})" if worse else ""))
        lines.append(tuple(line))
    return Table(
        "harm",
        ("row", "cells", "direct kept", *(metric for metric, _, _ in HARM)),
        tuple(lines),
    )


def _study(cells: Sequence[Mapping[str, Any]], rows: Sequence[Mapping[str, Mapping[str, Any]]]) -> Table:
    chosen = [
        (cell, own)
        for cell, own in zip(cells, rows, strict=True)
        if any(row["group"] == "calibration" for row in own.values())
    ]
    names = dict.fromkeys(name for _, own in chosen for name, row in own.items() if row["group"] == "calibration")
    lines = []
    for name in (*FITTED, *names) if names else ():
        if any(own[name]["against"] == name for _, own in chosen if name in own):
            continue  # what the next line is counted from
        lines.append((f"`{name}`", *(_studied(own.get(name)) for _, own in chosen)))
    return Table(
        "controls",
        ("row", *(cell["name"] for cell, _ in chosen)),
        tuple(lines),
    )


def _studied(row: Mapping[str, Any] | None) -> str:
    if row is None:
        return "–"
    share = _share(row)
    return _changes(row) + (f", {share}" if share != "–" else "")


def _agreement(lines: Sequence[Mapping[str, Any]]) -> Table:
    return Table(
        "agreement",
        ("measure", "cells", "mean", "lowest", "within 1 dB", "same side"),
        tuple(
            (
                line["measure"],
                str(line["cells"]),
                _correlation(line["mean"]),
                f"{_correlation(line['lowest'])} ({line['lowest_cell']})",
                "–" if line["near_mean"] is None else _correlation(line["near_mean"]),
                f"{line['agree']} of {line['agree'] + line['disagree']}" if line["agree"] + line["disagree"] else "–",
            )
            for line in lines
        ),
    )


def _agreement_by_cell(cells: Sequence[Mapping[str, Any]]) -> Table:
    """Return the score's agreement in every cell with end errors, and over all of them in the last line."""
    lines: list[tuple[str, ...]] = []
    ranks: dict[str, list[float]] = {measure: [] for measure in NAMES}
    sides: dict[str, list[bool]] = {measure: [] for measure in NAMES}
    for cell in cells:
        rows = [row for row in cell["rows"] if _is_compared(row)]
        if len(rows) < FEWEST:
            continue
        ends = [-row["metrics"]["end"]["mean"] for row in rows]
        alike = {measure: _sides(rows, measure) for measure in NAMES}
        for measure in NAMES:
            ranks[measure].append(rank_correlation(ends, [row["metrics"][measure]["mean"] for row in rows]))
            sides[measure] += alike[measure]
        fitted = sum(row["name"] in FITTED for row in rows)
        numbers = (_correlation(values[-1]) for values in ranks.values())
        lines.append((cell["name"], str(len(rows)), str(fitted), *numbers, *map(_count, alike.values())))
    if len(lines) > 1:
        means = (_correlation(sum(values) / len(values)) for values in ranks.values())
        lines.append((f"all {len(lines)}", "–", "–", *means, *map(_count, sides.values())))
    head = ("cell", "rows", "fitted among them", *NAMES.values(), *(f"{name}, same side" for name in NAMES.values()))
    return Table("agreement-by-cell", head, tuple(lines))


def _is_compared(row: Mapping[str, Any]) -> bool:
    return "end" in row["metrics"] and row["chosen"] is None and (row["name"] == "direct" or row["group"] in RULES)


def _sides(rows: Sequence[Mapping[str, Any]], measure: str) -> list[bool]:
    """Return of each row that is surely better or worse than direct reuse whether the end error is on the same side."""
    found = []
    for row in rows:
        value, end = row["metrics"][measure], row["metrics"]["end"]["change"]
        side = (value["change_low"] > 0) - (value["change_high"] < 0)
        found += [(end < 0) - (end > 0) == side] if side and row["name"] != "direct" else []
    return found


def _count(sides: Sequence[bool]) -> str:
    return f"{sum(sides)} of {len(sides)}" if sides else "–"


def _changes(row: Mapping[str, Any]) -> str:
    return " / ".join(_sure(row["metrics"][metric], digits) for metric, digits in CHANGES)


def _sure(value: Mapping[str, float], digits: int) -> str:
    text = _signed(value["change"], digits)
    return text if value["change_low"] > 0 or value["change_high"] < 0 else f"({text})"


def _share(row: Mapping[str, Any]) -> str:
    return "–" if row["end_share"] is None else f"{100 * row['end_share']['value']:.0f} %"


def _gap(gap: Mapping[str, float] | None) -> str:
    return "–" if gap is None else f"{100 * gap['value']:.0f} %"


def _correlation(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
