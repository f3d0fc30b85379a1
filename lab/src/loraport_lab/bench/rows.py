"""What the lab compares: a row is a rule that gives every layer of a cell an update on top of the student's weight.

Rows that are fitted by sampling are in `loraport_lab.bench.calibration`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from loraport.analysis.probes import KeepDominant, OverActivate, Probe
from loraport.compute import layer_generator
from loraport.inputs.rank import auto_rank
from loraport.methods.layer import Layer
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import PAPER, PUBLISHED_CODE, AnySettings, ProloraSettings, changed
from loraport.spectral.low_rank import truncate
from loraport_lab.bench.material import Cell, Material
from loraport_lab.bench.negative_controls import theseus

Group = Literal[
    "frame", "method", "control", "rank", "sensitivity", "partly distilled", "disturbed", "calibrated", "calibration"
]
STUDIES: tuple[Group, ...] = ("rank", "sensitivity", "partly distilled", "disturbed")
"""Groups of rows that are measured on a few cells only, without their end error."""
SINGLE_STUDIES: tuple[Group, ...] = (*STUDIES, "calibration")
"""All groups of rows that are measured on a few cells only."""
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

    `key` says everything that decides the numbers: rows of one key are made once. `candidates` are rules of which one
    counts: by `choice` the most faithful on the tuning seeds, or what the guard keeps. Changes are counted from the row
    `against`.
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
        return self.model == "student" and self.group not in STUDIES and self.use == AS_TRAINED


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
    "direct, swept": tuple(f"direct:{amount}" for amount in (0.85, 1, 1.15, 1.3)),
    "undo, swept": tuple(f"undo:{amount}" for amount in (0.1, 0.25, 0.5, 1)),
}


def by_layer(rule: Callable[[Layer], Tensor]) -> Rule:
    """Return the rule that gives each layer what a function makes of it."""
    return lambda material: {name: rule(layer) for name, layer in material.layers.items()}


NO_CLUSTERS = changed(PAPER, {"tau": math.inf})
"""Each direction by itself: no predicted rotation is large enough to join two."""
NO_DOMINANCE = changed(PAPER, {"q_dom": 0.0, "energy": 1.0})
"""Every direction dominates: nothing is restored, and every entry in which both push the same way is a candidate."""

MAIN = (
    *(_row(name, "method", name) for name in METHODS if name != "direct"),
    _row("casa, published code", "method", "casa", PUBLISHED_CODE),
    _row("casa, full rank", "method", "casa", PAPER, rank="full"),
    _row("casa, no clusters", "control", "casa", NO_CLUSTERS),
    _row("casa, no dominance", "control", "casa", NO_DOMINANCE),
    _row("prolora, no null space", "method", "prolora", ProloraSettings(null_space=False)),
    _row("prolora, cross terms", "method", "prolora", ProloraSettings(cross_terms=True)),
    _row("direct:1.15", "control", "direct:1.15"),
    _row("orthogonal-shift", "control", "undo-orthogonal:0", rank="full"),
    Row("theseus, no data", "control", "theseus, no data", by_layer(theseus)),
    *(_swept(name, methods) for name, methods in _SWEPT.items()),
)
"""Every method of METHODS with its defaults, presets, ablations, and controls; measured on every cell."""

_WISHES: tuple[RankWish, ...] = ("source", "twice", "four", "full")
RANKS = (
    *(_row(f"casa, rank {wish}", "rank", "casa", PAPER, rank=wish) for wish in _WISHES),
    _row("casa, published code, rank full", "rank", "casa", PUBLISHED_CODE, rank="full"),
    *(_row(f"{name}, rank full", "rank", name, rank="full") for name in ("restore-only", "arbitrate-only")),
)
"""How much of CASA and of its halves survives truncation."""

DIALS: Mapping[str, tuple[float, ...]] = {
    "q_dom": (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 1.0),
    "q_act": (0.0, 0.5, 0.7, 0.85, 0.95, 1.0),
    "tau": (0.05, 0.5, 1.0, 5.0),
    "restore": (0.0, 0.25, 0.5, 0.75, 1.0),
}
SENSITIVITY = tuple(
    _row(f"{dial} {value:g}", "sensitivity", "casa", changed(PAPER, {dial: value}), rank="full")
    for dial, values in DIALS.items()
    for value in values
)
"""The paper's Fig. 8: CASA's dials, one at a time, at full rank."""


def probed(probe: Probe, *, wearing: bool = True) -> Rule:
    """Return the rule of the adapter (or, not `wearing` it, of nothing) on a student that a probe has changed."""

    def rule(material: Material) -> Mapping[str, Tensor]:
        return {
            name: probe.added(layer, layer_generator(0, name)) + (layer.lora.dense() if wearing else 0)
            for name, layer in material.layers.items()
        }

    return rule


BARE = AdapterUse(0.0)
"""No adapter anywhere: what the reference wears is nothing too."""
BARE_STUDENT = "bare student"


def _bare(name: str, group: Group, probe: Probe | None) -> Row:
    rule = nothing if probe is None else probed(probe, wearing=False)
    return Row(name, group, f"bare {probe}", rule, use=BARE, against=BARE_STUDENT)


PARTLY_DISTILLED = tuple(
    Row(f"dominant only {q:g}", "partly distilled", str(probe), probed(probe))
    for q in (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
    for probe in (KeepDominant(q, directions="all", clusters="lora"),)
)
"""Our variant of the paper's partly distilled models (Tables 5-6): the complement and the tail stay, the adapter is on,
and it is the adapter's rotation that joins clusters."""
DISTURBED = (
    Row("peaks × 2", "disturbed", "mean 2", probed(OverActivate(variance=0.0, noise="factors"))),
    Row("peaks × N(2, 5)", "disturbed", "mean 2, variance 5", probed(OverActivate(noise="factors"))),
)
"""Our variant of the disturbed model (Fig. 14): single entries are multiplied, the adapter is on."""
BARE_PROBES = (
    _bare(BARE_STUDENT, "partly distilled", None),
    *(_bare(f"bare, as printed, q {q:g}", "partly distilled", KeepDominant(q)) for q in (0.3, 0.5, 0.7)),
    _bare("bare, noise as printed", "disturbed", OverActivate()),
    _bare("bare, noise in units of its block", "disturbed", OverActivate(noise="scaled")),
)
"""Both models as the paper's appendix prints them: no adapter anywhere, against the base without one."""

STUDY_CELLS = (("one-step", "noir"), ("few-step", "noir"), ("matched", "noir"), ("one-step", "swing"))
"""Where ranks, dials, probes and the end error are measured too: three paradigms, and a motion."""
BARE_ADAPTER = "noir"
"""Of the study cells those with this adapter have the bare probes too, which would be the same with any other."""


def is_studied(cell: Cell) -> bool:
    """Return whether the cell is one of the few that have the studies."""
    return (cell.student.name, cell.adapter.name) in STUDY_CELLS


def rows_of(cell: Cell) -> tuple[Row, ...]:
    """Return the rows of one cell, the frame first."""
    if not is_studied(cell):
        return (*FRAME, *MAIN)
    bare = BARE_PROBES if cell.adapter.name == BARE_ADAPTER else ()
    return (*FRAME, *MAIN, *RANKS, *SENSITIVITY, *PARTLY_DISTILLED, *DISTURBED, *bare)
