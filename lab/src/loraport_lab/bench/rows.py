"""What the lab compares: a row is a rule that gives every layer of a cell an update on top of the student's weight.

Rows that are fitted by sampling are in `loraport_lab.bench.calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from loraport.analysis.probes import KeepDominant, OverActivate, Probe
from loraport.compute import layer_generator
from loraport.inputs.rank import auto_rank
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import PAPER, PUBLISHED_CODE, AnySettings, ProloraSettings, changed
from loraport.spectral.low_rank import truncate
from loraport_lab.bench.material import Material

Group = Literal["frame", "method", "control", "rank", "sensitivity", "probe", "calibrated", "calibration"]
SINGLE_STUDIES: tuple[Group, ...] = ("rank", "sensitivity", "probe", "calibration")
"""Groups of rows that are measured on a few cells only."""
Rule = Callable[[Material], Mapping[str, Tensor]]


@dataclass(frozen=True)
class AdapterUse:
    """How an adapter is used in a row and in its reference: at which strength, and with which other adapter."""

    strength: float = 1.0
    beside: str | None = None


AS_TRAINED = AdapterUse()


@dataclass(frozen=True)
class Row:
    """One way of putting an adapter on a student, or one of the frame that the others are seen in.

    `key` says everything that decides the numbers. `candidates` are rules of which one counts: by `choice` the most
    faithful on the tuning seeds, or what the guard keeps. `against` is the row that changes are counted from.
    """

    name: str
    group: Group
    key: str
    rule: Rule
    model: Literal["student", "base"] = "student"
    candidates: Mapping[str, Rule] | None = None
    choice: Literal["fidelity", "guard"] = "fidelity"
    use: AdapterUse = AS_TRAINED
    against: str = "direct"
    account: Callable[[Material], Mapping[str, object]] | None = None
    """Facts on how the updates came about, for the result."""

    @property
    def has_end(self) -> bool:
        """Whether its end error is measured: on the student, and in no single study."""
        return self.model == "student" and self.group not in SINGLE_STUDIES[:3] and self.use == AS_TRAINED


RankWish = Literal["auto", "source", "twice", "four", "full"]


def nothing(material: Material) -> Mapping[str, Tensor]:
    """Return no updates: the student without an adapter."""
    return {}


def oracle(material: Material) -> Mapping[str, Tensor]:
    """Return the adapter trained on the student."""
    return {name: low.dense() for name, low in material.oracle.items()}


def transferred(method: str, *settings: AnySettings, rank: RankWish = "auto") -> Rule:
    """Return the rule of a method at a rank: auto is exact where the method is, else twice the adapter's."""
    recipe = find_recipe(method, *settings)

    def rule(material: Material) -> Mapping[str, Tensor]:
        updates = {}
        for name, layer in material.layers.items():
            update, own = recipe(layer), layer.lora.rank
            if update.reason is not None or (rank == "full" and not update.is_low_rank):
                updates[name] = update.dense()
            elif update.is_low_rank:
                exact = recipe.method.low_rank or rank in ("auto", "full")
                low = update.low_rank
                updates[name] = (low if exact or low.rank <= own else truncate(low, own)).dense()
            else:
                wanted = {"source": own, "auto": auto_rank(own, low_rank=False), "twice": 2 * own, "four": 4 * own}[
                    rank
                ]
                updates[name] = update.factorized(wanted, layer_generator(0, name)).dense()
        return updates

    return rule


def _row(name: str, group: Group, method: str, *settings: AnySettings, rank: RankWish = "auto") -> Row:
    key = f"{method} {settings or find_recipe(method).settings} rank {rank}"
    return Row(name, group, key, transferred(method, *settings, rank=rank))


def _swept(name: str, methods: tuple[str, ...]) -> Row:
    candidates = {method: transferred(method, rank="full") for method in methods}
    return Row(name, "control", f"best of {methods}", nothing, candidates=candidates)


FRAME = (
    Row("student", "frame", "nothing", nothing),
    Row("direct", "frame", "direct", transferred("direct")),
    Row("full undo", "frame", "undo:1", transferred("undo:1", rank="full")),
    Row("base, same steps", "frame", "direct on the base", transferred("direct"), model="base"),
    Row("oracle", "frame", "oracle", oracle),
)
"""What admission and the gap closed are made of."""

_SWEPT = {
    "direct, swept": tuple(f"direct:{amount}" for amount in (0.7, 0.85, 1, 1.15, 1.3, 1.6)),
    "undo, swept": tuple(f"undo:{amount}" for amount in (0, 0.1, 0.25, 0.5, 0.75, 1)),
}

MAIN = (
    *(_row(name, "method", name) for name in METHODS if name != "direct"),
    _row("casa, published code", "method", "casa", PUBLISHED_CODE),
    _row("casa, full rank", "method", "casa", PAPER, rank="full"),
    _row("prolora, no null space", "method", "prolora", ProloraSettings(null_space=False)),
    _row("prolora, cross terms", "method", "prolora", ProloraSettings(cross_terms=True)),
    _row("direct:1.15", "control", "direct:1.15"),
    _row("restore-only, full rank", "control", "restore-only", rank="full"),
    _row("arbitrate-only, full rank", "control", "arbitrate-only", rank="full"),
    *(_swept(name, methods) for name, methods in _SWEPT.items()),
)
"""Every method of METHODS with its defaults, presets, ablations, and controls; measured on every cell."""

_WISHES: tuple[RankWish, ...] = ("source", "twice", "four", "full")
RANKS = tuple(_row(f"casa, rank {wish}", "rank", "casa", PAPER, rank=wish) for wish in _WISHES)
"""How much of CASA survives truncation."""

_DIALS: Mapping[str, tuple[float, ...]] = {
    "q_dom": (0.0, 0.3, 0.4, 0.5, 0.6, 0.7, 0.9),
    "q_act": (0.5, 0.7, 0.8, 0.85, 0.9, 0.95),
    "tau": (0.05, 0.2, 0.5, 1.0, 2.0, 5.0),
    "restore": (0.0, 0.25, 0.5, 0.75, 1.0),
}
SENSITIVITY = tuple(
    _row(f"{dial} {value:g}", "sensitivity", "casa", changed(PAPER, {dial: value}), rank="full")
    for dial, values in _DIALS.items()
    for value in values
)
"""The paper's Fig. 8: CASA's dials, one at a time, at full rank."""


def probed(probe: Probe) -> Rule:
    """Return the rule of the adapter as it is on a student that a probe of appendix B.2 has changed."""

    def rule(material: Material) -> Mapping[str, Tensor]:
        return {
            name: layer.lora.dense() + probe.added(layer, layer_generator(0, name))
            for name, layer in material.layers.items()
        }

    return rule


_PROBES: Mapping[str, Probe] = {
    **{
        f"dominant only {q:g}": KeepDominant(q, directions="all", clusters="lora")
        for q in (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    },
    "over-activated, mean 2": OverActivate(variance=0.0, noise="factors"),
    "over-activated, mean 2, variance 5": OverActivate(noise="factors"),
}
PROBES = tuple(Row(name, "probe", str(probe), probed(probe)) for name, probe in _PROBES.items())
"""Our variants of the paper's partly distilled models (Tables 5-6) and disturbed ones (Fig. 14): the adapter is on."""

STUDY_CELLS = (("one-step", "noir"), ("one-step", "retro"), ("few-step", "neon"), ("causal", "retro"))
"""Where ranks, dials and probes are measured too."""


def rows_of(material: Material) -> tuple[Row, ...]:
    """Return the rows of one cell, the frame first."""
    study = (material.cell.student.name, material.cell.adapter.name) in STUDY_CELLS
    return (*FRAME, *MAIN, *(RANKS + SENSITIVITY + PROBES if study else ()))
