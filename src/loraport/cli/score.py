"""`score` and `calibrate`."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from loraport.cli.existing import keep_existing
from loraport.cli.options import (
    CacheDir,
    Device,
    DryRun,
    Dtype,
    FormatName,
    Json,
    NoCache,
    Output,
    Overwrite,
    Quiet,
    Seed,
    Verbose,
    cache_folder,
    refuse_idle,
)
from loraport.cli.pairs import (
    BY_DEFAULT,
    Clips,
    SampledSource,
    SampledTarget,
    Sampling,
    open_pair,
    sampled,
)
from loraport.sampling.providers import known_place

app = typer.Typer()
Adapter = Annotated[str, typer.Option("--lora", metavar="LORA", help="The adapter, as it was trained on the source.")]
Original = Annotated[str, typer.Argument(metavar="LORA", help="The adapter, as it was trained on the source.")]


@app.command(
    epilog="Example: loraport score moved.safetensors direct:1.15 none "
    "--lora toy:noir --source toy:base --target toy:one-step"
)
@sampled
def score(
    candidates: Annotated[
        list[str],
        typer.Argument(
            metavar="CANDIDATE...", help="Adapters on the target: LORA, 'LORA*0.8', direct, direct:λ, none."
        ),
    ],
    lora: Adapter,
    source: SampledSource,
    target: SampledTarget,
    clips: Clips = 32,
    sampling: Sampling = BY_DEFAULT,
    device: Device = "auto",
    seed: Seed = 0,
    cache: CacheDir = None,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Say how far adapters on the target are from the adapter's effect on the source, by sampling both models."""
    from loraport import console
    from loraport.sampling.choice.commands import ScoreRequest, run_score

    pair = open_pair(source, target, sampling, device)
    request = ScoreRequest(tuple(candidates), known_place(lora), clips, seed, cache_folder(cache, no_cache))
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run_score(pair, request, progress=terminal, dry_run=dry_run)
    console.print_scored(result.as_json(), result.table(), json=json, quiet=quiet)


@app.command(
    epilog="Example: loraport calibrate toy:retro --source toy:base --target toy:one-step -o calibrated.safetensors"
)
@sampled
def calibrate(
    context: typer.Context,
    lora: Original,
    source: SampledSource,
    target: SampledTarget,
    output: Output,
    start: Annotated[
        str | None, typer.Option("--from", metavar="LORA", help="Begin with this adapter on the target, not with LORA.")
    ] = None,
    gains: Annotated[str, typer.Option(help="type (a factor per kind of layer), layer, or none.")] = "type",
    readout: Annotated[bool, typer.Option("--readout/--no-readout", help="Correct the writing layers too.")] = True,
    rank: Annotated[str, typer.Option(help="auto (what readout adds comes on top), or source.")] = "auto",
    budget: Annotated[int | None, typer.Option(metavar="PASSES", help="Refuse to start what would take more.")] = None,
    clips: Clips = 32,
    sampling: Sampling = BY_DEFAULT,
    format: FormatName = "same",
    dtype: Dtype = "bf16",
    device: Device = "auto",
    seed: Seed = 0,
    cache: CacheDir = None,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Fit an adapter to the target by passes on random noise: gains, then readout, kept only where they surely help."""
    from loraport import console
    from loraport.inputs.accelerator import target_places
    from loraport.sampling.choice.commands import CalibrationRequest, run_calibration

    refuse_idle(context, {} if readout else {"rank": "without --readout the ranks are the adapter's own"})
    output = os.path.expanduser(output)
    models = known_place(source), *target_places(known_place(target))
    keep_existing([output], [known_place(lora), start and known_place(start), *models], overwrite or dry_run)
    pair = open_pair(source, target, sampling, device)
    request = CalibrationRequest(
        known_place(lora), output, start and known_place(start), gains, readout, rank, budget, clips, seed,
        cache_folder(cache, no_cache), format, dtype,
    )  # fmt: skip
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run_calibration(pair, request, progress=terminal, dry_run=dry_run)
    console.print_scored(result.as_json(), result.table(), json=json, quiet=quiet)
