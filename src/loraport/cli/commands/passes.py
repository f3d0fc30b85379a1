"""The runs of one `transfer` command: which LoRA by which method, between which models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from loraport.cli.options import MessageOptions, ResultOptions
from loraport.diagnosis.rule.advice import RECOMMEND
from loraport.errors import SettingsError

if TYPE_CHECKING:
    from loraport.cli.commands.transfer import TransferModels
    from loraport.cli.options.transfers import OutputOptions
    from loraport.inputs.config import TransferConfig
    from loraport.methods.recipes import Recipe
    from loraport.transfers.passes import Pass


def refuse_unseen(methods: str, result: ResultOptions) -> None:
    """Raise SettingsError for a dry run whose method would have to be found by reading weights."""
    if result.dry_run and RECOMMEND in methods.split(","):
        raise SettingsError(
            f"--dry-run reads headers alone, and --method {RECOMMEND} has to look at weights: `loraport diagnose` "
            "does, and writes nothing"
        )


def lineage_notes(configs: Sequence[TransferConfig]) -> list[str]:
    """Return warnings on models of which the presets know that one was not distilled from the other."""
    from loraport.diagnosis.relation import by_names

    pairs = dict.fromkeys((config.source, config.target) for config in configs)
    known = [by_names(source, target, {}) for source, target in pairs]
    return [relation.words for relation in known if relation is not None and not relation.is_base]


def passes_of(
    template: TransferConfig, loras: Sequence[str], recipes: Sequence[Recipe], models: TransferModels,
    result: OutputOptions, messages: MessageOptions,
) -> tuple[Pass, ...]:  # fmt: skip
    """Return the runs of the command, without a recipe by the recommended one; of either expert, with its name."""
    from loraport.inputs.experts import experts
    from loraport.transfers.passes import Pass

    def runs(template: TransferConfig, loras: Sequence[str]) -> tuple[TransferConfig, ...]:
        return _runs(template, loras, recipes, result, messages)

    if not models.experts:
        return (Pass(runs(template, loras)),)
    passes = []
    for expert in experts(loras, models.source, models.target):
        own = replace(
            template, lora=expert.lora, source=expert.source, target=expert.target,
            lora_part=expert.lora_part or models.lora_part, accelerator_part=expert.accelerator_part,
        )  # fmt: skip
        configs = runs(own, [expert.lora])
        named = tuple(replace(config, output=expert.named(config.output)) for config in configs)
        passes.append(Pass(named, expert.title, expert.notes))
    return tuple(passes)


def _runs(
    template: TransferConfig, loras: Sequence[str], recipes: Sequence[Recipe], result: OutputOptions,
    messages: MessageOptions,
) -> tuple[TransferConfig, ...]:  # fmt: skip
    """Return the runs between one pair of models: every LoRA by every recipe, or by what is recommended for it."""
    from loraport.diagnosis.recommend import recommended
    from loraport.inputs.batch import one_or_many

    rank = result.rank_rule()
    if recipes:
        return one_or_many(template, loras, recipes, rank=rank, split=result.split)
    configs: list[TransferConfig] = []
    with messages.terminal() as terminal:
        for lora in loras:
            own, told = recommended(replace(template, lora=lora), progress=terminal)
            terminal.note(f"{Path(lora).name}: {told.line()}" if len(loras) > 1 else told.line())
            configs += one_or_many(
                own, [lora], [own.recipe], rank=rank, split=result.split, in_folder=len(loras) > 1
            )  # fmt: skip
    return tuple(configs)
