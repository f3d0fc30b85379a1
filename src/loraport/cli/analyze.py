"""`analyze`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from loraport.cli.existing import keep_analysis
from loraport.cli.options import (
    CacheDir,
    Device,
    Energy,
    Eps,
    EpsContext,
    ForceDrift,
    Json,
    Lora,
    LoraPart,
    NoCache,
    Overwrite,
    Preset,
    QAct,
    QDom,
    Quiet,
    Source,
    SourcePart,
    Target,
    TargetPart,
    Tau,
    Verbose,
    cache_folder,
    need,
)

app = typer.Typer()


@app.command(
    epilog="Example: loraport analyze style.safetensors --source wan/ --target fastwan/ -o analysis --sample 40"
)
def analyze(
    lora: Lora,
    source: Source,
    target: Target,
    output: Annotated[str, typer.Option("-o", "--output", metavar="FOLDER", help="Where page, figures and tables go.")],
    preset: Preset = None,
    tau: Tau = None,
    eps: Eps = None,
    eps_context: EpsContext = None,
    q_dom: QDom = None,
    q_act: QAct = None,
    energy: Energy = None,
    layers: Annotated[list[str] | None, typer.Option(metavar="PATTERN", help="Only layers that fit.")] = None,
    sample: Annotated[int | None, typer.Option(help="At most so many, evenly over kinds and depths.")] = None,
    detail: Annotated[int, typer.Option(help="How many of them are drawn in detail.")] = 3,
    sweep: Annotated[
        list[str] | None,
        typer.Option(metavar="GRID", help="CASA over settings: q_dom=0.3:0.7:0.05, or tau=0.5/1/2,q_act=0.8/0.9."),
    ] = None,
    source_part: SourcePart = None,
    target_part: TargetPart = None,
    lora_part: LoraPart = None,
    force_drift: ForceDrift = False,
    device: Device = "auto",
    cache: CacheDir = None,
    no_cache: NoCache = False,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Look at what a LoRA and a distillation do to the weights: the paper's analysis as a page, figures and tables."""
    need("matplotlib", extra="report")
    from loraport import console
    from loraport.analysis.inputs import AnalyzeConfig
    from loraport.analysis.run import analyze as run
    from loraport.analysis.sweep import Grid
    from loraport.inputs.accelerator import target_places
    from loraport.inputs.recipes import casa_settings
    from loraport.reports.analysis_page import FILES, folder_of, summary, write_analysis

    flags = {
        "tau": tau, "eps": eps, "eps_context": eps_context, "q_dom": q_dom, "q_act": q_act, "energy": energy,
    }  # fmt: skip
    changes = {name: value for name, value in flags.items() if value is not None}
    config = AnalyzeConfig(
        lora, source, target, output, casa=casa_settings(preset, changes),
        layers=tuple(layers or ()), sample=sample, detail=detail,
        source_part=source_part, target_part=target_part, lora_part=lora_part, force_drift=force_drift, device=device,
        cache=cache_folder(cache, no_cache),
    )  # fmt: skip
    grids = [Grid.parse(text) for text in sweep or ()]
    keep_analysis(Path(config.output), FILES, (lora, source, *target_places(target), config.cache), overwrite)
    folder_of(config.output)
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        analysis = run(config, grids, progress=terminal)
        page, drawing = write_analysis(analysis, config.output, progress=terminal)
    if json:
        console.print_facts({"output": str(page), **analysis.as_json()}, json=True)
    elif not quiet:
        console.print_facts(summary(analysis, page, drawing), json=False)
