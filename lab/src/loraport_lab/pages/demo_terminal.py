"""The demo's result in a terminal: a small table, where the page is, and the verdict in the last line."""

import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from loraport.printable import printable, raw_stream
from loraport_lab.demo import DemoResult
from loraport_lab.pages.verdict import column_of, compare, mean, signed, verdict

SHOWN = (("psnr", "fidelity", "dB", 2), ("effect", "effect", "%", 1))
WIDTH = 80
"""Of a pipe or a file, in columns."""


def print_demo(demo: DemoResult, page: Path) -> None:
    """Print a line for each column, and the verdict."""
    stream = raw_stream(sys.stdout)
    terminal = Console(file=stream, highlight=False, markup=False, width=None if stream.isatty() else WIDTH)
    terminal.print(_table(demo))
    print(f"{len(demo.prompts)} clips each; ± is the 95 % interval of the change against the LoRA as it is")
    print(f"Open {page.resolve()} in a browser.")
    for sentence in verdict(demo).first[:1]:
        print(sentence)


def _table(demo: DemoResult) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("")
    for _, name, unit, _ in SHOWN:
        table.add_column(f"{name}, {unit}", justify="right")
        table.add_column("change", justify="right")
    direct = column_of(demo, "direct")
    for column in demo.columns:
        cells = []
        for key, _, _, digits in SHOWN:
            known = key in column.values
            cells.append(f"{mean(column.values[key]):.{digits}f}" if known else "reference")
            if known and direct is not None and column.role not in ("reference", "direct"):
                cells.append(signed(compare(demo, column, direct, key), digits))
            else:
                cells.append("")
        table.add_row(printable(column.label), *cells, style="bold" if column.role == "transfer" else None)
    return table
