"""Take the tables of a finished run into `lab/results/`, where the documentation shows them: `python -m ... RUN`."""

import argparse
import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from loraport.errors import InputError, LoraportError
from loraport.files.disk.atomic import write_whole
from loraport_lab.family.family import CELLS
from loraport_lab.pages.lab_calibration import APART, calibration_tables
from loraport_lab.pages.lab_editions import EDITIONS
from loraport_lab.pages.lab_results import SECOND
from loraport_lab.pages.lab_tables import table_csv

RESULTS = Path(__file__).parents[3] / "results"
FEWEST_CLIPS = 48


def keep_tables(run: Path, folder: Path, *, whole: bool = True) -> tuple[list[str], list[str]]:
    """Copy the tables of a run into a folder, and remove those that the run did not make; returns both lists of names.

    The tables of calibration, guard and score stay as they are where the run calibrated nothing.

    Raises InputError for a folder without a finished run, and, where it must be `whole`, for one that left cells out or
    made fewer clips than the lab's own.
    """
    facts = _facts(run)
    try:
        tables = {path.name: path.read_bytes() for path in sorted((run / "tables").iterdir())}
    except OSError as error:
        raise _unfinished(run, error) from None
    cells = [f"{student}/{adapter}" for student, adapter in CELLS]
    measured = [cell["name"] for cell in facts["cells"]]
    if whole and (measured != cells or facts["clips"] < FEWEST_CLIPS):
        raise InputError(
            f"{run} has {len(measured)} cells of {len(cells)} with {facts['clips']} clips; the documentation shows all "
            f"cells with at least {FEWEST_CLIPS}: loraport lab run -o {run}"
        )
    apart = {EDITIONS} if "calibration.csv" in tables else {EDITIONS, *(f"{name}.csv" for name in APART)}
    return _replace(folder, {name: data for name, data in tables.items() if name not in apart}, leave=apart)


def keep_calibration(runs: Sequence[Path], folder: Path) -> tuple[list[str], list[str]]:
    """Put the tables of calibration, guard and score in place of a folder's; returns the names put there and removed.

    They are of the first run, which calibrated some cells; the others add cells to the agreement cell by cell.

    Raises InputError for a folder without a finished run, few clips, and a first run that calibrated nothing.
    """
    facts = [_facts(run) for run in runs]
    found = {cell["name"]: cell for one in reversed(facts) for cell in one["cells"] if _has_ends(cell)}
    cells = [found[name] for name in ("/".join(cell) for cell in CELLS) if name in found]
    clips = min(one["clips"] for one in facts)
    if clips < FEWEST_CLIPS:
        raise InputError(f"{clips} clips a row are too few for the documentation, which shows {FEWEST_CLIPS} or more")
    made = calibration_tables({"cells": cells, "agreement": facts[0]["agreement"]})
    tables = {f"{table.name}.csv": table_csv(table).encode() for table in made}
    if "calibration.csv" not in tables:
        raise InputError(f"{runs[0]} calibrated nothing; make such a run: loraport lab run -o {runs[0]} --calibration")
    others = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    return _replace(folder, tables, leave=others - {f"{name}.csv" for name in APART})


def _facts(run: Path) -> dict[str, Any]:
    try:
        facts: dict[str, Any] = json.loads((run / "lab.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unfinished(run, error) from None
    return facts


def _unfinished(run: Path, error: Exception) -> InputError:
    return InputError(f"{run} holds no finished run of the lab ({error}); make one: loraport lab run -o {run}")


def _has_ends(cell: Mapping[str, Any]) -> bool:
    return any("end" in row["metrics"] for row in cell["rows"])


def _replace(folder: Path, tables: Mapping[str, bytes], *, leave: Collection[str]) -> tuple[list[str], list[str]]:
    """Write the tables, then remove all others of the folder but those to leave; returns both lists of names."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in tables.items():
        write_whole(folder / name, data)
    stay = {*tables, *leave}
    gone = [path for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".svg") and path.name not in stay]
    for path in gone:
        path.unlink()
    return list(tables), [path.name for path in gone]


def main() -> int:
    """Copy, and say what was copied and removed."""
    parser = argparse.ArgumentParser(prog="python -m loraport_lab.pages.lab_keep", description=__doc__)
    parser.add_argument("run", type=Path, nargs="+", help="the folder that `loraport lab run -o` wrote")
    of = parser.add_mutually_exclusive_group()
    of.add_argument(
        "--second", action="store_true", help=f"it is another training of the family: into lab/results/{SECOND}/"
    )
    of.add_argument(
        "--calibration",
        action="store_true",
        help="only the tables of calibration, guard and score; further runs add cells in which the score was compared",
    )
    wishes = parser.parse_args()
    if len(wishes.run) > 1 and not wishes.calibration:
        parser.error("several runs only go together with --calibration")
    folder = RESULTS / SECOND if wishes.second else RESULTS
    try:
        if wishes.calibration:
            kept, gone = keep_calibration(wishes.run, folder)
        else:
            kept, gone = keep_tables(wishes.run[0], folder, whole=not wishes.second)
    except LoraportError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: {', '.join(kept)}" + (f"; removed: {', '.join(gone)}" if gone else ""))
    print("Now: python docs/generate.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
