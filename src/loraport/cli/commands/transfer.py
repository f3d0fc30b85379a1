"""`transfer`, and `transfer --guard`, which has become `choose`."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli.commands.choose import candidates_of, choose_and_tell, input_places, tell_plan
from loraport.cli.commands.many import are_many, plan, request_of, run_and_tell, say_what_would_be_done
from loraport.cli.commands.passes import lineage_notes, passes_of, refuse_unseen
from loraport.cli.options import (
    LayerOptions,
    Loras,
    MessageOptions,
    ModelOptions,
    OutputOrFolder,
    ResultOptions,
    RunOptions,
    page_path,
    refuse_idle,
    transfer_config,
    write_report,
)
from loraport.cli.options.existing import earlier_transfers, keep_existing
from loraport.cli.options.expansion import HIDDEN, with_options
from loraport.cli.options.help import GroupedCommand
from loraport.cli.options.many import ManyOptions
from loraport.cli.options.pairs import SamplingOptions
from loraport.cli.options.readable import refuse_unreadable
from loraport.cli.options.transfers import ManyModels, MethodOptions, OutputOptions, idle_options
from loraport.errors import LOST, SettingsError
from loraport.sampling.providers import known_place

if TYPE_CHECKING:
    from loraport.inputs.config import TransferConfig
    from loraport.transfers.passes import Pass

app = typer.Typer()
AUTO = "auto"


@dataclass(frozen=True)
class TransferModels(ManyModels):
    """The two models, which may have two experts each."""

    experts: Annotated[
        bool,
        typer.Option(
            "--experts",
            help="Transfer for both experts of Wan 2.2 A14B, to OUT-high_noise and OUT-low_noise. Two LoRAs are the "
            "high-noise and the low-noise one's; one LoRA is for both, unless its name says high or low (HIGH, "
            "high_noise, HighNoise, -H) and the other one's lies beside it. MODEL: a folder or repository with both, "
            "wan2.2-t2v-a14b, or one expert's file whose name says so.",
        ),
    ] = False


@dataclass(frozen=True)
class GuardOptions:
    """What has become `loraport choose`."""

    guard: Annotated[bool, typer.Option("--guard")] = False
    guard_clips: Annotated[int, typer.Option("--guard-clips", min=2)] = 32
    calibrated: Annotated[bool, typer.Option("--calibrated")] = False
    sampling: SamplingOptions = field(default_factory=SamplingOptions)


_OF_CHOOSE = (
    *("guard_clips", "calibrated"),
    *(field.name for field in fields(SamplingOptions)),
)
"""Options of GuardOptions that do nothing without --guard."""
_OTHER_IN_CHOOSE = (
    *("loras", "source", "target", "output", "method", "guard", "guard_clips", "calibrated"),
    *("as_", "split", "experts", "source_part", "target_part"),
)
"""Options of `transfer` that `choose` does not have, or that are spelled by hand; what is sampled has no parts."""


@app.command(
    cls=GroupedCommand,
    epilog="Example: loraport transfer style.safetensors --source wan2.1-t2v-1.3b --target fastwan2.1-t2v-1.3b "
    "-o style-fastwan.safetensors",
)
@with_options
def transfer(
    context: typer.Context,
    loras: Loras,
    models: TransferModels,
    method: MethodOptions,
    layers: LayerOptions,
    output: OutputOrFolder,
    result: OutputOptions,
    run: RunOptions,
    many: ManyOptions,
    guard: Annotated[GuardOptions, HIDDEN],
    messages: MessageOptions,
) -> None:
    """Transfer LoRAs from the model that they were trained on to a distilled variant of it.

    Several LoRAs, or several methods, go through the layers together, and the weights are read once. LORA may be a
    folder of LoRAs, a pattern such as "loras/**/*.safetensors", or a manifest, MANIFEST.jsonl, with one object a line:
    {"lora": FILE, "source": MODEL, "target": MODEL, "method": METHOD, "settings": {"tau": 0.9}, "output": TEMPLATE}.
    What is finished already is not made again.
    """
    is_guarded = guard.guard or method.method == AUTO
    if is_guarded and not messages.quiet:
        _say_what_to_type(context, loras[0], models, method.method, output, guard)
    loras, output = [known_place(lora) for lora in loras], os.path.expanduser(output)
    models = replace(models, source=known_place(models.source), target=known_place(models.target))
    recipes = () if is_guarded else method.recipes()  # refused before anything is read
    together = not models.experts and not is_guarded and are_many(loras, method.method, output, many, result)
    if not together:
        from loraport.batches.find import find_loras

        loras = [one.place for one in find_loras(loras)]
        _check_alone(models, many)
        # where two experts are meant a name may stand for both, and is none of one model
        refuse_unreadable(loras, [] if models.experts else [models.source, models.target])
    of_choose = {} if is_guarded else dict.fromkeys(_OF_CHOOSE, "it belongs to `loraport choose`")
    refuse_idle(context, of_choose | idle_options(models, layers, result))
    page = None if result.report is None else page_path(result.report)
    if is_guarded:
        _choose_instead(loras, models, method, layers, output, result, run, guard, messages)
        return
    template = transfer_config(
        loras[0], output, models, layers, result, run, lora_part=models.lora_part, form=result.as_
    )
    refuse_unseen(method.method, result)
    if together:
        _run_many(template, loras, method, many, page, result, messages)
        return
    _run(passes_of(template, loras, recipes, models, result, messages), page, result, messages)


def _check_alone(models: TransferModels, many: ManyOptions) -> None:
    """Raise SettingsError for a model that is missing, and for what only many transfers have."""
    for option in ("source", "target"):
        if not getattr(models, option):
            raise SettingsError(
                f"--{option} is missing: name a model, or a published pair with --for, or give a manifest that says it "
                "for every LoRA"
            )
    if many.typed:
        raise SettingsError(
            "--experts and --guard are for one LoRA, or its two; for many, name each expert's models in a manifest"
        )


def _run_many(
    template: TransferConfig, words: Sequence[str], method: MethodOptions, many: ManyOptions, page: Path | None,
    result: OutputOptions, messages: MessageOptions,
) -> None:  # fmt: skip
    """Move many LoRAs into a folder, or say what would be done."""
    jobs = plan(words, request_of(template, method, many, result), messages)
    if result.dry_run:
        say_what_would_be_done(jobs, many, result, messages)
        return
    done = run_and_tell(jobs, template.output, many, result, page, messages)
    raise typer.Exit(LOST if done.lost else 0)


def _choose_instead(
    loras: Sequence[str],
    models: TransferModels,
    method: MethodOptions,
    layers: LayerOptions,
    output: str,
    result: OutputOptions,
    run: RunOptions,
    guard: GuardOptions,
    messages: MessageOptions,
) -> None:
    """Do what --guard and --method auto did."""
    if len(loras) > 1 or result.split or models.experts:
        raise SettingsError(
            "one adapter is chosen for one LoRA in one piece on one model; run it for each, without --split and "
            "--experts"
        )
    words = _candidates(method.method, guard)
    template = transfer_config(
        loras[0], output, models, layers, result, run, lora_part=models.lora_part, form=result.as_
    )
    candidates = candidates_of(words, template, method.settings, result, guard.guard_clips)
    if result.dry_run:
        tell_plan(candidates, guard.sampling, messages)
    else:
        choose_and_tell(candidates, guard.sampling, result, messages, as_transfer=True)


def _say_what_to_type(
    context: typer.Context, lora: str, models: ModelOptions, method: str, output: str, guard: GuardOptions
) -> None:
    """Say which command does this now."""
    words = [*_candidates(method, guard), "--lora", lora, "--source", models.source, "--target", models.target]
    print(
        f"loraport: {'--guard' if guard.guard else '--method auto'} is a command of its own now: loraport "
        f"{shlex.join(['choose', *words, '-o', output, '--clips', str(guard.guard_clips), *_same_options(context)])}",
        file=sys.stderr,
    )


def _same_options(context: typer.Context) -> list[str]:
    """Return the options that were typed and that `choose` takes as they are."""
    words: list[str] = []
    for option in context.command.params:
        name = option.name or ""
        if name in _OTHER_IN_CHOOSE or getattr(context.get_parameter_source(name), "name", "DEFAULT") == "DEFAULT":
            continue
        value = context.params[name]
        if isinstance(value, bool):
            words.append((option.opts if value else option.secondary_opts)[-1])
        else:
            for one in value if isinstance(value, (list, tuple)) else (value,):
                words += [option.opts[-1], str(one)]
    return words


def _candidates(method: str, guard: GuardOptions) -> list[str]:
    """Return the candidates as `choose` takes them; none stands for the usual ones."""
    from loraport.sampling.choice.choose import CALIBRATED
    from loraport.sampling.choice.guard import AUTO_METHODS

    named = [] if method == AUTO else [name.strip() for name in method.split(",")]
    return [*(named or AUTO_METHODS), CALIBRATED] if guard.calibrated else named


def _run(passes: Sequence[Pass], page: Path | None, result: ResultOptions, messages: MessageOptions) -> None:
    """Run them, or say what would be done, and leave with what to tell the shell."""
    from loraport import console
    from loraport.transfers.passes import transfer_passes

    configs = [config for one in passes for config in one.configs]
    places, forgiving = [config.output for config in configs], result.overwrite or result.dry_run
    again = earlier_transfers(places, forgiving)
    others = [page, *(place for place in places if Path(place) not in again)]
    keep_existing(others, input_places(configs), forgiving)
    if result.dry_run:
        from loraport.transfers.dry_run import dry_run

        console.print_dry_run(dry_run(passes), json=messages.json, verbose=messages.verbose)
        return
    with messages.terminal() as terminal:
        for note in lineage_notes(configs):
            terminal.note(note)
        for place in again:
            terminal.note(f"{place}, an earlier transfer, is replaced")
        batch = transfer_passes(passes, progress=terminal)
    if page is not None:
        write_report(batch, page, messages)
    console.print_transfers(batch, json=messages.json, quiet=messages.quiet, verbose=messages.verbose)
    raise typer.Exit(LOST if batch.lost else 0)
