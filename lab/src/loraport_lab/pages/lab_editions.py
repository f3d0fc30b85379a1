"""Calibration and the score on both editions of the family, summed up from their tables in `lab/results/`."""

import csv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport_lab.bench.material import TUNING_CELL
from loraport_lab.pages.lab_calibration import NAMES, Table
from loraport_lab.pages.lab_results import FIRST
from loraport_lab.pages.lab_tables import table_csv

EDITIONS = "editions.csv"
FIT, GUARDED = "gains + readout", "calibrated, guarded"
Line = Mapping[str, str]


@dataclass(frozen=True)
class _Edition:
    """The tables of one edition that are summed up: {a table's first column: its line}."""

    cells: Mapping[str, Line]
    calibration: Mapping[str, Line]
    harm: Mapping[str, Line]
    agreement: Mapping[str, Line]

    @classmethod
    def read(cls, folder: Path) -> "_Edition":
        return cls(*(_lines(folder / f"{name}.csv") for name in ("cells", "calibration", "harm", "agreement")))

    @property
    def deciding(self) -> list[Line]:
        """The lines of the calibrated cells that can tell methods apart, without the tuned one."""
        names = [name for name, line in self.cells.items() if line["discriminating"] == "yes"]
        return [self.calibration[name] for name in names if name in self.calibration and name != "/".join(TUNING_CELL)]


def editions_csv(results: Path) -> str:
    """Return the table of both editions; `results` is lab/results.

    Gaps are pooled as everywhere: Σ gain / Σ gap over the discriminating cells but the tuned one, here from the cells'
    own rounded shares and gaps, with the admission of `cells.csv`.
    """
    both = [_Edition.read(results / FIRST), _Edition.read(results)]
    columns = [_column(edition) for edition in both]
    lines = tuple((name, *(column[name] for column in columns)) for name in columns[0])
    return table_csv(Table("editions", ("", "first edition", "present edition"), lines))


def _column(edition: _Edition) -> dict[str, str]:
    deciding, fits, harm = edition.deciding, edition.calibration.values(), edition.harm
    ends = [[int(part) for part in line["end error of direct's"].replace(" %", "").split(" / ")] for line in fits]
    fidelity = edition.agreement["psnr"]
    return {
        "calibrated cells (discriminating)": f"{len(fits)} ({len(deciding)})",
        "gap in fidelity closed: gains and readout": _gap_closed(deciding, guarded=False),
        "gap in fidelity closed: what the guard kept": _gap_closed(deciding, guarded=True),
        "end error of direct reuse's: oracle": f"{sum(end[0] for end in ends) / len(ends):.0f} %",
        "end error of direct reuse's: gains and readout": f"{sum(end[-1] for end in ends) / len(ends):.0f} %",
        "direct reuse kept by the guard": f"{harm[GUARDED]['direct kept']} of {harm[GUARDED]['cells']}",
        **{
            f"{words} better / worse: {title}": harm[row][measure].split(" (")[0]
            for measure, words in NAMES.items()
            for row, title in ((FIT, "gains and readout"), (GUARDED, "what the guard kept"))
        },
        "cells in which the score was compared": fidelity["cells"],
        **{
            f"rank correlation with {words}, mean (lowest)": _correlation(edition.agreement[measure])
            for measure, words in NAMES.items()
        },
        **{
            f"same side of direct reuse, {words}": edition.agreement[measure]["same side"]
            for measure, words in NAMES.items()
        },
    }


def _gap_closed(lines: Sequence[Line], *, guarded: bool) -> str:
    gain = gap = 0.0
    for line in lines:
        share, room = line["gap closed"].split(" / ")[0], line["oracle"].split(" / ")[0]
        if share == "–":
            continue
        gap += float(room.strip("()"))
        if not guarded or line["guard keeps"] == "calibrated":
            gain += float(share.removesuffix(" %")) / 100 * float(room.strip("()"))
    return f"{100 * gain / gap:.0f} %" if gap else "–"


def _correlation(line: Line) -> str:
    return f"{line['mean']} ({line['lowest'].split(' ')[0]})"


def _lines(path: Path) -> dict[str, Line]:
    """Return {the first column without marks such as `(tuned on)` and backticks: the line}."""
    with path.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    first = next(iter(lines[0]))
    return {line[first].split(" (")[0].strip("`"): line for line in lines}
