"""`choose`: make candidates, score them by sampling, keep one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli.options import (
    FILES,
    LayerOptions,
    LoraPart,
    MessageOptions,
    ModelOptions,
    Output,
    ResultOptions,
    RunOptions,
    SettingOptions,
    page_path,
    refuse_idle,
    transfer_config,
    write_report,
)
from loraport.cli.options.existing import keep_existing
from loraport.cli.options.expansion import with_options
from loraport.cli.options.help import GroupedCommand
from loraport.cli.options.pairs import BY_DEFAULT, Adapter, Clips, SampledModels, SamplingOptions, open_pair
from loraport.cli.options.readable import refuse_unknown
from loraport.errors import LOST
from loraport.sampling.providers import known_place

if TYPE_CHECKING:
    from loraport.inputs.config import TransferConfig
    from loraport.sampling.choice.choose import Candidates
    from loraport.sampling.pair import Pair

app = typer.Typer()


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport choose casa undo:0.25 --lora toy:noir --source toy:base --target toy:one-step "
    "-o noir-chosen",
)
@with_options
def choose(
    context: typer.Context,
    lora: Adapter,
    models: SampledModels,
    output: Output,
    settings: SettingOptions,
    layers: LayerOptions,
    result: ResultOptions,
    run: RunOptions,
    messages: MessageOptions,
    candidates: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CANDIDATE...]",
            help="Methods as transfer names them (casa, undo:0.25), calibrated (an adapter fitted by sampling), or "
            "LoRAs on the target. Direct reuse always competes. [default: direct at 0.85, 1, 1.15 and 1.3, core, casa]",
            show_default=False,
            rich_help_panel=FILES,
        ),
    ] = None,
    clips: Clips = 32,
    sampling: SamplingOptions = BY_DEFAULT,
    lora_part: LoraPart = None,
) -> None:
    """Make candidates, score them by sampling, and keep one: direct reuse, unless another is surely better.

    Scores are end errors, as of loraport score. A file that is kept is written as it is, with the scores in its header.
    """
    idle = {"pair_min": "it belongs to pairing by similarity"} if layers.pairing == "name" else {}
    refuse_idle(context, idle | ({"report": "a dry run has nothing to report"} if result.dry_run else {}))
    places = ModelOptions(known_place(models.source), known_place(models.target))
    refuse_unknown(map(known_place, candidates or ()), ("none", "calibrated"))
    template = transfer_config(
        known_place(lora), os.path.expanduser(output), places, layers, result, run, lora_part=lora_part
    )
    made = candidates_of(candidates or (), template, settings, result, clips)
    if result.dry_run:
        tell_plan(made, sampling, messages)
    else:
        choose_and_tell(made, sampling, result, messages)


def candidates_of(
    named: Sequence[str], template: TransferConfig, settings: SettingOptions, result: ResultOptions, clips: int
) -> Candidates:
    """Return the candidates by their names, as `candidates_by_name` does."""
    from loraport.sampling.choice.by_config import candidates_by_name

    preset, changes = settings.preset, settings.changes
    return candidates_by_name(named, template, preset=preset, changes=changes, rank=result.rank_rule(), clips=clips)


def tell_plan(candidates: Candidates, sampling: SamplingOptions, messages: MessageOptions) -> None:
    """Say what choosing would do, and refuse what it would refuse."""
    from loraport import console
    from loraport.sampling.choice.choose import check_choice
    from loraport.transfers.dry_run import dry_run
    from loraport.transfers.passes import Pass

    pair = _pair(candidates, sampling)
    passes = check_choice(candidates, pair)
    note = f"{candidates.clips} clips would be sampled: {passes} passes, fewer where some are in the cache"
    dry = dry_run([Pass(candidates.runs, notes=(note,))])
    console.print_dry_run(dry, json=messages.json, verbose=messages.verbose)


def choose_and_tell(
    candidates: Candidates,
    sampling: SamplingOptions,
    result: ResultOptions,
    messages: MessageOptions,
    *,
    as_transfer: bool = False,
) -> None:
    """Make and judge the candidates, write the one that is kept, say so, and leave with 3 where keys were lost.

    `as_transfer` prints what `transfer --guard` does.
    """
    from loraport import console
    from loraport.sampling.choice.choose import choose_among as run
    from loraport.transfers.results import BatchResult
    from loraport.transfers.run import transfer_many

    page = None if result.report is None else page_path(result.report)
    inputs = [*input_places(candidates.runs), *candidates.files]
    keep_existing([candidates.output, page], inputs, result.overwrite)
    pair = _pair(candidates, sampling)
    with messages.terminal() as terminal:
        choice = run(candidates, pair, lambda runs: transfer_many(runs, progress=terminal), progress=terminal)
        for note in choice.notes:
            terminal.note(note)
        if choice.result is None and page is not None:
            terminal.note(f"{page} is not written: a file was kept, and the page is about a transfer")
    kept = choice.result
    batch = BatchResult((kept,), (), kept.seconds, kept.peak_rss_bytes) if kept else None
    if batch is not None and page is not None:
        write_report(batch, page, messages)
    more = choice.in_words() if as_transfer else choice.table()
    if messages.json:
        console.print_facts(choice.as_guarded_transfer() if as_transfer else choice.as_json(), json=True)
    elif batch is not None:
        console.print_transfers(batch, json=False, quiet=messages.quiet, verbose=messages.verbose, more=more)
    elif not messages.quiet:
        console.print_facts({"wrote": choice.output, **more}, json=False)
    raise typer.Exit(LOST if batch is not None and batch.lost else 0)


def _pair(candidates: Candidates, sampling: SamplingOptions) -> Pair:
    first = candidates.runs[0]
    return open_pair(first.source, first.target, sampling, first.device)


def input_places(configs: Sequence[TransferConfig]) -> list[str]:
    """Return what no output may take the place of."""
    from loraport.inputs.accelerator import target_places

    places = ((config.lora, config.source, *target_places(config.target)) for config in configs)
    return [*dict.fromkeys(place for one in places for place in one)]
