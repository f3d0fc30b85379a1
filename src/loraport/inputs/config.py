"""The settings of one run: one frozen tree, checked when it is made, saved with every result."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, NoReturn, get_args

from loraport.errors import SettingsError, unknown_name
from loraport.files.lora.write import Format
from loraport.methods.recipes import Recipe, find_recipe
from loraport.methods.settings import CASA_PRESETS, LORAX, PAPER, PROLORA, CasaSettings, LoraxSettings, ProloraSettings

FORMATS: tuple[Format, ...] = get_args(Format)
Output = Literal["lora", "diff"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
Part = Literal["whole", "adapter", "counter-drift"]
DTYPES = ("fp32", "bf16", "fp16")
DORA_READINGS = ("effective", "magnitude")
PRESET_RANKS = {"paper": "auto", "published-code": "32"}
"""The rank that goes with each preset of CASA, where the user asks for none."""


@dataclass(frozen=True)
class RankRule:
    """How many ranks the result may have.

    auto: the LoRA's own where the method is exact at it, else twice that; source: the LoRA's own; full: whatever it
    takes, exactly; fixed: `value` ranks; energy: as many as hold the share `value` of the update's energy.
    """

    kind: Literal["auto", "source", "full", "fixed", "energy"] = "auto"
    value: float = 0.0

    @classmethod
    def parse(cls, text: str) -> RankRule:
        """The rule behind `auto`, `source`, `full`, a whole number from 1 on, or a share of energy in (0, 1)."""
        if text in ("auto", "source", "full"):
            return cls(text)  # type: ignore[arg-type]
        try:
            number = float(text)
        except ValueError:
            number = float("nan")
        if text.isdecimal() and number >= 1:
            return cls("fixed", number)
        if 0 < number < 1:
            return cls("energy", number)
        raise SettingsError(
            f"rank {text!r} is none of: auto, source, full, a whole number from 1 on (32), a share of energy (0.95)"
        )

    @property
    def varies(self) -> bool:
        """Whether layers may end with different ranks."""
        return self.kind in ("full", "energy")

    def __str__(self) -> str:
        return {"fixed": f"{self.value:.0f}", "energy": f"{self.value:g}"}.get(self.kind, self.kind)


_PARTS = ("source_part", "target_part", "lora_part", "accelerator_part")


@dataclass(frozen=True)
class TransferConfig:
    """Everything that decides what a transfer writes."""

    lora: str
    source: str
    target: str
    output: str
    source_part: str | None = None
    """Which entry of a .pt file, or folder of a pipeline; the usual one by default."""
    target_part: str | None = None
    lora_part: str | None = None
    """Which of several LoRAs in one file."""
    accelerator_part: str | None = None
    """The same of a target's accelerator, where it is not the LoRA's."""
    method: str = "casa"
    casa: CasaSettings = PAPER
    prolora: ProloraSettings = PROLORA
    lora_x: LoraxSettings = LORAX
    rank: RankRule = RankRule()
    format: Format = "same"
    as_diff: bool = False
    dora: str = "effective"
    """What of a DoRA the method gets: all that it adds to the weight, or its factors, magnitudes put back after it."""
    transfer_diffs: bool = False
    """Whether full differences of matrices are transferred like any update, and not copied."""
    dtype: str = "bf16"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    force_drift: bool = False
    """Work with drifts within twice what rounding makes, too."""
    pairing: str = "auto"
    """name; similarity; auto: similarity where the models have layers of the same roles, but not the same ones."""
    pair_min: float = 0.8
    """Least similarity of a pair (ProLoRA's threshold)."""
    device: str = "auto"
    seed: int = 0
    cache: str | None = None
    """Folder of the bases; None keeps none."""
    part: Part = "whole"
    """The whole update, or one of two files that add up to it: what is left of the LoRA, what is taken of the drift."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", os.path.expanduser(self.output))
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.dora not in DORA_READINGS:
            raise unknown_name("reading of DoRA", self.dora, DORA_READINGS)
        if self.part not in get_args(Part):
            raise unknown_name("part", self.part, get_args(Part))
        if self.seed < 0:
            raise SettingsError(f"seed is {self.seed}, but it must be 0 or more")
        recipe = find_recipe(self.method)
        if self.part != "whole":
            recipe.check_parts()
            if self.dora == "magnitude":
                raise SettingsError("a DoRA with its magnitudes is no sum of two parts; leave out --split or --dora")

    @property
    def recipe(self) -> Recipe:
        """The method with its settings."""
        kind = type(find_recipe(self.method).settings)
        own = (self.casa, self.prolora, self.lora_x)
        return find_recipe(self.method, next((settings for settings in own if type(settings) is kind), None))

    def settings(self) -> dict[str, Any]:
        """What shaped the numbers, without places: for the report and the file's metadata."""
        return {
            **asdict(self.recipe.settings),
            "rank": str(self.rank),
            "dtype": self.dtype,
            "seed": self.seed,
            **{name: part for name in _PARTS if (part := getattr(self, name))},
            **({"force_drift": True} if self.force_drift else {}),
            **({"dora": self.dora} if self.dora != "effective" else {}),
            **({"transfer_diffs": True} if self.transfer_diffs else {}),
            **({} if self.part == "whole" else {"part": self.part}),
            **({"include": list(self.include)} if self.include else {}),
            **({"exclude": list(self.exclude)} if self.exclude else {}),
        }

    def fingerprint(self) -> str:
        """The same text for the same work on a layer, wherever its result goes, whatever cache and layers it takes."""
        return json.dumps({**asdict(self), **dict.fromkeys(("output", "cache", "include", "exclude"))}, sort_keys=True)


def chosen_format(text: str) -> Format:
    """The format by its name. Raises SettingsError for an unknown one."""
    return next((known for known in FORMATS if known == text), None) or _refuse("format", text, FORMATS)


def chosen_output(text: str) -> Output:
    """Factors or dense differences, by name. Raises SettingsError for anything else."""
    return next((known for known in OUTPUTS if known == text), None) or _refuse("kind of output", text, OUTPUTS)


def _refuse(kind: str, text: str, known: tuple[str, ...]) -> NoReturn:
    raise unknown_name(kind, text, known)


def chosen_rank(text: str | None, preset: str | None, method: str) -> RankRule:
    """The rule that the user asks for, else the one that goes with the preset, where it is the method's."""
    recipe = find_recipe(method)
    of_casa = isinstance(recipe.settings, CasaSettings) and not recipe.method.low_rank
    return RankRule.parse(text if text is not None else PRESET_RANKS.get(preset or "", "auto") if of_casa else "auto")


def casa_settings(preset: str = "paper", **flags: float | bool | None) -> CasaSettings:
    """CASA's settings from a preset, overridden by the flags that are not None; `energy` counts for every shape.

    Raises SettingsError for an unknown preset and for values out of range.
    """
    if preset not in CASA_PRESETS:
        raise unknown_name("preset", preset, CASA_PRESETS)
    given: dict[str, Any] = {name: value for name, value in flags.items() if value is not None}
    if "energy" in given:
        given["energy_rectangular"] = given["energy"]
    return replace(CASA_PRESETS[preset].settings, **given)


def method_settings(
    method: str, preset: str | None, flags: Mapping[str, Any], among: Sequence[str] | None = None
) -> dict[str, Any]:
    """The settings of a method by name, from a preset and the flags that are not None, by their place in the config.

    `among`: all methods of the same run; a flag is good if one of them has it, and means nothing to the others.
    Raises SettingsError for a flag of CASA or ProLoRA that none of them has, and for CASA's preset likewise.
    """
    recipes = [find_recipe(name) for name in among or (method,)]
    given = {name: value for name, value in flags.items() if value is not None}
    _check_meaning(recipes, preset, given)
    recipe = find_recipe(method)
    own = type(recipe.settings)
    mine = {name: value for name, value in given.items() if name in recipe.knobs}
    if own is ProloraSettings:
        return {"prolora": ProloraSettings(**mine)}
    if own is LoraxSettings:
        return {"lora_x": LoraxSettings(**mine)}
    return {"casa": casa_settings(preset or "paper", **mine) if own is CasaSettings else PAPER}


def _check_meaning(recipes: Sequence[Recipe], preset: str | None, given: Mapping[str, Any]) -> None:
    """Raise SettingsError for a preset or settings that none of the recipes looks at."""
    means = " or ".join(repr(recipe.name) for recipe in recipes)
    if preset is not None and preset not in CASA_PRESETS:
        raise unknown_name("preset", preset, CASA_PRESETS)
    if preset is not None and not any(isinstance(recipe.settings, CasaSettings) for recipe in recipes):
        raise SettingsError(f"--preset is of CASA's settings and means nothing to {means}; leave it out")
    known = set().union(*(recipe.knobs for recipe in recipes))
    for kind, owner in ((CasaSettings, "CASA"), (ProloraSettings, "ProLoRA")):
        if alien := [name for name in given if name in {field.name for field in fields(kind)} - known]:
            words = ", ".join(f"--{name.replace('_', '-')}" for name in alien)
            raise SettingsError(f"{words} is a setting of {owner} and means nothing to {means}; leave it out")
    idle = given.get("arbitrate") is False and "q_act" in given
    if idle and all("arbitrate" in recipe.knobs for recipe in recipes if "q_act" in recipe.knobs):
        raise SettingsError("--q-act says which entries are arbitrated; leave it out, or --no-arbitrate")


def matches(name: str, pattern: str) -> bool:
    """Whether a layer name fits a pattern: `*` and `?` as in a shell; a plain word fits anywhere in the name."""
    return fnmatch.fnmatchcase(name, pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
