"""The settings of one run: one frozen tree, checked when it is made, saved with every result."""

from __future__ import annotations

import fnmatch
import json
import os
from dataclasses import asdict, dataclass
from typing import Any, Literal, NoReturn, get_args

from loraport.errors import SettingsError, unknown_name
from loraport.files.lora.write import Format
from loraport.methods.recipes import Recipe, find_recipe
from loraport.methods.settings import AnySettings

FORMATS: tuple[Format, ...] = get_args(Format)
Output = Literal["lora", "diff"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
Part = Literal["whole", "adapter", "counter-drift"]
DTYPES = ("fp32", "bf16", "fp16")
DORA_READINGS = ("effective", "magnitude")


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

    @classmethod
    def of(cls, recipe: Recipe) -> RankRule:
        """Return the rule that goes with a recipe's preset; `auto` where it has none."""
        return cls() if recipe.rank is None else cls("fixed", recipe.rank)

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
    """A method by its name, with a value where it takes one: direct:1.15."""
    settings: AnySettings | None = None
    """Of the method's own class, such as CasaSettings; None takes the method's defaults."""
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
        recipe = self.recipe
        if self.part != "whole":
            recipe.check_parts()
            if self.dora == "magnitude":
                raise SettingsError("a DoRA with its magnitudes is no sum of two parts; leave out --split or --dora")

    @property
    def recipe(self) -> Recipe:
        """The method with its settings."""
        return find_recipe(self.method, self.settings)

    def recorded_settings(self) -> dict[str, Any]:
        """Return what shaped the numbers, without paths: for the report and the file's metadata."""
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
        """Return the same text for the same work on a layer, whatever its output, its cache, and its other layers."""
        elsewhere = dict.fromkeys(("output", "cache", "include", "exclude"))
        return json.dumps({**asdict(self), "settings": asdict(self.recipe.settings), **elsewhere}, sort_keys=True)


def chosen_format(text: str) -> Format:
    """The format by its name. Raises SettingsError for an unknown one."""
    return next((known for known in FORMATS if known == text), None) or _refuse("format", text, FORMATS)


def chosen_output(text: str) -> Output:
    """Factors or dense differences, by name. Raises SettingsError for anything else."""
    return next((known for known in OUTPUTS if known == text), None) or _refuse("kind of output", text, OUTPUTS)


def _refuse(kind: str, text: str, known: tuple[str, ...]) -> NoReturn:
    raise unknown_name(kind, text, known)


def matches(name: str, pattern: str) -> bool:
    """Whether a layer name fits a pattern: `*` and `?` as in a shell; a plain word fits anywhere in the name."""
    return fnmatch.fnmatchcase(name, pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
