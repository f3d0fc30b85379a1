"""`diagnose`: what the weights say about a pair, before anything is moved or sampled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from loraport.cli.options import (
    METHOD,
    OUTPUT,
    DeviceOptions,
    Lora,
    LoraPart,
    MessageOptions,
    ModelOptions,
    Overwrite,
    page_path,
)
from loraport.cli.options.existing import keep_existing
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.printable import printable

app = typer.Typer()


@dataclass(frozen=True)
class DiagnosisOptions:
    """How much is looked at, and where it is shown."""

    heading: ClassVar[str] = METHOD
    all_layers: Annotated[
        bool, typer.Option("--all", help="Look at every layer: exact, and about as long as a transfer.")
    ] = False
    report: Annotated[
        str | None,
        typer.Option(metavar="OUT.html", help="Also write a page about the pair.", rich_help_panel=OUTPUT),
    ] = None
    overwrite: Overwrite = False


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport diagnose style.safetensors --source wan2.1-t2v-1.3b --target fastwan2.1-t2v-1.3b",
)
@with_options
def diagnose(
    lora: Lora,
    models: ModelOptions,
    look: DiagnosisOptions,
    run: DeviceOptions,
    messages: MessageOptions,
    lora_part: LoraPart = None,
) -> None:
    """Say which method a LoRA and two models speak for, how sure that is, and what to type next.

    Reads weights alone, of a sample of the layers; samples nothing and writes nothing.
    """
    from loraport import console
    from loraport.diagnosis.diagnose import diagnose as look_into
    from loraport.inputs.accelerator import target_places
    from loraport.reports.diagnosis_words import diagnosis_words
    from loraport.sampling.providers import known_place

    page = None if look.report is None else page_path(look.report)
    if page is not None:
        places = (known_place(lora), known_place(models.source), *target_places(known_place(models.target)))
        keep_existing([page], places, look.overwrite)
    with messages.terminal() as terminal:
        told = look_into(
            lora, models.source, models.target, exact=look.all_layers, device=run.device, cache=run.folder,
            source_part=models.source_part, target_part=models.target_part, lora_part=lora_part, progress=terminal,
        )  # fmt: skip
    if page is not None:
        from loraport.reports.diagnosis_page import write_diagnosis_page

        write_diagnosis_page(told, page)
    if messages.json:
        console.print_facts(told.as_json(), json=True)
        return
    if not messages.quiet:
        for note in told.notes:
            messages.terminal().note(note)
        console.print_facts(diagnosis_words(told), json=False)
    console.say_line(told.line())
    print(printable(f"next: {told.command}"))  # in one line, to be copied
