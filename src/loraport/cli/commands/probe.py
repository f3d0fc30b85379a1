"""`probe keep-dominant` and `probe over-activate`: the models of the paper's appendix B.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from loraport.cli.options import (
    FILES,
    MACHINE,
    OUTPUT,
    DeviceOptions,
    ForceDrift,
    MessageOptions,
    Overwrite,
    Source,
    SourcePart,
    TargetPart,
    refuse_idle,
)
from loraport.cli.options.existing import keep_existing
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand, GroupedCommands
from loraport.sampling.providers import known_place

if TYPE_CHECKING:
    from loraport.analysis.probes import Probe

app = typer.Typer(
    cls=GroupedCommands,
    help="Write the target with parts of its drift removed or disturbed (appendix B.2).",
    epilog="Example: loraport probe keep-dominant --source base.safetensors --target student.safetensors "
    "-o probe.safetensors",
    no_args_is_help=True,
)
PROBE = "Probe"


@dataclass(frozen=True)
class ProbedModels:
    """The two models, and where the probed one goes."""

    heading: ClassVar[str] = FILES
    source: Source
    target: Annotated[str, typer.Option(metavar="MODEL", help="The distilled model; the result has its layout.")]
    output: Annotated[
        str,
        typer.Option(
            "-o", "--output", metavar="OUT", help="A .safetensors file; a folder where the target is one.",
            rich_help_panel=OUTPUT,
        ),
    ]  # fmt: skip
    source_part: SourcePart = None
    target_part: TargetPart = None


@dataclass(frozen=True)
class ClusterOptions:
    """How directions are clustered, and in which layers."""

    heading: ClassVar[str] = "Clusters and layers"
    clusters: Annotated[
        str | None,
        typer.Option(
            "--clusters",
            metavar="CHOICE",
            help="Whose predicted rotation joins directions: drift, lora or single.",
            show_default="lora with --lora, else drift",
        ),
    ] = None
    lora: Annotated[
        str | None, typer.Option("--lora", metavar="LORA", help="Cluster by this LoRA's predicted rotation (Eq. 4).")
    ] = None
    tau: Annotated[
        float, typer.Option(metavar="NUMBER", help="Predicted rotation above which two directions join (Eq. 4).")
    ] = 1.0
    energy: Annotated[
        float, typer.Option(metavar="SHARE", help="Share of the energy that the leading directions hold (Eq. 3).")
    ] = 0.9
    layers: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Only matching layers; others stay as they are.")
    ] = None
    force_drift: ForceDrift = False

    @property
    def chosen(self) -> str:
        """Whose predicted rotation joins directions."""
        return self.clusters or ("drift" if self.lora is None else "lora")

    @property
    def idle(self) -> dict[str, str]:
        """Options that do nothing beside the others, with the reason."""
        return {"tau": "each direction is alone"} if self.clusters == "single" else {}


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport probe keep-dominant --source wan/ --target fastwan/ --q 0.5 -o partly-distilled/",
)
@with_options
def keep_dominant(
    context: typer.Context,
    models: ProbedModels,
    clusters: ClusterOptions,
    run: DeviceOptions,
    messages: MessageOptions,
    q: Annotated[
        float,
        typer.Option(
            metavar="QUANTILE", help="Clusters at or above this quantile are dominant.", rich_help_panel=PROBE
        ),
    ] = 0.5,
    directions: Annotated[
        str,
        typer.Option(
            metavar="WHICH",
            help="leading: the paper's k directions, nothing beyond stays. all: of all n; q 0 is the target.",
            rich_help_panel=PROBE,
        ),
    ] = "leading",
    overwrite: Overwrite = False,
) -> None:
    """Keep only the drift that dominates: the partly distilled model of Eq. 17-22."""
    from loraport.analysis.probes import KeepDominant

    idle = {"energy": "all directions are looked at"} if directions == "all" else {}
    refuse_idle(context, idle | clusters.idle)
    recipe = KeepDominant(q, directions, clusters.chosen, clusters.tau, clusters.energy)
    _run(recipe, models, clusters, run, messages, overwrite)


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport probe over-activate --source wan/ --target fastwan/ --top 0.05 -o disturbed/",
)
@with_options
def over_activate(
    context: typer.Context,
    models: ProbedModels,
    clusters: ClusterOptions,
    run: DeviceOptions,
    messages: MessageOptions,
    top: Annotated[
        float,
        typer.Option(
            metavar="SHARE", help="Share of the blocks that are disturbed, the densest.", rich_help_panel=PROBE
        ),
    ] = 0.05,
    mean: Annotated[float, typer.Option(metavar="NUMBER", help="Mean of the noise.", rich_help_panel=PROBE)] = 2.0,
    var: Annotated[float, typer.Option(metavar="NUMBER", help="Variance of the noise.", rich_help_panel=PROBE)] = 5.0,
    noise: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="printed: added as it is, as the paper prints it. scaled: in units of the block's RMS entry. "
            "factors: single entries are multiplied, without clusters.",
            rich_help_panel=PROBE,
        ),
    ] = "printed",
    seed: Annotated[int, typer.Option(min=0, metavar="INT", help="Seed of the noise.", rich_help_panel=MACHINE)] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Add noise to the blocks in which the drift routes most: the disturbed model of appendix B.2.2."""
    from loraport.analysis.probes import OverActivate

    alone = dict.fromkeys(("clusters", "lora", "tau", "energy"), "factors multiply single entries, without clusters")
    refuse_idle(context, alone if noise == "factors" else clusters.idle)
    recipe = OverActivate(top, mean, var, noise, clusters.chosen, clusters.tau, clusters.energy)
    _run(recipe, models, clusters, run, messages, overwrite, seed)


def _run(
    recipe: Probe,
    models: ProbedModels,
    clusters: ClusterOptions,
    run: DeviceOptions,
    messages: MessageOptions,
    overwrite: bool,
    seed: int = 0,
) -> None:
    from loraport import console
    from loraport.analysis.probe_model import ProbeConfig, probe

    source, target = known_place(models.source), known_place(models.target)
    lora = clusters.lora and known_place(clusters.lora)
    keep_existing([models.output], [source, target, lora], overwrite, holding="*.safetensors")
    config = ProbeConfig(
        source, target, models.output, recipe, lora=lora, layers=tuple(clusters.layers or ()),
        seed=seed, source_part=models.source_part, target_part=models.target_part, force_drift=clusters.force_drift,
        device=run.device, cache=run.folder,
    )  # fmt: skip
    with messages.terminal() as terminal:
        result = probe(config, progress=terminal)
    if messages.json:
        console.print_facts(result.as_json(), json=True)
    elif not messages.quiet:
        console.print_facts(console.probe_words(result), json=False)
