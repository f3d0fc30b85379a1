"""How long and how fast each member of the family learns; the seeds and forms are in `loraport_lab.family.family`."""

from collections.abc import Mapping
from dataclasses import dataclass

from loraport_lab.family.model import FAMILY_SIZE, Size
from loraport_lab.training.fit import Schedule


@dataclass(frozen=True)
class Rounds:
    """Training in rounds, each with its own rise and fall of the rate, until a round gains too little."""

    schedule: Schedule
    most: int
    gain: float
    """A round that lowers the held-out error by less than this share is the last."""


@dataclass(frozen=True)
class Recipe:
    """The size of the network and the schedules of all stages."""

    base: Schedule
    judge: Schedule
    students: Mapping[str, Schedule]
    matching: Schedule  # distribution matching, after its student's start by regression
    adapters: Mapping[str, Schedule]
    oracle: Rounds
    trajectories: int  # of the base, for the students
    styled: int  # of base + adapter, for its oracles
    held_out: int  # of the styled, kept to tell when to stop
    portion: int = 64  # trajectories sampled at a time
    accelerator_rank: int = 16
    size: Size = FAMILY_SIZE

    def last_schedule(self, student: str) -> Schedule:
        """Return the schedule that moves a student last."""
        return self.matching if student == "matched" else self.students[student]


_STYLE = Schedule(steps=240, rate=2e-3, batch=32)
_LONGER = Schedule(steps=300, rate=2e-3, batch=32)
SHIPPED = Recipe(
    base=Schedule(steps=7400, rate=1.2e-3, batch=32, average=0.998, warmup=150),
    judge=Schedule(steps=1600, rate=2e-3, batch=64),
    students={
        "one-step": Schedule(steps=400, rate=4e-4, batch=32),
        "few-step": Schedule(steps=400, rate=2.5e-5, batch=32),
        "causal": Schedule(steps=300, rate=2e-4, batch=32),
        "matched": Schedule(steps=150, rate=3e-5, batch=32),
        "accelerator": Schedule(steps=240, rate=2e-3, batch=32),
    },
    matching=Schedule(steps=300, rate=3e-5, batch=32),
    adapters={
        "noir": _STYLE,
        "retro": _STYLE,
        "neon": _LONGER,
        "swing": _LONGER,
        "noir-b": _STYLE,
    },
    oracle=Rounds(Schedule(steps=80, rate=1e-3, batch=16, average=0.97, warmup=20, fall=0.5), most=3, gain=0.03),
    trajectories=768,
    styled=256,
    held_out=48,
)
