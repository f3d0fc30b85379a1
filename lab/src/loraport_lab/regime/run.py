"""Make the map: `python -m loraport_lab.regime.run --out FOLDER`, on a card with `--device cuda`.

Every stage leaves its result whole or not at all: started again, it goes on where it was. `map.csv`, `map.png`
and the short tables `map-….csv` in the folder show what is there, also while it is not complete.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path

import torch

from loraport.errors import SettingsError
from loraport.files.disk.atomic import write_whole
from loraport_lab.regime.cells import Subject, measure_cell, read_cell
from loraport_lab.regime.explain import Explanation, explain
from loraport_lab.regime.factors import factors_csv
from loraport_lab.regime.figure import draw_map
from loraport_lab.regime.points import GRID, SCALE, MapCell, Places, cells_of, points_of
from loraport_lab.regime.stages import Workshop
from loraport_lab.regime.summary import loras_csv, paradigms_csv, regimes_csv, summary_csv
from loraport_lab.regime.table import Line, as_csv, lines_of, lines_of_lab, read_lines
from loraport_lab.training.train import Printer, ending

EXPLAINED = "casa"


def make_map(workshop: Workshop, cells: Sequence[MapCell], *, oracles: bool = True) -> None:
    """Make what is missing of these cells, one after the other."""
    for cell in cells:
        file = workshop.places.cell(cell)
        if file.exists():
            continue
        folder = workshop.make_student(cell.point)
        if oracles and cell.strength == 1:
            workshop.make_oracle(cell.point, cell.adapter)
        began = time.time()
        measure_cell(Subject(cell, folder, workshop.scale.clips, workshop.device), workshop.places, file)
        name = f"{cell.point.name} {cell.adapter.name} {cell.strength:g}"
        print(f"{name}: measured in {time.time() - began:.0f} s", file=sys.stderr)


def collect(places: Places, cells: Iterable[MapCell]) -> list[Line]:
    """Return the lines of all cells that have been measured."""
    done = [(cell, places.cell(cell)) for cell in cells]
    return [line for cell, file in done if file.exists() for line in lines_of(cell, read_cell(file))]


def beside(made: Sequence[Line], kept: Iterable[Line]) -> list[Line]:
    """Return the lines that were made, and of those kept from other maps the ones of cells that were not."""
    cells = {line.cell for line in made}
    return [*made, *(line for line in kept if line.cell not in cells)]


def write_map(lines: Sequence[Line], folder: Path) -> None:
    """Write the table, in full and in short, the figure, and what goes with the gain."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "map.csv", as_csv(lines))
    lines = read_lines(folder / "map.csv")  # rounded, so that the other files can be made from it again
    for name, table in SHORT_TABLES.items():
        write_whole(folder / name, table(lines))
    write_whole(folder / "map.png", draw_map(lines))


def explanation_csv(found: Sequence[Explanation]) -> bytes:
    """Return explanations as a CSV file."""
    names = [field.name for field in fields(Explanation)]
    rows = [[_text(getattr(one, name)) for name in names] for one in found]
    return "".join(",".join(row) + "\n" for row in [names, *rows]).encode()


def _text(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


SHORT_TABLES: dict[str, Callable[[Sequence[Line]], bytes]] = {
    "map-students.csv": summary_csv,
    "map-regimes.csv": regimes_csv,
    "map-paradigms.csv": paradigms_csv,
    "map-loras.csv": loras_csv,
    "map-factors.csv": factors_csv,
    "map-explanation.csv": lambda lines: explanation_csv(explain(lines, EXPLAINED)),
}
"""What is made of the map's table, by file."""


def chosen(cells: Sequence[MapCell], patterns: Sequence[str]) -> list[MapCell]:
    """Return the cells whose point's name fits a pattern, all without any. Raises SettingsError if one fits none."""
    names = list(dict.fromkeys(cell.point.name for cell in cells))
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise SettingsError(f"pattern {pattern!r} fits no point; there are: {', '.join(names)}")
    return [cell for cell in cells if not patterns or any(fnmatchcase(cell.point.name, one) for one in patterns)]


def main() -> None:
    """Parse the command line, make what is missing, and write the map."""
    parser = argparse.ArgumentParser(prog="python -m loraport_lab.regime.run", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the map; started again, it continues")
    parser.add_argument(
        "--lab", nargs="+", default=(), type=Path, metavar="JSON",
        help="of `lab run` on the shipped family, then on the same from seed 1, 2, …: their cells too",
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--only", nargs="+", default=(), metavar="PATTERN", help="points, such as 'w128-*/few-step-*'")
    parser.add_argument("--no-oracles", action="store_true", help="train no adapter on a student: no gap is known")
    parser.add_argument(
        "--beside",
        nargs="+",
        default=(),
        type=Path,
        metavar="CSV",
        help="maps made elsewhere or before: the cells that are not made here are shown too",
    )
    parser.add_argument("--table", action="store_true", help="make nothing, only write table and figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    places, grid = Places(arguments.out), cells_of(points_of(GRID))
    workshop = Workshop(places, SCALE, torch.device(arguments.device), Printer(time.time()))
    with ending(parser):
        if not arguments.table:
            make_map(workshop, chosen(grid, arguments.only), oracles=not arguments.no_oracles)
        families = [lines_of_lab(json.loads(file.read_text()), seed) for seed, file in enumerate(arguments.lab)]
        made = [*chain.from_iterable(families), *collect(places, grid)]
        write_map(beside(made, [line for file in arguments.beside for line in read_lines(file)]), arguments.out)


if __name__ == "__main__":
    main()
