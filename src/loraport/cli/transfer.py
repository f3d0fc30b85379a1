"""`transfer`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from loraport.cli.existing import earlier_transfers, keep_existing
from loraport.cli.guard import AUTO, GuardFlags, guarded_options, plan_guarded, run_guarded, write_report
from loraport.cli.options import (
    Arbitrate,
    As,
    CacheDir,
    Calibrated,
    CrossTerms,
    Device,
    Dora,
    DryRun,
    Dtype,
    Energy,
    Eps,
    EpsContext,
    Exclude,
    Experts,
    ForceDrift,
    FormatName,
    Guard,
    GuardClips,
    Include,
    Json,
    LoraPart,
    Loras,
    Methods,
    NoCache,
    NullSpace,
    OutputOrFolder,
    Overwrite,
    Pairing,
    PairMin,
    PhiMin,
    Preset,
    QAct,
    QDom,
    Quiet,
    Rank,
    Report,
    Restore,
    SamplingFlags,
    Seed,
    Source,
    SourcePart,
    Split,
    Subspace,
    Target,
    TargetPart,
    Tau,
    TransferDiffs,
    Verbose,
    cache_folder,
    page_path,
    refuse_idle,
)
from loraport.sampling.providers import known_place

if TYPE_CHECKING:
    from loraport.files.models.hub import Download
    from loraport.inputs.config import TransferConfig
    from loraport.transfers.passes import Pass

app = typer.Typer()

_OF_METHODS = (
    *("tau", "eps", "eps_context", "q_dom", "q_act", "energy", "restore", "arbitrate"),
    *("subspace", "null_space", "cross_terms", "phi_min"),
)
"""The options that are settings of some method."""
_PLAIN = (
    *("source", "target", "source_part", "target_part", "lora_part", "accelerator_part", "dtype", "force_drift"),
    *("dora", "transfer_diffs", "split", "pairing", "pair_min", "device", "seed"),
)
"""The options that go into the configuration as they are."""


@app.command(
    epilog="Example: loraport transfer style.safetensors --source wan2.1-t2v-1.3b --target fastwan2.1-t2v-1.3b "
    "-o style-fastwan.safetensors"
)
def transfer(
    context: typer.Context,
    loras: Loras,
    source: Source,
    target: Target,
    output: OutputOrFolder,
    source_part: SourcePart = None,
    target_part: TargetPart = None,
    lora_part: LoraPart = None,
    method: Methods = "casa",
    preset: Preset = None,
    tau: Tau = None,
    eps: Eps = None,
    eps_context: EpsContext = None,
    q_dom: QDom = None,
    q_act: QAct = None,
    energy: Energy = None,
    restore: Restore = None,
    arbitrate: Arbitrate = None,
    subspace: Subspace = None,
    null_space: NullSpace = None,
    cross_terms: CrossTerms = None,
    phi_min: PhiMin = None,
    split: Split = False,
    experts: Experts = False,
    rank: Rank = None,
    format: FormatName = "same",
    as_: As = "lora",
    dora: Dora = "effective",
    transfer_diffs: TransferDiffs = False,
    dtype: Dtype = "bf16",
    include: Include = None,
    exclude: Exclude = None,
    force_drift: ForceDrift = False,
    pairing: Pairing = "auto",
    pair_min: PairMin = 0.8,
    device: Device = "auto",
    seed: Seed = 0,
    cache: CacheDir = None,
    no_cache: NoCache = False,
    dry_run: DryRun = False,
    report: Report = None,
    guard: Guard = False,
    guard_clips: GuardClips = 32,
    calibrated: Calibrated = False,
    sampling: SamplingFlags = None,
    overwrite: Overwrite = False,
    json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = False,
) -> None:
    """Transfer LoRAs from the model that they were trained on to a distilled variant of it.

    Several LoRAs, or several methods, go through the layers together, and the weights are read once.
    """
    given = dict(locals()) | _places(loras, source, target, output)
    refuse_idle(context, _idle(given))
    page = None if report is None else page_path(report)
    if guard or method == AUTO:
        _guard(given, page)
        return
    _run(_passes(given), page, given)


def _guard(given: Mapping[str, Any], page: Path | None) -> None:
    """Run the guard, or say what it would do, and leave with what to tell the shell."""
    asked = GuardFlags(given["output"], given["guard_clips"], given["calibrated"], tuple(given["sampling"] or ()))
    tried = _configs(guarded_options(dict(given)))
    if given["dry_run"]:
        plan_guarded(tried, asked, json=given["json"])
        return
    keep_existing([given["output"], page], _inputs(given), given["overwrite"])
    raise typer.Exit(
        run_guarded(tried, asked, page, json=given["json"], quiet=given["quiet"], verbose=given["verbose"])
    )


def _idle(given: Mapping[str, Any]) -> dict[str, str]:
    """Options that do nothing beside the others, with the reason."""
    from loraport.inputs.accelerator import SOURCE, split_target

    found: dict[str, str] = {}
    if not given["guard"] and given["method"] != AUTO:
        found |= dict.fromkeys(("guard_clips", "calibrated", "sampling"), "it belongs to --guard and --method auto")
    if given["pairing"] == "name":
        found["pair_min"] = "it belongs to pairing by similarity"
    if given["dry_run"]:
        found["report"] = "a dry run has nothing to report"
    if given["as_"] == "diff":
        if given["rank"] not in ("full", "auto"):
            found["rank"] = "dense differences have no rank"
        if given["format"] not in ("same", "comfy"):
            found["format"] = "dense differences are written for ComfyUI"
    if (pair := split_target(given["target"])) and pair[0] == SOURCE:
        found["target_part"] = "the target's model is the source, of which --source-part is taken"
    return found


def _places(loras: list[str], source: str, target: str, output: str) -> dict[str, Any]:
    """Inputs, with those of the embedded family by their paths, and output."""
    return {
        "loras": [known_place(lora) for lora in loras],
        "source": known_place(source),
        "target": known_place(target),
        "output": os.path.expanduser(output),
        "accelerator_part": None,
    }


def _inputs(given: Mapping[str, Any]) -> list[str]:
    """What no output may take the place of."""
    from loraport.inputs.accelerator import target_places

    return [*given["loras"], given["source"], *target_places(given["target"])]


def _run(passes: Sequence[Pass], page: Path | None, given: Mapping[str, Any]) -> None:
    """Run them, or say what would be done, and leave with what to tell the shell."""
    from loraport import console
    from loraport.transfers.passes import prepare_passes, transfer_passes

    dry_run, json, quiet, verbose = (given[name] for name in ("dry_run", "json", "quiet", "verbose"))
    places = [one.output for some in passes for one in some.configs]
    again = earlier_transfers(places, given["overwrite"] or dry_run)
    others = [page, *(place for place in places if Path(place) not in again)]
    keep_existing(others, _inputs(given), given["overwrite"] or dry_run)
    if dry_run and (missing := _downloads(passes)):
        console.print_downloads(missing, json=json)
        return
    if dry_run:
        plans = {ready.config.output: ready.plan for runs in prepare_passes(passes) for ready in runs}
        console.print_plans(plans, json=json)
        return
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        for place in again:
            terminal.note(f"{place}, an earlier transfer, is replaced")
        batch = transfer_passes(passes, progress=terminal)
    if page is not None:
        write_report(batch, page, quiet=quiet)
    console.print_transfers(batch, json=json, quiet=quiet, verbose=verbose)
    raise typer.Exit(3 if batch.lost else 0)


def _downloads(passes: Sequence[Pass]) -> tuple[Download, ...]:
    """What of the models would have to be fetched before a plan can be made."""
    from loraport.files.models.presets import downloads
    from loraport.inputs.accelerator import SOURCE, split_target

    configs = [config for one in passes for config in one.configs]
    targets = [split_target(config.target) for config in configs]
    models = [pair[0] if pair else config.target for pair, config in zip(targets, configs, strict=True)]
    return downloads(model for model in (*(config.source for config in configs), *models) if model != SOURCE)


def _passes(given: dict[str, Any]) -> tuple[Pass, ...]:
    """The runs of the command; of either expert, with its name in their outputs."""
    from loraport.inputs.experts import experts
    from loraport.transfers.passes import Pass

    if not given["experts"]:
        return (Pass(_configs(given)),)
    found = []
    for expert in experts(given["loras"], given["source"], given["target"]):
        own = {**given, "loras": [expert.lora], "source": expert.source, "target": expert.target}
        own |= {"lora_part": expert.lora_part or given["lora_part"], "accelerator_part": expert.accelerator_part}
        configs = tuple(replace(config, output=expert.named(config.output)) for config in _configs(own))
        found.append(Pass(configs, expert.title, expert.notes))
    return tuple(found)


def _configs(given: dict[str, Any]) -> tuple[TransferConfig, ...]:
    """The runs that the command's options make, by their names."""
    from loraport.inputs.batch import method_list, one_or_many
    from loraport.inputs.config import RankRule, TransferConfig, chosen_format, chosen_output
    from loraport.inputs.recipes import chosen_recipes

    changes = {name: given[name] for name in _OF_METHODS if given[name] is not None}
    recipes = chosen_recipes(method_list(given["method"]), given["preset"], changes)
    template = TransferConfig(
        given["loras"][0], output=given["output"], **{name: given[name] for name in _PLAIN if name != "split"},
        include=tuple(given["include"] or ()), exclude=tuple(given["exclude"] or ()),
        format=chosen_format(given["format"]),
        as_diff=chosen_output(given["as_"]) == "diff", cache=cache_folder(given["cache"], given["no_cache"]),
    )  # fmt: skip
    rank = None if given["rank"] is None else RankRule.parse(given["rank"])
    return one_or_many(template, given["loras"], recipes, rank=rank, split=given["split"])
