"""Take the tables of a finished run into `lab/results/`, where the documentation shows them: `python -m ... RUN`."""

import argparse
import json
import sys
from pathlib import Path

from loraport.errors import InputError, LoraportError
from loraport.files.disk.atomic import write_whole
from loraport_lab.family.family import CELLS
from loraport_lab.pages.lab_results import SECOND

RESULTS = Path(__file__).parents[3] / "results"
FEWEST_CLIPS = 48


def keep_tables(run: Path, folder: Path, *, whole: bool = True) -> tuple[list[str], list[str]]:
    """Copy the tables of a run into a folder, and remove those that the run did not make; returns both lists of names.

    Raises InputError for a folder without a finished run, and, where it must be `whole`, for one that left cells out or
    made fewer clips than the lab's own.
    """
    try:
        facts = json.loads((run / "lab.json").read_text(encoding="utf-8"))
        tables = {path.name: path.read_bytes() for path in sorted((run / "tables").iterdir())}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{run} holds no finished run of the lab ({error}); make one: loraport lab run -o {run}"
        ) from None
    cells = [f"{student}/{adapter}" for student, adapter in CELLS]
    measured = [cell["name"] for cell in facts["cells"]]
    if whole and (measured != cells or facts["clips"] < FEWEST_CLIPS):
        raise InputError(
            f"{run} has {len(measured)} cells of {len(cells)} with {facts['clips']} clips; the documentation shows all "
            f"cells with at least {FEWEST_CLIPS}: loraport lab run -o {run}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    gone = [path for path in sorted(folder.iterdir()) if path.suffix in (".csv", ".svg") and path.name not in tables]
    for name, data in tables.items():
        write_whole(folder / name, data)
    for path in gone:
        path.unlink()
    return list(tables), [path.name for path in gone]


def main() -> int:
    """Copy, and say what was copied and removed."""
    parser = argparse.ArgumentParser(prog="python -m loraport_lab.pages.lab_keep", description=__doc__)
    parser.add_argument("run", type=Path, help="the folder that `loraport lab run -o` wrote")
    parser.add_argument(
        "--second", action="store_true", help=f"it is another training of the family: into lab/results/{SECOND}/"
    )
    wishes = parser.parse_args()
    folder = RESULTS / SECOND if wishes.second else RESULTS
    try:
        kept, gone = keep_tables(wishes.run, folder, whole=not wishes.second)
    except LoraportError as error:
        print(error, file=sys.stderr)
        return 2
    print(f"{folder}: {', '.join(kept)}" + (f"; removed: {', '.join(gone)}" if gone else ""))
    print("Now: python docs/generate.py")
    return 0


if __name__ == "__main__":
    sys.exit(main())
