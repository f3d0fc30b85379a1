"""The options that `transfer` and `batch` share: between which models, by which method, in which form."""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, get_args

import typer

from loraport.cli.options import (
    METHOD,
    NEEDED,
    LayerOptions,
    LoraPart,
    ModelOptions,
    ResultOptions,
    SettingOptions,
    Source,
    Target,
)
from loraport.cli.options.completion import complete_method

if TYPE_CHECKING:
    from loraport.methods.recipes import Recipe


def _unless_in_manifest(option: Any) -> Any:
    """Return an option that may be left out where a manifest has it, which `--help` says."""
    own = copy(get_args(option)[1])
    own.help = own.help.replace(NEEDED, "[required, unless --for or a manifest has it]")
    own.show_default = False
    return own


@dataclass(frozen=True)
class ManyModels(ModelOptions):
    """The two models of all LoRAs for which a manifest names no others."""

    needed: ClassVar[bool] = False
    source: Annotated[str, _unless_in_manifest(Source)] = ""
    target: Annotated[str, _unless_in_manifest(Target)] = ""
    lora_part: LoraPart = None


@dataclass(frozen=True)
class MethodOptions:
    """By which method, with which settings."""

    heading: ClassVar[str] = METHOD
    method: Annotated[
        str,
        typer.Option(
            metavar="METHOD[,METHOD...]",
            help="casa, direct[:λ], direct-matched[:METHOD], undo[:β], undo-orthogonal[:β], undo-matched, core, "
            "drift-orthogonal[:k], prolora, lora-x, rollback, restore-only or arbitrate-only; several of them, with "
            "commas. recommend: what `loraport diagnose` advises. To choose one by sampling: loraport choose.",
            autocompletion=complete_method,
        ),
    ] = "casa"
    settings: SettingOptions = SettingOptions()  # noqa: RUF009  # a frozen value

    def recipes(self) -> tuple[Recipe, ...]:
        """Return the methods with their settings; none where the method is to be recommended.

        Raises SettingsError for what none of them knows.
        """
        from loraport.diagnosis.rule.advice import is_recommended
        from loraport.inputs.recipes import chosen_recipes, method_list

        names = method_list(self.method)
        if is_recommended(names, self.settings.preset, self.settings.changes):
            return ()
        return chosen_recipes(names, self.settings.preset, self.settings.changes)


@dataclass(frozen=True)
class OutputOptions(ResultOptions):
    """Where the new LoRA goes, and in which form."""

    as_: Annotated[
        str, typer.Option("--as", metavar="FORM", help="lora, or diff: dense .diff keys, lossless and large.")
    ] = "lora"
    split: Annotated[
        bool,
        typer.Option(
            "--split",
            help="Write two files that add up: what is left of the LoRA to OUT, what is taken back of the drift to "
            "OUT-counter-drift.",
        ),
    ] = False


def idle_options(models: ModelOptions, layers: LayerOptions, result: OutputOptions) -> dict[str, str]:
    """Return the options that do nothing beside the others, with the reason."""
    from loraport.inputs.accelerator import SOURCE, split_target

    idle: dict[str, str] = {}
    if layers.pairing == "name":
        idle["pair_min"] = "it belongs to pairing by similarity"
    if result.dry_run:
        idle["report"] = "a dry run has nothing to report"
    if result.as_ == "diff":
        if result.rank not in ("full", "auto"):
            idle["rank"] = "dense differences have no rank"
        if result.format not in ("same", "comfy"):
            idle["format"] = "dense differences are written for ComfyUI"
    if (pair := split_target(models.target)) and pair[0] == SOURCE:
        idle["target_part"] = "the target's model is the source, of which --source-part is taken"
    return idle
