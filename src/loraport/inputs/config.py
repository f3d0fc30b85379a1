"""The configuration of one transfer: checked when it is made, and recorded in every result."""

from __future__ import annotations

import fnmatch
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from loraport.compute import find_device
from loraport.errors import SettingsError, unknown_name
from loraport.field_types import check_fields
from loraport.files.accelerator_names import fitted
from loraport.files.lora.write import Format
from loraport.files.models.layout import parse_layouts
from loraport.files.models.named_places import known_place
from loraport.methods.recipes import Recipe, find_recipe
from loraport.methods.settings import AnySettings

FORMATS: tuple[Format, ...] = get_args(Format)
Output = Literal["lora", "diff"]
OUTPUTS: tuple[Output, ...] = get_args(Output)
Part = Literal["whole", "adapter", "counter-drift"]
DTYPES = ("fp32", "bf16", "fp16")
DORA_READINGS = ("effective", "magnitude")
LAYOUT_ROLES = ("lora", "source", "target")
PAIRINGS = ("auto", "name", "similarity")


@dataclass(frozen=True)
class RankRule:
    """Which rank the result has.

    auto: the LoRA's own where the method is exact at it, else twice that; source: the LoRA's own; full: as many as
    the update has, exactly; fixed: `value`; energy: as many as hold the share `value` of the update's energy.
    The LoRA's own is the largest of its layers' (of a difference, LoHa and the like 128 at most).
    """

    kind: Literal["auto", "source", "full", "fixed", "energy"] = "auto"
    value: float = 0.0

    def __post_init__(self) -> None:
        check_fields(self)
        if self.kind == "fixed" and (self.value < 1 or self.value != int(self.value)):
            raise SettingsError(f"the rank is {self.value:g}, but a fixed one is a whole number from 1 on")
        if self.kind == "energy" and not 0 < self.value < 1:
            raise SettingsError(f"the share of energy is {self.value:g}, but it must lie between 0 and 1")

    @classmethod
    def parse(cls, text: str) -> RankRule:
        """Return the rule for `auto`, `source`, `full`, a whole number from 1 on, or a share of energy in (0, 1)."""
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
    """Everything that decides what a transfer writes; all of it is checked when it is made.

    Paths may be `Path`s, lists stand for tuples, and the rank may be its number or text (32, 0.95, "full").
    """

    lora: str
    source: str
    target: str
    output: str
    source_part: str | None = None
    """Which entry of a .pt file, or subfolder of a pipeline; None takes the usual one."""
    target_part: str | None = None
    lora_part: str | None = None
    """Which of several LoRAs in one file."""
    accelerator_part: str | None = None
    """Which LoRA in the file of the target's accelerator, where that is not `lora_part`."""
    method: str = "casa"
    """A method by its name, with a value where it takes one: direct:1.15."""
    settings: AnySettings | None = None
    """Of the method's own class, such as CasaSettings; None takes the method's defaults."""
    rank: RankRule = RankRule()
    format: Format = "same"
    as_diff: bool = False
    dora: str = "effective"
    """effective: the method gets all that a DoRA adds to the weight; magnitude: its factors, and the magnitudes are put
    back afterwards."""
    qkv: tuple[str, ...] = ()
    """How the rows of fused q, k and v lie where names do not tell: `interleaved`, or `source=stacked` and the like."""
    transfer_diffs: bool = False
    """Whether full differences of matrices are transferred like any other update, instead of copied."""
    dtype: str = "bf16"
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    force_drift: bool = False
    """Whether drift within rounding error counts, too."""
    pairing: str = "auto"
    """name; similarity; auto: similarity where the models have layers of the same roles in different numbers."""
    pair_min: float = 0.8
    """Least similarity of a pair (ProLoRA's threshold)."""
    device: str = "auto"
    seed: int = 0
    cache: str | None = None
    """Folder of the cache of bases; None keeps nothing."""
    part: Part = "whole"
    """The whole update, or one of two that add up to it: what is left of the LoRA, what is taken back of the drift."""
    advised: str = ""
    """The verdict that the method was taken from, where a diagnosis chose it; recorded, and changes nothing."""

    def __post_init__(self) -> None:
        for name in ("lora", "source", "target", "output", "cache"):
            object.__setattr__(self, name, _place(name, getattr(self, name)))
        if isinstance(self.target, str) and isinstance(self.source, str):
            object.__setattr__(self, "target", fitted(self.target, self.source))
        object.__setattr__(self, "output", os.path.expanduser(self.output))
        object.__setattr__(self, "rank", _rank(self.rank))
        check_fields(self)
        if self.dtype not in DTYPES:
            raise unknown_name("dtype", self.dtype, DTYPES)
        if self.dora not in DORA_READINGS:
            raise unknown_name("reading of DoRA", self.dora, DORA_READINGS)
        if self.pairing not in PAIRINGS:
            raise unknown_name("pairing", self.pairing, PAIRINGS)
        if not 0 <= self.pair_min <= 1:
            raise SettingsError(f"the least similarity is {self.pair_min:g}, but an overlap lies in [0, 1]")
        parse_layouts(self.qkv, LAYOUT_ROLES)
        find_device(self.device)
        if self.seed < 0:
            raise SettingsError(f"seed is {self.seed}, but it must be 0 or more")
        recipe = self.recipe
        if self.part != "whole":
            recipe.check_parts()
            if self.dora == "magnitude":
                raise SettingsError("a DoRA with its magnitudes is not a sum of two parts; leave out --split or --dora")

    @property
    def recipe(self) -> Recipe:
        """The method with its settings. Raises SettingsError for settings that are not of the method's class."""
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
            **({"qkv": list(self.qkv)} if self.qkv else {}),
            **({"transfer_diffs": True} if self.transfer_diffs else {}),
            **({} if self.part == "whole" else {"part": self.part}),
            **({"advised": self.advised} if self.advised else {}),
            **({"include": list(self.include)} if self.include else {}),
            **({"exclude": list(self.exclude)} if self.exclude else {}),
        }

    def fingerprint(self) -> str:
        """Return the same text for the same work on a layer, whatever its output, its cache, and its other layers."""
        elsewhere = dict.fromkeys(("output", "cache", "include", "exclude", "advised"))
        return json.dumps({**asdict(self), "settings": asdict(self.recipe.settings), **elsewhere}, sort_keys=True)


def _place(name: str, given: object) -> object:
    """Return a place as a text, of what another package names (`toy:base`) its file.

    Raises SettingsError for tensors, which have no place on the disk.
    """
    if isinstance(given, Mapping):
        raise SettingsError(f"{name} holds tensors, and here belongs a place on the disk; transfer_state takes tensors")
    place = os.fspath(given) if isinstance(given, os.PathLike) else given
    place = os.fsdecode(place) if isinstance(place, bytes) else place
    return known_place(place) if isinstance(place, str) and name not in ("output", "cache") else place


def _rank(given: object) -> object:
    """Return the rule of a rank that is given as its text or number."""
    by_value = isinstance(given, str | int | float) and not isinstance(given, bool)
    return RankRule.parse(str(given)) if by_value else given


def chosen_format(text: str) -> Format:
    """Return the format of this name. Raises SettingsError for an unknown one."""
    if text not in FORMATS:
        raise unknown_name("format", text, FORMATS)
    return text


def chosen_output(text: str) -> Output:
    """Return `lora` (factors) or `diff` (dense differences). Raises SettingsError for anything else."""
    if text not in OUTPUTS:
        raise unknown_name("kind of output", text, OUTPUTS)
    return text


def matches(name: str, pattern: str) -> bool:
    """Return whether a layer name fits a pattern: `*` and `?` as in a shell; a plain word fits anywhere in the name."""
    return fnmatch.fnmatchcase(name, pattern if any(c in pattern for c in "*?[") else f"*{pattern}*")
