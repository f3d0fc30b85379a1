"""`lab run`."""

from __future__ import annotations

from typing import Annotated

import typer

from loraport.cli.options import MessageOptions, Overwrite, folder_path
from loraport.cli.options.existing import keep_foreign
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand, GroupedCommands

app = typer.Typer(
    name="lab",
    cls=GroupedCommands,
    help="The benchmark on the embedded family: every method, with controls.",
    epilog="Example: loraport lab run -o lab-results",
    no_args_is_help=True,
)


@app.command(
    "run", cls=GroupedCommand, epilog="Example: loraport lab run -o lab-results --cells one-step/noir --cells causal"
)
@with_options
def run(
    messages: MessageOptions,
    output: Annotated[
        str, typer.Option("-o", "--output", metavar="FOLDER", help="Where page and tables go.")
    ] = "lab-results",
    family: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Another family, as `make family` makes it.")
    ] = None,
    cells: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Only cells student/adapter that fit, such as causal.")
    ] = None,
    clips: Annotated[int, typer.Option(min=6, help="How many clips each row makes.")] = 48,
    calibration: Annotated[
        bool, typer.Option("--calibration", help="Also calibrate, guard and choose on every cell, with the controls.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="Processes, a core each.")] = 2,
    overwrite: Overwrite = False,
) -> None:
    """Measure every method on every student and adapter, and write a page, a JSON and a CSV; a second run goes on."""
    from loraport import console
    from loraport.files.disk.user_paths import expand_home
    from loraport_lab.bench.run import run_lab
    from loraport_lab.bench.tables import lab_facts
    from loraport_lab.family.family import FAMILY
    from loraport_lab.pages.lab_page import LAB_FILES, lab_words, write_lab

    folder = folder_path(output)
    keep_foreign(folder, LAB_FILES, overwrite)
    with messages.terminal() as terminal:
        home = expand_home(family) if family else FAMILY
        result = run_lab(
            folder, family=home, cells=cells or (), clips=clips, calibration=calibration, jobs=jobs,
            progress=terminal,
        )  # fmt: skip
    facts = lab_facts(result)
    page = write_lab(facts, result, folder)
    console.print_facts({**facts, "page": str(page)} if messages.json else lab_words(facts, page), json=messages.json)
