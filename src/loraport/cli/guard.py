"""`transfer --guard` and `--method auto`: the transfer's own function, and a judgement on what it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

from loraport.cli.pairs import Sampling, open_pair
from loraport.errors import OutputError, SettingsError, unknown_name

if TYPE_CHECKING:
    from loraport.inputs.config import TransferConfig
    from loraport.transfers.results import BatchResult

AUTO = "auto"


@dataclass(frozen=True)
class GuardFlags:
    """What the guard was asked for, and where the result goes."""

    output: str
    clips: int
    calibrated: bool
    sampling: tuple[str, ...]


def parse_sampling(flags: Sequence[str]) -> Sampling:
    """The sampling behind `--sampling KEY=VALUE`s. Raises SettingsError for an unknown key or a value that is none."""
    kinds = {
        name.replace("_", "-"): next(kind for kind in (*get_args(hint), hint) if kind is not type(None))
        for name, hint in get_type_hints(Sampling).items()
    }
    values: dict[str, Any] = {}
    for flag in flags:
        key, _, text = flag.partition("=")
        if key not in kinds:
            raise unknown_name("sampling key", key, kinds)
        kind = kinds[key]
        try:
            values[key.replace("-", "_")] = text in ("yes", "true", "1") if kind is bool else kind(text)
        except ValueError as error:
            raise SettingsError(f"--sampling {' '.join(flags)}: {error}; write target-steps=3 for one") from error
    return Sampling(**values)


def guarded_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The command's options with direct reuse among the methods, and a folder beside the output for all of them.

    Raises SettingsError for several LoRAs and for --split, where there is no one result to judge.
    """
    if len(given["loras"]) > 1 or given["split"] or given["experts"]:
        raise SettingsError(
            "the guard judges one LoRA in one piece on one model; run it for each, and leave out --split and --experts"
        )
    from loraport.sampling.choice.guard import AUTO_METHODS

    named = AUTO_METHODS if given["method"] == AUTO else given["method"].split(",")
    methods = dict.fromkeys(("direct", *(name.strip() for name in named)))
    if len(methods) == 1:
        raise SettingsError("the guard compares a method with direct reuse; name another one, or auto")
    return {**given, "method": ",".join(methods), "output": f"{given['output']}.candidates"}


def plan_guarded(configs: Sequence[TransferConfig], flags: GuardFlags, *, json: bool) -> None:
    """Say what a guarded transfer would do, and refuse what it would refuse."""
    from loraport import console
    from loraport.sampling.choice.guarded_transfer import check_guarded
    from loraport.transfers.passes import Pass, prepare_passes

    pair = open_pair(configs[0].source, configs[0].target, parse_sampling(flags.sampling), configs[0].device)
    passes = check_guarded(configs, flags.output, pair, clips=flags.clips, calibrated=flags.calibrated)
    note = f"the guard would sample {flags.clips} clips: {passes} passes, fewer where some are in the cache"
    plans = {ready.config.output: ready.plan for ready in prepare_passes([Pass(tuple(configs), notes=(note,))])[0]}
    console.print_plans(plans, json=json)


def run_guarded(
    configs: Sequence[TransferConfig], flags: GuardFlags, page: Path | None, *, json: bool, quiet: bool, verbose: bool
) -> int:
    """Transfer, judge, write what is kept, and say so. Returns the exit code, 3 where keys were lost."""
    from loraport import console
    from loraport.sampling.choice.guarded_transfer import guarded_transfer
    from loraport.transfers.results import BatchResult
    from loraport.transfers.run import transfer_many

    pair = open_pair(configs[0].source, configs[0].target, parse_sampling(flags.sampling), configs[0].device)
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        guarded = guarded_transfer(
            configs, flags.output, pair, lambda runs: transfer_many(runs, progress=terminal),
            clips=flags.clips, calibrated=flags.calibrated, progress=terminal,
        )  # fmt: skip
        for note in guarded.notes:
            terminal.note(note)
    batch = BatchResult((guarded.result,), (), guarded.result.seconds, guarded.result.peak_rss_bytes)
    if page is not None:
        write_report(batch, page, quiet=quiet)
    if json:
        console.print_facts(guarded.as_json(), json=True)
    else:
        console.print_transfers(batch, json=False, quiet=quiet, verbose=verbose, more=guarded.in_words())
    return 3 if batch.lost else 0


def write_report(batch: BatchResult, page: Path, *, quiet: bool) -> None:
    """Write the page of a finished transfer. Raises OutputError, which says that the LoRA is written all the same."""
    from loraport import console
    from loraport.reports.transfer_page import write_transfer_page

    try:
        lacking = write_transfer_page(batch, page)
    except (OutputError, OSError) as error:
        outputs = ", ".join(run.output for run in batch.runs)
        raise OutputError(f"{outputs} is written and whole, but the page about it is not: {error}") from error
    for sentence in lacking:
        console.Terminal(quiet=quiet).note(sentence)
