"""The lab's tables in words, and as CSV files; those of the whole lab lie in `lab/results/` for the documentation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from loraport.reports.rendering import csv_text
from loraport_lab.pages.lab_calibration import Table, calibration_tables
from loraport_lab.pages.lab_titles import TITLES

METRICS = {"psnr": ("fidelity", 2), "effect": ("effect", 1), "content": ("content", 1), "flicker": ("flicker", 1)}
"""{a measure: its heading, and digits behind the point}."""
STUDIES = {
    "rank": ("ranks", ("psnr", "effect")),
    "sensitivity": ("dials", ("psnr", "effect")),
    "partly distilled": ("partly-distilled", ("psnr", "content")),
    "disturbed": ("disturbed", ("psnr", "content", "flicker")),
}
"""{a group of rows: its table, and the measures in it}."""
PREMISES = {
    "drift": ("drift, %", 100, 2),
    "rho2": ("ρ₂, %", 100, 2),
    "lora": ("adapter, %", 100, 1),
    "head_drift": ("drift in the first tenth, %", 100, 0),
    "head_lora": ("adapter in the first tenth, %", 100, 0),
    "clusters": ("clusters, % of k", 100, 0),
    "largest_cluster": ("largest cluster, % of k", 100, 0),
    "restored": ("restored, %", 100, 0),
    "arbitrated": ("arbitrated, %", 100, 1),
    "kept": ("correction kept, %", 100, 0),
}
"""{a premise: its heading, a factor, digits}."""
LEVEL = 0.05


def table_files(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return {file name: CSV text} of every table."""
    return {f"{table.name}.csv": table_csv(table) for table in lab_tables(facts)}


def lab_tables(facts: Mapping[str, Any]) -> tuple[Table, ...]:
    """Return every table that the facts have lines for, in the order of their titles."""
    made = [
        _admission(facts),
        _premises(facts),
        _pooled(facts),
        *(_compared(name, facts[name]) for name in ("ablation", "methods")),
        *(_changes(facts, *at) for at in (("fidelity", "psnr", 1), ("effect", "effect", 0), ("content", "content", 0))),
        _regret(facts),
        *_studies(facts),
        *calibration_tables(facts),
    ]
    order = list(TITLES)
    return tuple(sorted((table for table in made if table.lines), key=lambda table: order.index(table.name)))


def table_csv(table: Table) -> str:
    """Return a table as CSV; minus signs are hyphens here, as programs that read numbers want them."""
    return csv_text(table.head, table.lines).replace("−", "-")


def _admission(facts: Mapping[str, Any]) -> Table:
    names = list(facts["cells"][0]["standard_errors"])
    lines = tuple(
        (
            cell["name"] + (" (tuned on)" if cell["tuned"] else ""),
            *(_signed(cell["standard_errors"][name], 1) for name in names),
            "yes" if cell["discriminating"] else "no: " + cell["reason"],
        )
        for cell in facts["cells"]
    )
    return Table("cells", ("cell", *(f"{name}, s.e." for name in names), "discriminating"), lines)


def _premises(facts: Mapping[str, Any]) -> Table:
    lines = tuple(
        (
            cell["name"],
            *(
                "–" if cell["premises"][key] is None else f"{factor * cell['premises'][key]:.{digits}f}"
                for key, (_, factor, digits) in PREMISES.items()
            ),
        )
        for cell in facts["cells"]
    )
    return Table("premises", ("cell", *(heading for heading, _, _ in PREMISES.values())), lines)


def _pooled(facts: Mapping[str, Any]) -> Table:
    head = ["row", "gap closed, fidelity", "gap closed, effect"]
    for heading in ("fidelity, dB", "effect, points", "content, points"):
        head += [heading, "worst", "better / worse"]
    lines = []
    for row in facts["pooled"]:
        line = [row["name"], _gap(row["gap_psnr"]), _gap(row["gap_effect"])]
        for metric in ("psnr", "effect", "content"):
            value, digits = row[metric], METRICS[metric][1]
            line += [_signed(value["change"], digits), _signed(value["worst"], digits)]
            line.append(f"{value['better']} / {value['worse']} ({value['surely_better']} / {value['surely_worse']})")
        lines.append(tuple(line))
    return Table("rows", tuple(head), tuple(lines))


def _compared(name: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Levels by student and over all cells, then the changes over all cells."""
    lines = tuple(
        (
            row["name"],
            *(_levels(values) for values in row["students"].values()),
            _levels(row["all"]),
            *(
                "–" if row["name"] == "direct" else _interval(row["change"][metric], METRICS[metric][1])
                for metric in ("psnr", "effect", "content")
            ),
        )
        for row in rows
    )
    changes = (f"{METRICS[metric][0]} against direct" for metric in ("psnr", "effect", "content"))
    return Table(name, ("row", *rows[0]["students"], "all cells", *changes), lines)


def _levels(values: Mapping[str, float]) -> str:
    return f"{values['psnr']:.1f} / {values['effect']:.0f} / {values['content']:.0f}"


def _changes(facts: Mapping[str, Any], name: str, metric: str, digits: int) -> Table:
    """Rows against cells; a change whose interval holds zero is in brackets."""
    names = [row["name"] for row in facts["pooled"] if row["name"] != "direct"]
    cells = sorted(facts["cells"], key=lambda cell: not cell["discriminating"])
    table = {cell["name"]: {row["name"]: row["metrics"][metric] for row in cell["rows"]} for cell in cells}
    lines = tuple((row, *(_sure(table[cell["name"]][row], digits) for cell in cells)) for row in names)
    return Table(name, (metric, *(cell["name"] for cell in cells)), lines)


def _regret(facts: Mapping[str, Any]) -> Table:
    lines = tuple(
        (
            METRICS[line["measure"]][0],
            line["rule"],
            _interval(line["all_cells"], METRICS[line["measure"]][1]),
            "–" if line["discriminating"] is None else _interval(line["discriminating"], METRICS[line["measure"]][1]),
            f"{_signed(line['worst'], METRICS[line['measure']][1])} ({line['worst_cell']})",
        )
        for line in facts["regret"]
    )
    return Table("regret", ("measure", "rule", "all cells", "discriminating cells", "worst cell"), lines)


def _studies(facts: Mapping[str, Any]) -> Iterator[Table]:
    """Rows of a study against the cells that were studied, once for each measure."""
    for group, (name, metrics) in STUDIES.items():
        cells = [cell for cell in facts["cells"] if any(row["group"] == group for row in cell["rows"])]
        tables = [{row["name"]: row["metrics"] for row in cell["rows"] if row["group"] == group} for cell in cells]
        rows = dict.fromkeys(row for table in tables for row in table)
        lines = tuple(
            (
                row,
                *(
                    _sure(table[row][metric], METRICS[metric][1]) if row in table else "–"
                    for metric in metrics
                    for table in tables
                ),
            )
            for row in rows
        )
        heads = (f"{cell['name']}, {METRICS[metric][0]}" for metric in metrics for cell in cells)
        yield Table(name, (group, *heads), lines)


def _sure(value: Mapping[str, float], digits: int) -> str:
    text = _signed(value["change"], digits)
    if value.get("p_holm", 1.0) < LEVEL:
        return f"{text}*"
    return text if value["change_low"] > 0 or value["change_high"] < 0 else f"({text})"


def _interval(value: Mapping[str, float], digits: int) -> str:
    middle, low, high = (_signed(value[key], digits) for key in ("value", "low", "high"))
    return f"{middle} ({low} to {high})"


def _gap(gap: Mapping[str, float] | None) -> str:
    return "–" if gap is None else f"{100 * gap['value']:.0f} % ({100 * gap['low']:.0f} to {100 * gap['high']:.0f})"


def _signed(value: float, digits: int) -> str:
    return f"{value:+.{digits}f}".replace("-", "−")
