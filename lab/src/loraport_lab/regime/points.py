"""The points of the map: bases of several widths, and students that left them by several amounts.

A point is a family of its own, of one student, in the folder layout that the rest of the lab reads; what it shares with
other points is linked into its folder. Imports nothing heavy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd
from pathlib import Path

from loraport_lab.family.family import ADAPTERS, STUDENTS, Adapter, Student
from loraport_lab.family.model import Size
from loraport_lab.training.fit import Schedule
from loraport_lab.training.recipe import SHIPPED, Recipe, Rounds

BLOCKS = 4
ADAPTERS_USED = ("noir", "swing")
"""A style, which touches colours alone, and a motion."""
STRENGTHS = (0.5, 2.0)
"""A smaller and a larger LoRA: the same one, multiplied; an oracle it has as it is alone."""
STRENGTH_POINTS = (("few-step", 1e-4), ("one-step", 5e-4))
"""The distillations whose last point is measured with these too."""


@dataclass(frozen=True)
class Base:
    """A base model: how wide, how long trained, from which seed; and how long its LoRAs are trained."""

    width: int
    steps: int
    seed: int = 0
    lora_length: int = 1
    """How many times as long its LoRAs are trained as others are."""

    @property
    def name(self) -> str:
        """A name for folders, such as `w128-t3000`."""
        seed = f"-seed{self.seed}" if self.seed else ""
        return f"w{self.width}-t{self.steps}{seed}" + (f"-loras-x{self.lora_length}" if self.lora_length > 1 else "")

    @property
    def with_usual_loras(self) -> Base:
        """The same base model, whose LoRAs are trained as long as others are."""
        return replace(self, lora_length=1)


def shipped_base() -> Base:
    """Return the base of the family that the lab ships."""
    return Base(SHIPPED.size.width, SHIPPED.base.steps)


@dataclass(frozen=True)
class Distillation:
    """How a student leaves its base: by which loss, how fast, and after how many steps one looks at it.

    The rate is constant, so that a shorter training is the beginning of a longer one, and one training gives a student
    for each number of steps.
    """

    student: str
    rate: float
    steps: tuple[int, ...]

    @property
    def name(self) -> str:
        """A name for folders, such as `few-step-1e-04`."""
        return f"{self.student}-{self.rate:.0e}"


@dataclass(frozen=True)
class Point:
    """One student: a base, a distillation, and the number of steps."""

    base: Base
    distillation: Distillation
    steps: int

    @property
    def name(self) -> str:
        """`base/distillation-steps`."""
        return f"{self.base.name}/{self.distillation.name}-t{self.steps}"

    @property
    def student(self) -> Student:
        """How its clips are sampled."""
        return STUDENTS[self.distillation.student]

    @property
    def before(self) -> Point | None:
        """The point at which the same training was looked at before."""
        earlier = [steps for steps in self.distillation.steps if steps < self.steps]
        return replace(self, steps=max(earlier)) if earlier else None


@dataclass(frozen=True)
class Scale:
    """What all points share: how long adapters and oracles learn, and on how many clips all is measured."""

    adapters: Schedule
    start: int
    """Steps of regression with which distribution matching begins."""
    oracle: Rounds
    warmup: int
    batch: int
    trajectories: int
    styled: int
    held_out: int
    clips: int
    judge: Schedule

    def recipe(self, base: Base, distillation: Distillation | None = None, steps: int = 0) -> Recipe:
        """Return the recipe of a base with its adapters, or of a student after so many steps."""
        students, matching = {}, SHIPPED.matching
        if distillation is not None:
            schedule = self._constant(distillation, steps)
            students, matching = {distillation.student: schedule}, schedule
            if STUDENTS[distillation.student].sampler == "renoise":
                start = replace(schedule, steps=self.start, save_every=self.start)
                students = {distillation.student: start}
        return Recipe(
            base=Schedule(steps=base.steps, rate=2e-3, batch=self.batch, average=0.998, warmup=min(150, base.steps)),
            judge=self.judge,
            students=students,
            matching=matching,
            adapters=dict.fromkeys(ADAPTERS, replace(self.adapters, steps=self.adapters.steps * base.lora_length)),
            oracle=self.oracle,
            trajectories=self.trajectories,
            styled=self.styled,
            held_out=self.held_out,
            size=Size(base.width, BLOCKS),
        )

    def _constant(self, distillation: Distillation, steps: int) -> Schedule:
        """Return a schedule that neither falls nor forgets to keep a checkpoint where one looks."""
        every = gcd(*distillation.steps)
        return Schedule(
            steps, distillation.rate, self.batch, average=0.98, warmup=self.warmup, fall=0.0, save_every=every
        )


SCALE = Scale(
    adapters=Schedule(steps=200, rate=2e-3, batch=32),
    start=60,
    oracle=Rounds(Schedule(steps=90, rate=1e-3, batch=16, average=0.96, warmup=15, fall=0.5), most=1, gain=0.03),
    warmup=30,
    batch=32,
    trajectories=384,
    styled=192,
    held_out=32,
    clips=64,
    judge=SHIPPED.judge,
)
_LOOKS = (60, 240)
_NARROW, _MIDDLE = Base(96, 2000), Base(128, 2000)
_WIDE = shipped_base()
_SHORT = Base(128, 1000)
_LONG_LORAS = replace(_MIDDLE, lora_length=3)
GRID: tuple[tuple[Base, Distillation], ...] = (
    *((_MIDDLE, Distillation("few-step", rate, _LOOKS)) for rate in (1e-4, 6e-4)),
    *((_MIDDLE, Distillation("one-step", rate, _LOOKS)) for rate in (1e-4, 5e-4)),
    *((_WIDE, Distillation("few-step", rate, _LOOKS)) for rate in (6e-4, 1e-4)),
    *((_WIDE, Distillation("one-step", rate, _LOOKS)) for rate in (1e-4, 1e-3)),
    *((_MIDDLE, Distillation("matched", rate, _LOOKS)) for rate in (2e-5, 2e-4)),
    *((_NARROW, Distillation("few-step", rate, _LOOKS)) for rate in (1e-4, 6e-4)),
    *((_NARROW, Distillation("one-step", rate, _LOOKS)) for rate in (1e-4, 5e-4)),
    *((_SHORT, Distillation("few-step", rate, _LOOKS)) for rate in (1e-4, 6e-4)),
    (_SHORT, Distillation("one-step", 5e-4, _LOOKS)),
    (_LONG_LORAS, Distillation("few-step", 1e-4, _LOOKS)),
    (_LONG_LORAS, Distillation("one-step", 5e-4, _LOOKS)),
    (_MIDDLE, Distillation("few-step", 2e-5, _LOOKS)),
    (_MIDDLE, Distillation("one-step", 3e-3, _LOOKS)),
)
"""In the order in which they are made: what says most comes first."""


@dataclass(frozen=True)
class MapCell:
    """One adapter at one strength on one student."""

    point: Point
    adapter: Adapter
    strength: float = 1.0


def points_of(grid: tuple[tuple[Base, Distillation], ...]) -> list[Point]:
    """Return the points in the order of the grid, the shorter trainings of a distillation first."""
    return [Point(base, how, steps) for base, how in grid for steps in sorted(how.steps)]


def cells_of(points: Sequence[Point]) -> list[MapCell]:
    """Return the cells of these points, in the order in which they are made."""
    return [
        MapCell(point, ADAPTERS[name], strength)
        for point in points
        for name in ADAPTERS_USED
        for strength in (1.0, *(STRENGTHS if _has_strengths(point) else ()))
    ]


def _has_strengths(point: Point) -> bool:
    how = point.distillation
    usual = point.base.lora_length == 1
    return usual and point.steps == max(how.steps) and (how.student, how.rate) in STRENGTH_POINTS


@dataclass(frozen=True)
class Places:
    """Where everything lies below one folder."""

    out: Path

    def base(self, base: Base) -> Path:
        """Return the folder of a base, its adapters and their trajectories."""
        return self.out / "bases" / base.name

    def point(self, point: Point) -> Path:
        """Return the folder of a point: a family of one student."""
        return self.out / "points" / point.name

    def cell(self, cell: MapCell) -> Path:
        """Return the file of what was measured of one adapter on one student."""
        return self.out / "cells" / cell.point.name / f"{cell.adapter.name}-{cell.strength:g}.json"

    @property
    def references(self) -> Path:
        """The folder of what base + adapter make."""
        return self.out / "references"
