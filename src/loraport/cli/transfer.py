"""`transfer`."""

from __future__ import annotations

import typer

from loraport.cli.options import (
    Arbitrate,
    As,
    CacheDir,
    CrossTerms,
    Device,
    DryRun,
    Dtype,
    Energy,
    Exclude,
    ForceDrift,
    FormatName,
    Include,
    Json,
    Lora,
    Method,
    NoCache,
    NullSpace,
    Output,
    PhiMin,
    Preset,
    QAct,
    QDom,
    Quiet,
    Rank,
    Report,
    Restore,
    Seed,
    Source,
    SourcePart,
    Subspace,
    Target,
    TargetPart,
    Tau,
    Verbose,
    cache_folder,
    page_path,
)

app = typer.Typer()


@app.command(
    epilog="Example: loraport transfer style.safetensors --source Wan-AI/Wan2.1-T2V-1.3B-Diffusers "
    "--target FastVideo/FastWan2.1-T2V-1.3B-Diffusers -o style-fastwan.safetensors"
)
def transfer(
    lora: Lora,
    source: Source,
    target: Target,
    output: Output,
    source_part: SourcePart = None,
    target_part: TargetPart = None,
    method: Method = "casa",
    preset: Preset = "paper",
    tau: Tau = None,
    q_dom: QDom = None,
    q_act: QAct = None,
    energy: Energy = None,
    restore: Restore = None,
    arbitrate: Arbitrate = None,
    subspace: Subspace = None,
    null_space: NullSpace = None,
    cross_terms: CrossTerms = None,
    phi_min: PhiMin = None,
    rank: Rank = None,
    format: FormatName = "same",
    as_: As = "lora",
    dtype: Dtype = "bf16",
    include: Include = None,
    exclude: Exclude = None,
    force_drift: ForceDrift = False,
    device: Device = "auto",
    seed: Seed = 0,
    cache: CacheDir = None,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    report: Report = None,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Transfer a LoRA from the model that it was trained on to a distilled variant of it."""
    from loraport import console
    from loraport.runs.config import TransferConfig, chosen_format, chosen_output, chosen_rank, method_settings
    from loraport.runs.execute import prepare
    from loraport.runs.execute import transfer as run

    flags = {
        "tau": tau, "q_dom": q_dom, "q_act": q_act, "energy": energy, "restore": restore, "arbitrate": arbitrate,
        "subspace": subspace, "null_space": null_space, "cross_terms": cross_terms, "phi_min": phi_min,
    }  # fmt: skip
    config = TransferConfig(
        lora=lora, source=source, target=target, output=output, source_part=source_part, target_part=target_part,
        method=method,
        rank=chosen_rank(rank, preset), format=chosen_format(format), as_diff=chosen_output(as_) == "diff", dtype=dtype,
        include=tuple(include or ()), exclude=tuple(exclude or ()), force_drift=force_drift, device=device, seed=seed,
        cache=cache_folder(cache, no_cache), **method_settings(method, preset, flags),
    )  # fmt: skip
    page = None if report is None else page_path(report)
    if dry_run:
        console.print_plan(prepare(config).plan, json=json)
        return
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        result = run(config, progress=terminal)
    if page is not None:
        from loraport.reports.transfer_page import write_transfer_page

        write_transfer_page(result, page)
    console.print_transfer(result, json=json, quiet=quiet)
    raise typer.Exit(3 if result.lost else 0)
