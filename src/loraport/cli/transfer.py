"""`transfer`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import typer

from loraport.cli.options import (
    Arbitrate,
    As,
    CacheDir,
    CrossTerms,
    Device,
    Dora,
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
    TransferDiffs,
    Verbose,
    cache_folder,
    page_path,
)

if TYPE_CHECKING:
    from loraport.runs.config import TransferConfig

app = typer.Typer()

_OF_METHODS = (
    *("tau", "q_dom", "q_act", "energy", "restore", "arbitrate"),
    *("subspace", "null_space", "cross_terms", "phi_min"),
)
"""The options that are settings of some method."""


@app.command(
    epilog="Example: loraport transfer style.safetensors --source wan2.1-t2v-1.3b --target fastwan2.1-t2v-1.3b "
    "-o style-fastwan.safetensors"
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
    dora: Dora = "effective",
    transfer_diffs: TransferDiffs = False,
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
    given = dict(locals())
    from loraport import console
    from loraport.runs.execute import prepare
    from loraport.runs.execute import transfer as run

    config = _config(given)
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


def _config(given: dict[str, Any]) -> TransferConfig:
    """The settings that the command's options make, by their names."""
    from loraport.runs.config import TransferConfig, chosen_format, chosen_output, chosen_rank, method_settings

    plain = ("lora", "source", "target", "output", "source_part", "target_part", "method", "dtype", "force_drift")
    settings: dict[str, Any] = {name: given[name] for name in (*plain, "dora", "transfer_diffs", "device", "seed")}
    settings |= {name: tuple(given[name] or ()) for name in ("include", "exclude")}
    return TransferConfig(
        **settings,
        rank=chosen_rank(given["rank"], given["preset"]),
        format=chosen_format(given["format"]),
        as_diff=chosen_output(given["as_"]) == "diff",
        cache=cache_folder(given["cache"], given["no_cache"]),
        **method_settings(given["method"], given["preset"], {name: given[name] for name in _OF_METHODS}),
    )
