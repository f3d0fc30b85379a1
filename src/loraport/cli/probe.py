"""`probe keep-dominant` and `probe over-activate`: the models of the paper's appendix B.2."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli.existing import keep_existing
from loraport.cli.options import (
    CacheDir,
    Device,
    ForceDrift,
    Json,
    NoCache,
    Overwrite,
    Quiet,
    Source,
    SourcePart,
    TargetPart,
    Verbose,
    cache_folder,
    refuse_idle,
)

if TYPE_CHECKING:
    from loraport.analysis.probe_model import ProbeConfig

app = typer.Typer(
    help="Write the target with parts of its drift removed or disturbed (appendix B.2).", no_args_is_help=True
)

Target = Annotated[str, typer.Option(metavar="MODEL", help="The distilled model; the result has its layout.")]
Output = Annotated[
    str, typer.Option("-o", "--output", metavar="OUT", help="A .safetensors file; a folder where the target is one.")
]
Layers = Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only layers that fit; others stay.")]
ClusterLora = Annotated[
    str | None, typer.Option("--lora", metavar="LORA", help="Cluster by this LoRA's predicted rotation (Eq. 4).")
]
ClusterChoice = Annotated[
    str | None,
    typer.Option(
        "--clusters",
        help="Whose predicted rotation joins directions: drift, lora or single; lora with --lora, else drift.",
    ),
]
Tau = Annotated[float, typer.Option(help="Predicted rotation that joins two directions (Eq. 4).")]
Energy = Annotated[float, typer.Option(help="Energy share of the leading directions (Eq. 3).")]


@app.command(
    epilog="Example: loraport probe keep-dominant --source wan/ --target fastwan/ --q 0.5 -o partly-distilled/"
)
def keep_dominant(
    context: typer.Context,
    source: Source,
    target: Target,
    output: Output,
    q: Annotated[float, typer.Option(help="Quantile over clusters from which on one dominates.")] = 0.5,
    directions: Annotated[
        str,
        typer.Option(help="leading: the paper's k directions, nothing beyond stays. all: of all n; q 0 is the target."),
    ] = "leading",
    clusters: ClusterChoice = None,
    lora: ClusterLora = None,
    tau: Tau = 1.0,
    energy: Energy = 0.9,
    layers: Layers = None,
    source_part: SourcePart = None,
    target_part: TargetPart = None,
    force_drift: ForceDrift = False,
    device: Device = "auto",
    cache: CacheDir = None,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Keep only the drift that dominates: the partly distilled model of Eq. 17-22."""
    from loraport.analysis.probe_model import ProbeConfig
    from loraport.analysis.probes import KeepDominant

    idle = {"energy": "all directions are looked at"} if directions == "all" else {}
    refuse_idle(context, idle | _idle(clusters))
    keep_existing([output], [source, target, lora], overwrite, holding="*.safetensors")
    recipe = KeepDominant(q, directions, _clusters(clusters, lora), tau, energy)
    config = ProbeConfig(
        source, target, output, recipe, lora=lora, layers=tuple(layers or ()), source_part=source_part,
        target_part=target_part, force_drift=force_drift, device=device, cache=cache_folder(cache, no_cache),
    )  # fmt: skip
    _run(config, json, quiet, verbose)


@app.command(epilog="Example: loraport probe over-activate --source wan/ --target fastwan/ --top 0.05 -o disturbed/")
def over_activate(
    context: typer.Context,
    source: Source,
    target: Target,
    output: Output,
    top: Annotated[float, typer.Option(help="Share of the blocks that are disturbed, the densest.")] = 0.05,
    mean: Annotated[float, typer.Option(help="Mean of the noise.")] = 2.0,
    var: Annotated[float, typer.Option(help="Variance of the noise.")] = 5.0,
    noise: Annotated[
        str,
        typer.Option(
            help="printed: added as it is, as the paper prints it. scaled: in units of the block's RMS entry. "
            "factors: single entries are multiplied, without clusters."
        ),
    ] = "printed",
    seed: Annotated[int, typer.Option(min=0, help="Seed of the noise.")] = 0,
    clusters: ClusterChoice = None,
    lora: ClusterLora = None,
    tau: Tau = 1.0,
    energy: Energy = 0.9,
    layers: Layers = None,
    source_part: SourcePart = None,
    target_part: TargetPart = None,
    force_drift: ForceDrift = False,
    device: Device = "auto",
    cache: CacheDir = None,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Add noise to the blocks in which the drift routes most: the disturbed model of appendix B.2.2."""
    from loraport.analysis.probe_model import ProbeConfig
    from loraport.analysis.probes import OverActivate

    alone = dict.fromkeys(("clusters", "lora", "tau", "energy"), "factors multiply single entries, without clusters")
    refuse_idle(context, alone if noise == "factors" else _idle(clusters))
    keep_existing([output], [source, target, lora], overwrite, holding="*.safetensors")
    recipe = OverActivate(top, mean, var, noise, _clusters(clusters, lora), tau, energy)
    config = ProbeConfig(
        source, target, output, recipe, lora=lora, layers=tuple(layers or ()), seed=seed, source_part=source_part,
        target_part=target_part, force_drift=force_drift, device=device, cache=cache_folder(cache, no_cache),
    )  # fmt: skip
    _run(config, json, quiet, verbose)


def _idle(clusters: str | None) -> dict[str, str]:
    return {"tau": "each direction is alone"} if clusters == "single" else {}


def _clusters(named: str | None, lora: str | None) -> str:
    return named or ("drift" if lora is None else "lora")


def _run(config: ProbeConfig, json: bool, quiet: bool, verbose: bool) -> None:
    from loraport import console
    from loraport.analysis.probe_model import probe

    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = probe(config, progress=terminal)
    if json:
        console.print_facts(result.as_json(), json=True)
    elif not quiet:
        console.print_facts(console.probe_words(result), json=False)
