"""`demo`."""

from __future__ import annotations

from typing import Annotated

import typer

from loraport.cli.existing import keep_foreign
from loraport.cli.expansion import with_options
from loraport.cli.help import GroupedCommand
from loraport.cli.options import MessageOptions, Overwrite, folder_path

app = typer.Typer()


@app.command(cls=GroupedCommand, epilog="Example: loraport demo -o demo")
@with_options
def demo(
    messages: MessageOptions,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FOLDER", help="Where the page goes.")] = "demo",
    style: Annotated[
        str, typer.Option(help="Which of the embedded LoRAs: noir, retro, neon, swing, noir-b or retro-b.")
    ] = "noir",
    student: Annotated[
        str, typer.Option(help="On which student: one-step, one-step-b, few-step, causal, matched or accelerator.")
    ] = "one-step",
    method: Annotated[str, typer.Option(metavar="METHOD", help="A method of loraport transfer.")] = "casa",
    clips: Annotated[int, typer.Option(min=2, help="How many clips each column makes.")] = 32,
    seed: Annotated[int, typer.Option(min=0, help="Of the prompts and of the noise that all columns share.")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Transfer a LoRA between the embedded models, make clips with each, and write a page that compares them."""
    from loraport import console
    from loraport.inputs.config import TransferConfig
    from loraport.transfers.run import transfer as run
    from loraport_lab.demo import demo_columns, run_demo
    from loraport_lab.family.family import BASE, adapter_path, target_place
    from loraport_lab.pages.demo_page import DEMO_FILES, demo_facts, write_demo

    folder = folder_path(output)
    keep_foreign(folder, DEMO_FILES, overwrite)
    new = folder / f"{style}-{student}-{method.replace(':', '-')}.safetensors"
    inputs = str(adapter_path(style)), str(BASE), target_place(student)
    with messages.terminal() as terminal:
        config = TransferConfig(*inputs, str(new), method=method, format="diffusers")
        result = run(config, progress=terminal)
        columns = demo_columns(style, new, method, student)
        shown = run_demo(columns, adapter=style, clips=clips, seed=seed, progress=terminal)
    page = write_demo(shown, result, folder)
    console.print_facts(demo_facts(shown, result, page, words=not messages.json), json=messages.json)
