"""`transfer --guard` and `--method auto`: the transfer's own function, and a judgement on what it makes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.cli.pairs import Sampling, open_pair
from loraport.errors import SettingsError, unknown_name

if TYPE_CHECKING:
    from loraport.runs.config import TransferConfig

AUTO = "auto"
INTEGERS = {"frames": 17, "source-steps": 30, "target-steps": 4, "batch": 1}
NUMBERS = {"source-guidance": 5.0, "target-guidance": 1.0}
WORDS = {"prompts": "", "size": "256x448", "offload": "no"}


@dataclass(frozen=True)
class GuardFlags:
    """What the guard was asked for, and where the result goes."""

    output: str
    clips: int
    calibrated: bool
    sampling: tuple[str, ...]


def parse_sampling(flags: Sequence[str], device: str) -> Sampling:
    """The sampling behind `--sampling KEY=VALUE`s. Raises SettingsError for an unknown key or a value that is none."""
    values: dict[str, str] = {}
    for flag in flags:
        key, _, value = flag.partition("=")
        if key not in {**INTEGERS, **NUMBERS, **WORDS}:
            raise unknown_name("sampling key", key, (*INTEGERS, *NUMBERS, *WORDS))
        values[key] = value
    try:
        whole = {key: int(values.get(key, start)) for key, start in INTEGERS.items()}
        real = {key: float(values.get(key, start)) for key, start in NUMBERS.items()}
    except ValueError as error:
        raise SettingsError(f"--sampling {' '.join(flags)}: {error}; write target-steps=3 for one") from error
    return Sampling(
        prompts=values.get("prompts"), frames=whole["frames"], size=values.get("size", WORDS["size"]),
        source_steps=whole["source-steps"], source_guidance=real["source-guidance"],
        target_steps=whole["target-steps"], target_guidance=real["target-guidance"],
        offload=values.get("offload", "no") in ("yes", "true", "1"), batch=whole["batch"], device=device,
    )  # fmt: skip


def guarded_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """The command's options with direct reuse among the methods, and a folder beside the output for all of them.

    Raises SettingsError for several LoRAs and for --split, where there is no one result to judge.
    """
    if len(given["loras"]) > 1 or given["split"] or given["experts"]:
        raise SettingsError(
            "the guard judges one LoRA in one piece on one model; run it for each, and leave out --split and --experts"
        )
    from loraport.effect.guard import AUTO_METHODS

    named = AUTO_METHODS if given["method"] == AUTO else given["method"].split(",")
    methods = dict.fromkeys(("direct", *(name.strip() for name in named)))
    if len(methods) == 1:
        raise SettingsError("the guard compares a method with direct reuse; name another one, or auto")
    return {**given, "method": ",".join(methods), "output": f"{given['output']}.candidates"}


def run_guarded(
    configs: Sequence[TransferConfig], flags: GuardFlags, page: Path | None, *, json: bool, quiet: bool, verbose: bool
) -> int:
    """Transfer, judge, write what is kept, and say so. Returns the exit code, 3 where keys were lost."""
    from loraport import console
    from loraport.effect.guarded import guarded_transfer
    from loraport.runs.execute import transfer_many
    from loraport.runs.results import BatchResult

    pair = open_pair(configs[0].source, configs[0].target, parse_sampling(flags.sampling, configs[0].device))
    with console.Terminal(quiet=quiet, verbose=verbose) as terminal:
        guarded = guarded_transfer(
            configs, flags.output, pair, lambda runs: transfer_many(runs, progress=terminal),
            clips=flags.clips, calibrated=flags.calibrated, watch=terminal.share,
        )  # fmt: skip
    batch = BatchResult((guarded.result,), (), guarded.result.seconds, guarded.result.peak_rss_bytes)
    if page is not None:
        from loraport.reports.transfer_page import write_transfer_page

        write_transfer_page(batch, page)
    if json:
        console.print_facts(guarded.as_json(), json=True)
    else:
        console.print_transfers(batch, json=False, quiet=quiet)
        if not quiet:
            console.print_facts({"guard": f"kept {guarded.verdict.kept}: {guarded.verdict.reason}"}, json=False)
    return 3 if batch.lost else 0
