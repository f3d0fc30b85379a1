"""`probe keep-dominant` and `probe over-activate`: the models of the paper's appendix B.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli.options import (
    CacheDir,
    Device,
    Json,
    NoCache,
    Quiet,
    Source,
    SourcePart,
    TargetPart,
    Verbose,
    cache_folder,
)

if TYPE_CHECKING:
    from loraport.runs.probe import ProbeConfig

app = typer.Typer(
    help="Write the target with parts of its drift taken or disturbed (appendix B.2).", no_args_is_help=True
)

Target = Annotated[str, typer.Option(metavar="MODEL", help="The distilled model; the result has its layout.")]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="OUT", help="A .safetensors file; a folder where the target is one.")
]
Layers = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only layers that fit; others stay.")]


@app.command(
    epilog="Example: loraport probe keep-dominant --source wan/ --target fastwan/ --q 0.5 -o partly-distilled/"
)
def keep_dominant(
    source: Source,
    target: Target,
    output: Output,
    q: Annotated[float, typer.Option(help="Quantile from which on a cluster dominates; 0 gives the target.")] = 0.5,
    lora: Annotated[str | None, typer.Option(help="Cluster by this LoRA; else each direction alone.")] = None,
    tau: Annotated[float, typer.Option(help="Predicted rotation that joins two directions (Eq. 4).")] = 1.0,
    layers: Layers = None,
    source_part: SourcePart = None,
    target_part: TargetPart = None,
    device: Device = "auto",
    cache: CacheDir = None,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Keep only the drift that dominates: the partly distilled model of Eq. 17-22."""
    from loraport.methods.probes import KeepDominant
    from loraport.runs.probe import ProbeConfig

    config = ProbeConfig(
        source, target, output, KeepDominant(q, tau), lora=lora, layers=tuple(layers or ()), source_part=source_part,
        target_part=target_part, device=device, cache=cache_folder(cache, no_cache),
    )  # fmt: skip
    _run(config, json, quiet, verbose)


@app.command(epilog="Example: loraport probe over-activate --source wan/ --target fastwan/ --top 0.05 -o disturbed/")
def over_activate(
    source: Source,
    target: Target,
    output: Output,
    top: Annotated[float, typer.Option(help="Share of the routing entries that are disturbed, the strongest.")] = 0.05,
    mean: Annotated[float, typer.Option(help="Mean of the random factors.")] = 2.0,
    var: Annotated[float, typer.Option(help="Variance of the random factors.")] = 5.0,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random factors.")] = 0,
    layers: Layers = None,
    source_part: SourcePart = None,
    target_part: TargetPart = None,
    device: Device = "auto",
    cache: CacheDir = None,
    no_cache: NoCache = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Multiply the strongest routing entries of the drift by random factors."""
    from loraport.methods.probes import OverActivate
    from loraport.runs.probe import ProbeConfig

    config = ProbeConfig(
        source, target, output, OverActivate(top, mean, var), layers=tuple(layers or ()), seed=seed,
        source_part=source_part, target_part=target_part, device=device, cache=cache_folder(cache, no_cache),
    )  # fmt: skip
    _run(config, json, quiet, verbose)


def _run(config: ProbeConfig, json: bool, quiet: bool, verbose: bool) -> None:
    from loraport import console
    from loraport.runs.probe import probe

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = probe(config, watch=terminal.share)
    if json:
        console.print_facts(result.as_json(), json=True)
    elif not quiet:
        console.print_facts(result.words(), json=False)
