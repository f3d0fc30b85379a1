"""`score` and `calibrate`: judge adapters by sampling, and fit one to its target."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated, ClassVar

import typer

from loraport.cli.options import (
    FILES,
    DryRun,
    Dtype,
    FormatName,
    LoraPart,
    MessageOptions,
    Output,
    Overwrite,
    RunOptions,
    refuse_idle,
)
from loraport.cli.options.existing import keep_existing
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.cli.options.pairs import BY_DEFAULT, Adapter, Clips, SampledModels, SamplingOptions, open_pair
from loraport.cli.options.readable import refuse_unknown
from loraport.sampling.providers import known_place

app = typer.Typer()


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport score moved.safetensors direct:1.15 none "
    "--lora toy:noir --source toy:base --target toy:one-step",
)
@with_options
def score(
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CANDIDATE...",
            help="Adapters on the target: LORA, 'LORA*0.8', direct, direct:λ, none.",
            rich_help_panel=FILES,
        ),
    ],
    lora: Adapter,
    models: SampledModels,
    run: RunOptions,
    messages: MessageOptions,
    clips: Clips = 32,
    sampling: SamplingOptions = BY_DEFAULT,
    dry_run: DryRun = False,
    lora_part: LoraPart = None,
) -> None:
    """Say how far adapters on the target are from the adapter's effect on the source, by sampling both models."""
    refuse_unknown(map(known_place, candidates), ("none",))
    from loraport import console
    from loraport.sampling.choice.commands import run_score

    pair = open_pair(models.source, models.target, sampling, run.device)
    with messages.terminal() as terminal:
        result = run_score(
            pair, known_place(lora), candidates, clips=clips, seed=run.seed, cache=run.folder, progress=terminal,
            lora_part=lora_part, dry_run=dry_run,
        )  # fmt: skip
    console.print_scored(result.as_json(), result.table(), json=messages.json, quiet=messages.quiet)


@dataclass(frozen=True)
class FittingOptions:
    """How an adapter is fitted."""

    heading: ClassVar[str] = "Fitting"
    start: Annotated[
        str | None,
        typer.Option("--from", metavar="LORA", help="Start from this adapter on the target instead of LORA."),
    ] = None
    gains: Annotated[str, typer.Option(metavar="GROUPS", help="type (a factor per kind of layer), layer, or none.")] = (
        "type"
    )
    readout: Annotated[
        bool, typer.Option("--readout/--no-readout", help="Also correct the layers that write to the residual stream.")
    ] = True
    rank: Annotated[str, typer.Option(metavar="RANK", help="auto (what readout adds comes on top), or source.")] = (
        "auto"
    )
    budget: Annotated[
        int | None, typer.Option(metavar="PASSES", help="Refuse to start if more passes would be needed.")
    ] = None


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport calibrate toy:retro --source toy:base --target toy:one-step -o calibrated.safetensors",
)
@with_options
def calibrate(
    context: typer.Context,
    lora: Annotated[
        str,
        typer.Argument(metavar="LORA", help="The adapter, as it was trained on the source.", rich_help_panel=FILES),
    ],
    models: SampledModels,
    output: Output,
    run: RunOptions,
    fitting: FittingOptions,
    messages: MessageOptions,
    clips: Clips = 32,
    sampling: SamplingOptions = BY_DEFAULT,
    format: FormatName = "same",
    dtype: Dtype = "bf16",
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    lora_part: LoraPart = None,
) -> None:
    """Fit an adapter to the target by passes on random noise: gains, then readout, kept only where they surely help."""
    from loraport import console
    from loraport.inputs.accelerator import target_places
    from loraport.sampling.choice.commands import CalibrationRequest, run_calibration

    refuse_idle(context, {} if fitting.readout else {"rank": "without --readout the ranks are the adapter's own"})
    output, start = os.path.expanduser(output), fitting.start and known_place(fitting.start)
    places = known_place(models.source), *target_places(known_place(models.target))
    keep_existing([output], [known_place(lora), start, *places], overwrite or dry_run)
    pair = open_pair(models.source, models.target, sampling, run.device)
    request = CalibrationRequest(
        known_place(lora), output, start, fitting.gains, fitting.readout, fitting.rank, fitting.budget, clips, run.seed,
        run.folder, format, dtype, lora_part,
    )  # fmt: skip
    with messages.terminal() as terminal:
        result = run_calibration(pair, request, progress=terminal, dry_run=dry_run)
    console.print_scored(result.as_json(), result.table(), json=messages.json, quiet=messages.quiet)
