"""`analyze`: the paper's analysis of a LoRA and a distillation."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, ClassVar

import typer

from loraport.cli.options import (
    METHOD,
    OUTPUT,
    DeviceOptions,
    ForceDrift,
    Lora,
    LoraPart,
    MessageOptions,
    ModelOptions,
    Overwrite,
    Preset,
    need,
)
from loraport.cli.options.existing import keep_analysis
from loraport.cli.options.expansion import SettingFlags, with_options
from loraport.cli.options.help import GroupedCommand
from loraport.cli.options.readable import refuse_unreadable
from loraport.methods.settings import CasaSettings, Changes
from loraport.sampling.providers import known_place

app = typer.Typer()


@dataclass(frozen=True)
class LookOptions:
    """Which layers are looked at, and how closely."""

    heading: ClassVar[str] = METHOD
    layers: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only matching layers.")] = None
    sample: Annotated[
        int | None,
        typer.Option(
            metavar="INT",
            help="At most this many layers, spread evenly over kinds and depths.",
            show_default="all",
        ),
    ] = None
    detail: Annotated[
        int, typer.Option(metavar="INT", help="How many of them are drawn in detail.", rich_help_panel=OUTPUT)
    ] = 3
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="GRID",
            help="CASA over settings: q_dom=0.3:0.7:0.05, or tau=0.5/1/2,q_act=0.8/0.9.",
        ),
    ] = None
    force_drift: ForceDrift = False


@dataclass(frozen=True)
class CasaOptions:
    """How CASA sees a layer; what it then does about it belongs to a transfer."""

    heading: ClassVar[str] = METHOD
    preset: Preset = None
    changes: Annotated[Changes, SettingFlags((CasaSettings,), without=("restore", "arbitrate"))] = field(
        default_factory=dict
    )


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport analyze style.safetensors --source wan/ --target fastwan/ -o analysis --sample 40",
)
@with_options
def analyze(
    lora: Lora,
    models: ModelOptions,
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="FOLDER", help="Where page, figures and tables go.", rich_help_panel=OUTPUT
        ),
    ],
    look: LookOptions,
    casa: CasaOptions,
    run: DeviceOptions,
    messages: MessageOptions,
    lora_part: LoraPart = None,
    overwrite: Overwrite = False,
) -> None:
    """Look at what a LoRA and a distillation do to the weights: the paper's analysis as a page, figures and tables."""
    need("matplotlib", extra="report")
    from loraport import console

    lora, source, target = (known_place(place) for place in (lora, models.source, models.target))
    refuse_unreadable([lora], [source, target])
    from loraport.analysis.inputs import AnalyzeConfig
    from loraport.analysis.run import analyze as analyze_layers
    from loraport.analysis.sweep import Grid
    from loraport.inputs.accelerator import target_places
    from loraport.inputs.recipes import casa_settings
    from loraport.reports.analysis_page import FILES, folder_of, summary, write_analysis

    config = AnalyzeConfig(
        lora, source, target, output, casa=casa_settings(casa.preset, casa.changes),
        layers=tuple(look.layers or ()), sample=look.sample, detail=look.detail, source_part=models.source_part,
        target_part=models.target_part, lora_part=lora_part, force_drift=look.force_drift, device=run.device,
        cache=run.folder,
    )  # fmt: skip
    grids = [Grid.parse(text) for text in look.sweep or ()]
    keep_analysis(Path(config.output), FILES, (lora, source, *target_places(target), config.cache), overwrite)
    folder_of(config.output)
    with messages.terminal() as terminal:
        analysis = analyze_layers(config, grids, progress=terminal)
        page, drawing = write_analysis(analysis, config.output, progress=terminal)
    if messages.json:
        console.print_facts({"output": str(page), **analysis.as_json()}, json=True)
    elif not messages.quiet:
        console.print_facts(summary(analysis, page, drawing), json=False)
