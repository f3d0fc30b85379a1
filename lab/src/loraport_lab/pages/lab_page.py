"""The lab as a page: what was found in sentences, the tables, the figures, the clips."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from loraport.files.disk.atomic import write_whole
from loraport.plain_json import json_text
from loraport.reports.figures import address, as_svg
from loraport.reports.rendering import csv_text, render
from loraport_lab.bench.run import CellResult, LabResult
from loraport_lab.family.measure import METRICS, MORE_METRICS
from loraport_lab.pages.lab_plots import change_map, dials, partly_distilled, ranks, trade_off
from loraport_lab.pages.lab_tables import lab_tables, table_files
from loraport_lab.pages.lab_titles import TITLES
from loraport_lab.pages.pictures import animated_png

SHOWN_ROWS = ("student", "direct", "casa", "undo, swept", "oracle")
SHOWN_CLIPS = 4
SENTENCE_ROWS = (
    "casa",
    "casa, published code",
    "restore-only",
    "prolora",
    "core",
    "direct:1.15",
    "undo, swept",
    "calibrated, guarded",
)
DIALS = ("q_dom", "q_act", "tau", "restore")
DETAIL = ("psnr", "effect", "content", "tint", "likeness", "likeness_first", "sharpness", "flicker")
METRIC_TITLES = {"content": "Content, %"} | {m.key: f"{m.title}, {m.unit}" for m in (*METRICS, *MORE_METRICS)}
"""{a metric: its heading}."""
DRAWN_BY_HAND = ("cells", "rows", "fidelity", "effect", "content")
"""Tables that the page shows in other forms: with more columns, as a map, cell by cell."""


LAB_FILES = ("lab.json", "lab.csv")
"""What the lab leaves beside its page; the first of them before the others."""


def write_lab(facts: Mapping[str, Any], result: LabResult, folder: Path) -> Path:
    """Write the page, `lab.json`, `lab.csv` and the tables as CSV files into a folder; returns the page."""
    write_whole(folder / LAB_FILES[0], (json_text(facts, indent=1) + "\n").encode())
    write_whole(folder / "lab.csv", tidy_csv(facts).encode())
    (folder / "tables").mkdir(exist_ok=True)
    for name, text in table_files(facts).items():
        write_whole(folder / "tables" / name, text.encode())
    curves = dials(facts, DIALS)
    if curves is not None:
        write_whole(folder / "tables" / "dials.svg", as_svg(curves))
    page = folder / "index.html"
    names = [row["name"] for row in facts["pooled"] if row["name"] != "direct"]
    render(
        "lab.html.jinja",
        page,
        package="loraport_lab.pages",
        facts=facts,
        findings=findings(facts),
        pooled=[pooled_cells(row) for row in facts["pooled"] if row["name"] != "direct"],
        cells=[(cell, *_details(cell), _clips(one)) for cell, one in zip(facts["cells"], result.cells, strict=True)],
        shown=("base + LoRA", *SHOWN_ROWS),
        change_map=change_map(facts, names),
        trade_off=trade_off(facts["pooled"]),
        tables=[(table, TITLES[table.name]) for table in lab_tables(facts) if table.name not in DRAWN_BY_HAND],
        dials=None if curves is None else address(curves),
        ranks=ranks(facts),
        probes=partly_distilled(facts),
    )
    return page


def tidy_csv(facts: Mapping[str, Any]) -> str:
    """Return the tidy table as CSV: a line for each cell, row and metric."""
    columns = ("mean", "low", "high", "change", "change_low", "change_high")
    lines = [
        [cell["student"], cell["adapter"], cell["discriminating"], cell["tuned"], row["name"], row["group"], metric]
        + [value[column] for column in columns]
        for cell in facts["cells"]
        for row in cell["rows"]
        for metric, value in row["metrics"].items()
    ]
    return csv_text(["student", "adapter", "discriminating", "tuned", "row", "group", "metric", *columns], lines)


def findings(facts: Mapping[str, Any]) -> list[str]:
    """Return the findings in sentences, the most important first, whichever way they fall."""
    cells = facts["cells"]
    telling = [cell for cell in cells if cell["discriminating"]]
    students = sorted({cell["student"] for cell in telling})
    sentences = [
        f"{len(telling)} of {len(cells)} cells can tell methods apart"
        + (f", on the students {', '.join(students)}." if telling else ".")
    ]
    for name in SENTENCE_ROWS:
        row = next((row for row in facts["pooled"] if row["name"] == name), None)
        if row is not None:
            sentences.append(_sentence(row))
    return sentences


def _sentence(row: Mapping[str, Any]) -> str:
    psnr, effect = row["psnr"], row["effect"]
    closed = ""
    if row["gap_psnr"] is not None:
        closed = (
            f"closes {_percent(row['gap_psnr'])} of the gap in fidelity and {_percent(row['gap_effect'])} in effect; "
        )
    return (
        f"{row['name']}: {closed}against direct reuse, fidelity is better in {psnr['better']} and worse in "
        f"{psnr['worse']} of {row['cells_in_all']} cells (at worst {_signed(psnr['worst'], 1)} dB), effect better in "
        f"{effect['better']} and worse in {effect['worse']} (at worst {_signed(effect['worst'], 0)} points)."
    )


def lab_words(facts: Mapping[str, Any], page: Path) -> dict[str, Any]:
    """Return the findings for a terminal."""
    return {"found": findings(facts), "page": page}


def pooled_cells(row: Mapping[str, Any]) -> list[str]:
    """Return a line of the pooled table."""
    cells = [row["name"], _percent(row["gap_psnr"]), _percent(row["gap_effect"])]
    for metric, digits in (("psnr", 2), ("effect", 1), ("content", 1)):
        value = row[metric]
        cells += [
            _signed(value["change"], digits),
            _signed(value["worst"], digits),
            f"{value['better']} / {value['worse']} ({value['surely_better']} / {value['surely_worse']})",
        ]
    return cells


def _details(cell: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    metrics = [name for name in DETAIL if any(name in row["metrics"] for row in cell["rows"])]
    lines = []
    for row in cell["rows"]:
        values = [_value(row["metrics"].get(name), name) for name in metrics]
        gap = row["gap_closed"]
        chosen = f" ({row['chosen']})" if row["chosen"] else ""
        lines.append(
            [row["name"] + chosen, *values, f"{row['frechet']:.2f}", _percent(gap["psnr"]), _percent(gap["effect"])]
        )
    return [METRIC_TITLES[name] for name in metrics], lines


def _value(value: Mapping[str, float] | None, metric: str) -> str:
    if value is None:
        return "–"
    half = (value["high"] - value["low"]) / 2
    return f"{value['mean']:.{2 if metric == 'psnr' else 1}f} ± {half:.{2 if metric == 'psnr' else 1}f}"


def _signed(value: float, digits: int) -> str:
    """Return a change with its sign; what rounds to zero is not below it."""
    text = f"{value:+.{digits}f}"
    return text.replace("-", "−" if float(text) else "+")


def _percent(gap: Mapping[str, float] | None) -> str:
    return "–" if gap is None else f"{100 * gap['value']:.0f} % [{100 * gap['low']:.0f}, {100 * gap['high']:.0f}]"


def _clips(cell: CellResult) -> list[list[str]]:
    """Rows of the grid: for each clip the reference and the shown rows."""
    columns = [cell.reference, *(cell.rows[name].frames for name in SHOWN_ROWS)]
    return [[animated_png(column[clip]) for column in columns] for clip in range(min(SHOWN_CLIPS, len(cell.reference)))]
