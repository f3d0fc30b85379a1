"""`demo`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated

import typer

from loraport.cli.options import MessageOptions, Overwrite, folder_path
from loraport.cli.options.existing import keep_foreign
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.diagnosis.rule.advice import SAFE
from loraport_lab.family.family import ADAPTERS, STUDENTS

STYLE, STUDENT = "noir", "matched"
METHOD, BESIDE = "casa", SAFE
CLIPS = 64
EVALUATED = 8
"""Clips of each column that `loraport evaluate` looks at, too: its network takes a third of a second for each."""
NOTHING = "none"

app = typer.Typer()


def _listed(names: Iterable[str]) -> str:
    *some, last = names
    return f"{', '.join(some)} or {last}"


@app.command(cls=GroupedCommand, epilog="Example: loraport demo -o demo")
@with_options
def demo(
    messages: MessageOptions,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FOLDER", help="Where the page goes.")] = "demo",
    style: Annotated[str, typer.Option(help=f"Which of the embedded LoRAs: {_listed(ADAPTERS)}.")] = STYLE,
    student: Annotated[str, typer.Option(help=f"On which student: {_listed(STUDENTS)}.")] = STUDENT,
    method: Annotated[
        str, typer.Option(metavar="METHOD", help="The method in question, any of loraport transfer.")
    ] = METHOD,
    beside: Annotated[
        str, typer.Option(metavar="METHOD", help=f"Another one to put beside it; {NOTHING} for no such column.")
    ] = BESIDE,
    bare: Annotated[bool, typer.Option("--bare", help="Show the student without a LoRA, too.")] = False,
    clips: Annotated[int, typer.Option(min=2, help="How many clips each column makes.")] = CLIPS,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts and of the noise that all columns share.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Transfer a LoRA between the embedded models, make clips with each, and write a page that compares them."""
    from loraport.console import print_facts
    from loraport.errors import OutputError
    from loraport.inputs.config import TransferConfig
    from loraport.transfers.run import transfer_many
    from loraport_lab.demo import demo_columns, run_demo
    from loraport_lab.family.family import BASE, adapter_path, target_place
    from loraport_lab.pages.demo_page import DEMO_FILES, demo_facts, write_demo
    from loraport_lab.pages.demo_terminal import print_demo

    folder = folder_path(output)
    keep_foreign(folder, DEMO_FILES, overwrite)
    methods = dict.fromkeys([method] if beside == NOTHING else [method, beside])
    files = {one: folder / f"{style}-{student}-{one.replace(':', '-')}.safetensors" for one in methods}
    inputs = str(adapter_path(style)), str(BASE), target_place(student)
    with messages.terminal() as terminal:
        terminal.step(f"moving the LoRA: {' and '.join(methods)}", 0, 3)
        configs = [TransferConfig(*inputs, str(file), method=one, format="diffusers") for one, file in files.items()]
        batch = transfer_many(configs, progress=terminal)
        for lost in batch.not_written:
            raise OutputError(f"{lost.output} was not written, so its column cannot be made: {lost.reason}")
        columns = demo_columns(style, student, files, bare=bare)
        terminal.step(f"making {clips} clips in each of {len(columns)} columns", 1, 3)
        shown = run_demo(
            columns, adapter=style, clips=clips, seed=seed, evaluated=min(clips, EVALUATED), progress=terminal
        )
        terminal.step("writing the page", 2, 3)
        page = write_demo(shown, batch.runs, folder)
    if messages.json:
        print_facts(demo_facts(shown, batch.runs, page), json=True)
    else:
        print_demo(shown, page)
