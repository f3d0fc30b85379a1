"""Make the map: `python -m loraport_lab.regime.run --out FOLDER`, on a card with `--device cuda`.

Every stage leaves its result whole or not at all: started again, it goes on where it was. `map.csv`, `map.png` and
`explanation.csv` in the folder show what is there, also while it is not complete.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import fields
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from loraport.cli.stopping import Stopped, listening
from loraport.errors import LoraportError, SettingsError
from loraport.files.disk.atomic import write_whole
from loraport_lab.bench.material import Cell
from loraport_lab.regime.cells import Subject, measure_cell, read_cell
from loraport_lab.regime.explain import Explanation, explain
from loraport_lab.regime.figure import draw_map
from loraport_lab.regime.points import GRID, SCALE, Base, Distillation, Places, Point, adapters_used, points_of
from loraport_lab.regime.stages import Workshop
from loraport_lab.regime.table import HERE, Line, as_csv, lines_of, read_lines
from loraport_lab.training.train import Printer

STRENGTHS = (0.5, 1.0, 2.0)
"""How large the LoRA is, as a multiple of itself; an oracle it has at 1 alone."""
STRENGTH_POINTS = (("few-step", 1e-4), ("one-step", 5e-4))
"""The distillations whose last point is also measured with a smaller and a larger LoRA."""
EXPLAINED = "casa"


def strengths_of(point: Point) -> tuple[float, ...]:
    """Return the strengths that the adapters have at a point."""
    how = point.distillation
    whole = point.steps == max(how.steps) and (how.student, how.rate) in STRENGTH_POINTS
    return STRENGTHS if whole else (1.0,)


def make_map(workshop: Workshop, points: Sequence[Point], *, oracles: bool = True) -> None:
    """Make what is missing of these points, one after the other."""
    places = workshop.places
    for point in points:
        for adapter in adapters_used():
            for strength in sorted(strengths_of(point), key=lambda amount: amount != 1):
                file = places.cell(point, adapter, strength)
                if file.exists():
                    continue
                folder = workshop.make_student(point)
                if oracles and strength == 1:
                    workshop.make_oracle(point, adapter)
                cell = Cell(point.student, adapter)
                subject = Subject.of(point, folder, cell, strength, workshop.scale.clips, workshop.device)
                began = time.time()
                measure_cell(subject, places, file)
                print(f"{point.name} {adapter.name} {strength:g}: {time.time() - began:.0f} s", file=sys.stderr)


def collect(places: Places, points: Iterable[Point]) -> list[Line]:
    """Return the lines of all cells that have been measured."""
    lines: list[Line] = []
    for point in points:
        for adapter in adapters_used():
            for strength in STRENGTHS:
                file = places.cell(point, adapter, strength)
                if file.exists():
                    lines += lines_of(point, adapter, strength, read_cell(file))
    return lines


def write_map(lines: Sequence[Line], folder: Path) -> None:
    """Write the table, the figure, and what goes with the gain."""
    write_whole(folder / "map.csv", as_csv(lines))
    write_whole(folder / "map.png", draw_map(lines))
    write_whole(folder / "explanation.csv", explanation_csv(explain(lines, EXPLAINED)))


def explanation_csv(found: Sequence[Explanation]) -> bytes:
    """Return explanations as a CSV file."""
    names = [field.name for field in fields(Explanation)]
    rows = [[_text(getattr(one, name)) for name in names] for one in found]
    return "".join(",".join(row) + "\n" for row in [names, *rows]).encode()


def _text(value: object) -> str:
    return "" if value is None else f"{value:.2f}" if isinstance(value, float) else str(value)


def chosen(points: Sequence[Point], patterns: Sequence[str]) -> list[Point]:
    """Return the points whose names fit one of the patterns, all without any. Raises SettingsError if one fits none."""
    for pattern in patterns:
        if not any(fnmatchcase(point.name, pattern) for point in points):
            raise SettingsError(f"pattern {pattern!r} fits no point; there are: {', '.join(p.name for p in points)}")
    return [point for point in points if not patterns or any(fnmatchcase(point.name, one) for one in patterns)]


def main(grid: tuple[tuple[Base, Distillation], ...] = GRID) -> None:
    """Parse the command line, make what is missing, and write the map."""
    parser = argparse.ArgumentParser(prog="python -m loraport_lab.regime.run", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the map; started again, it continues")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=1, help="of the processor")
    parser.add_argument("--only", nargs="+", default=(), metavar="PATTERN", help="points, such as 'w128-*/few-step-*'")
    parser.add_argument(
        "--beside",
        nargs="+",
        default=(),
        type=Path,
        metavar="CSV",
        help="tables whose other places' lines are shown too",
    )
    parser.add_argument(
        "--no-oracles", action="store_true", help="train no adapter on a student: the gap stays unknown"
    )
    parser.add_argument("--table", action="store_true", help="make nothing, only write table and figure")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    points, places = points_of(grid), Places(arguments.out)
    device, began = torch.device(arguments.device), time.time()
    try:
        if not arguments.table:
            with listening():
                workshop = Workshop(places, SCALE, device, Printer(began))
                make_map(workshop, chosen(points, arguments.only), oracles=not arguments.no_oracles)
        others = [line for file in arguments.beside for line in read_lines(file) if line.where != HERE]
        write_map([*collect(places, points), *others], arguments.out)
    except LoraportError as error:
        parser.error(str(error))
    except Stopped as stopped:
        parser.exit(128 + stopped.signal, f"{parser.prog}: {stopped}\n")


if __name__ == "__main__":
    main()
