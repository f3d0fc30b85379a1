"""The lab's tables in Markdown, as docs/lab.md shows them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loraport_lab.pages.lab_calibration import calibration_tables


def markdown_tables(facts: Mapping[str, Any]) -> str:
    """Cells with their admission, rows pooled, changes of fidelity and effect by cell, studies, calibration, score."""
    parts = [_admission(facts), _pooled(facts), _changes(facts, "psnr", 1), _changes(facts, "effect", 0)]
    parts += _studies(facts)
    for table in calibration_tables(facts):
        parts += [f"## {table.title}", table.words, _table(table.head, table.lines)]
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rule = ["---"] * len(head)
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *lines))


def _admission(facts: Mapping[str, Any]) -> str:
    names = list(facts["cells"][0]["standard_errors"])
    lines = [
        [
            cell["name"] + (" (tuned on)" if cell["tuned"] else ""),
            *(_signed(cell["standard_errors"][name], 1) for name in names),
            "**yes**" if cell["discriminating"] else "no: " + cell["reason"],
        ]
        for cell in facts["cells"]
    ]
    return _table(["cell", *(f"{name}, s.e." for name in names), "discriminating"], lines)


def _pooled(facts: Mapping[str, Any]) -> str:
    head = ["row", "gap closed, fidelity", "gap closed, effect", "fidelity, dB", "worst", "better / worse"]
    head += ["effect, points", "worst", "better / worse", "content, points"]
    lines = []
    for row in facts["pooled"]:
        line = [f"`{row['name']}`", _gap(row["gap_psnr"]), _gap(row["gap_effect"])]
        for metric, digits in (("psnr", 2), ("effect", 1)):
            value = row[metric]
            line += [_signed(value["change"], digits), _signed(value["worst"], digits)]
            line.append(f"{value['better']} / {value['worse']}")
        lines.append([*line, _signed(row["content"]["change"], 1)])
    return _table(head, lines)


def _changes(facts: Mapping[str, Any], metric: str, digits: int) -> str:
    """Rows against cells; a change whose interval holds zero is in brackets."""
    names = [row["name"] for row in facts["pooled"] if row["name"] != "direct"]
    cells = sorted(facts["cells"], key=lambda cell: not cell["discriminating"])
    table = {cell["name"]: {row["name"]: row["metrics"][metric] for row in cell["rows"]} for cell in cells}
    lines = [[f"`{name}`", *(_sure(table[cell["name"]][name], digits) for cell in cells)] for name in names]
    return _table([metric, *(cell["name"] for cell in cells)], lines)


def _studies(facts: Mapping[str, Any]) -> Iterator[str]:
    """Ranks, dials and probes on the cells that were studied: the change of fidelity, and for probes of content too."""
    for group, metrics in (("rank", ["psnr"]), ("sensitivity", ["psnr"]), ("probe", ["psnr", "content"])):
        cells = [cell for cell in facts["cells"] if any(row["group"] == group for row in cell["rows"])]
        if not cells:
            continue
        tables = [{row["name"]: row["metrics"] for row in cell["rows"] if row["group"] == group} for cell in cells]
        lines = [
            [
                f"`{name}`",
                *(_sure(rows[name][metric], 2 if metric == "psnr" else 0) for metric in metrics for rows in tables),
            ]
            for name in tables[0]
        ]
        yield _table([group, *(f"{cell['name']}, {metric}" for metric in metrics for cell in cells)], lines)


def _sure(value: Mapping[str, float], digits: int) -> str:
    text = _signed(value["change"], digits)
    return text if value["change_low"] > 0 or value["change_high"] < 0 else f"({text})"


def _gap(gap: Mapping[str, float] | None) -> str:
    return "–" if gap is None else f"{100 * gap['value']:.0f} % ({100 * gap['low']:.0f} to {100 * gap['high']:.0f})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
