"""`compare`: clips of the source and of the target, with the LoRA and without, side by side."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from loraport.cli.options import (
    FILES,
    METHOD,
    OUTPUT,
    DeviceOptions,
    DryRun,
    LoraPart,
    MessageOptions,
    Overwrite,
    Preset,
    need,
)
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.cli.options.pairs import SampledModels, numbers, size_of
from loraport.cli.options.readable import refuse_unknown
from loraport.errors import LOST, SettingsError
from loraport.sampling.providers import known_place

app = typer.Typer()


@dataclass(frozen=True)
class ComparedModels(SampledModels):
    """The two models, and what else is needed to make pictures with them."""

    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The pipeline with text encoder, VAE, scheduler for a network that is named alone.",
            show_default="the source",
        ),
    ] = None  # fmt: skip
    lora_part: LoraPart = None


@dataclass(frozen=True)
class ColumnOptions:
    """What stands side by side."""

    heading: ClassVar[str] = METHOD
    with_: Annotated[
        str,
        typer.Option(
            "--with", metavar="METHOD|FILE,...",
            help="Further columns on the target: methods as transfer names them (core, undo:0.25), or LoRAs "
            "(moved.safetensors*0.8). Direct reuse always is one.",
        ),
    ] = "casa"  # fmt: skip
    without_lora: Annotated[
        bool,
        typer.Option(
            "--without-lora/--only-with-lora",
            help="Also source and target without the LoRA, against which scores of style are held.",
        ),
    ] = True
    preset: Preset = None


@dataclass(frozen=True)
class PromptOptions:
    """What is asked for."""

    heading: ClassVar[str] = "Prompts"
    prompts: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="A prompt a line (.txt), JSON lines (.jsonl), or a JSON list such as VBench's.",
            show_default="thirty built-in scenes",
        ),
    ] = None  # fmt: skip
    first: Annotated[
        int | None, typer.Option(min=1, metavar="INT", help="Take so many prompts from the start of the list.")
    ] = None
    seeds: Annotated[int, typer.Option(min=1, max=1000, metavar="INT", help="Clips of each prompt, noise differs.")] = 1
    trigger: Annotated[
        str | None,
        typer.Option(
            metavar="WORD", help="Put before every prompt that lacks it; '' for none.",
            show_default="the trigger word that the LoRA names",
        ),
    ] = None  # fmt: skip
    negative: Annotated[str, typer.Option(metavar="TEXT", help="What guided clips are to avoid.")] = ""


@dataclass(frozen=True)
class CourseOptions:
    """How clips are made."""

    heading: ClassVar[str] = "Sampling of pipelines (the embedded family has its own settings)"
    frames: Annotated[
        int | None, typer.Option(min=1, metavar="INT", help="Frames of a clip.", show_default="the pipeline's own")
    ] = None
    size: Annotated[
        str | None,
        typer.Option(metavar="HEIGHTxWIDTH", help="Size in pixels.", show_default="the pipeline's own"),
    ] = None
    source_steps: Annotated[
        int | None, typer.Option(min=1, metavar="INT", help="Steps of the source.", show_default="its usual ones: 50")
    ] = None
    source_guidance: Annotated[
        float | None,
        typer.Option(metavar="NUMBER", help="Guidance of the source.", show_default="its usual one: Wan 5"),
    ] = None
    target_steps: Annotated[
        int | None,
        typer.Option(min=1, metavar="INT", help="Steps of the target.", show_default="4, or its own timesteps"),
    ] = None
    target_guidance: Annotated[
        float | None, typer.Option(metavar="NUMBER", help="Guidance of the target; 1 is none.", show_default="1")
    ] = None
    target_timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...", help="Of a target that adds noise again at each step: its timesteps, of 1000.",
            show_default="the scheduler's own",
        ),
    ] = None  # fmt: skip
    batch: Annotated[int, typer.Option(min=1, metavar="INT", help="Clips made at once.")] = 1
    offload: Annotated[
        str,
        typer.Option(
            metavar="HOW", help="What leaves the device while it does not compute: none; model, a network that waits; "
            "group, all blocks but one; disk, to the disk.",
        ),
    ] = "none"  # fmt: skip


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport compare toy:noir --source toy:base --target toy:one-step --with casa,core --first 2 "
    "-o noir-compared",
)
@with_options
def compare(
    lora: Annotated[
        str,
        typer.Argument(
            metavar="LORA", help="A LoRA for the source: a safetensors file, a PEFT folder, or a Hub id.",
            rich_help_panel=FILES,
        ),
    ],
    models: ComparedModels,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Where clips, manifest and page go; a later start goes on there.",
            rich_help_panel=OUTPUT,
        ),
    ],
    columns: ColumnOptions,
    prompts: PromptOptions,
    course: CourseOptions,
    run: DeviceOptions,
    messages: MessageOptions,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
) -> None:  # fmt: skip
    """Make clips of both models with the LoRA and without, from the same prompts and noise, to look at and to measure.

    Columns: source, source+lora, target, direct (the LoRA as it is, on the target), and each of --with, transferred
    first where it is a method. The folder has every clip twice, lossless to measure and H.264 to look at, a manifest
    with all hashes, and a page. A run that was stopped goes on with the clips that are missing.
    """
    others = tuple(known_place(name.strip()) for name in columns.with_.split(",") if name.strip())
    refuse_unknown(others)
    from loraport import console
    from loraport.compare.grid.requests import Comparison, Course
    from loraport.compare.manifest import existing_manifest
    from loraport.compare.run import compare as start
    from loraport.compute import find_device
    from loraport.reports.comparison.page import write_comparison_page

    need("av", "PIL", "diffusers", "peft", "transformers", extra="compare")
    height, width = size_of(course.size) if course.size else (None, None)
    folder = Path(os.path.expanduser(output))
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"{output} is a file; name a folder")
    comparison = Comparison(
        known_place(lora), known_place(models.source), known_place(models.target), folder,
        others, columns.without_lora,
        prompts.prompts, prompts.first, prompts.seeds, prompts.trigger,
        Course(
            course.frames, height, width, course.source_steps, course.source_guidance, course.target_steps,
            course.target_guidance, numbers(course.target_timesteps), prompts.negative, models.pipeline, course.batch,
            course.offload, find_device(run.device),
        ),
        models.lora_part, columns.preset, run.folder, overwrite,
    )  # fmt: skip
    with messages.terminal() as terminal:
        result = start(comparison, progress=terminal, dry_run=dry_run)
        if not dry_run:
            write_comparison_page(existing_manifest(folder))
    if messages.json:
        console.print_facts(result.as_json(), json=True)
    elif not messages.quiet:
        console.print_facts(result.table(), json=False)
    raise typer.Exit(LOST if result.lost else 0)
