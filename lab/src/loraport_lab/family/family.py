"""What is in the family: its students, its adapters, and where their files lie. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from loraport.errors import unknown_name

FAMILY = Path(__file__).parents[1] / "weights"


@dataclass(frozen=True)
class Student:
    """A distilled model: how it was made, and how clips are sampled from it."""

    name: str
    paradigm: str
    sampler: Literal["euler", "renoise", "streaming"]
    steps: tuple[int, ...]
    """Its own steps as numbers of the base's steps, each a noise level; the first, 0, is pure noise."""
    accelerator: bool = False
    """It is a LoRA on the base, not a checkpoint of its own."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA on the base: what it does, its scale (alpha / rank is deliberately not 1) and the form it is saved in."""

    name: str
    effect: str
    rank: int
    alpha: int
    seed: int
    file: str
    """A name ending in .safetensors is diffusers' form, any other a PEFT folder."""


STUDENTS = {
    student.name: student
    for student in (
        Student("few-step", "regression to segments of trajectories, four steps", "euler", (0, 3, 6, 8)),
        Student("matched", "distribution matching, two steps with fresh noise between them", "renoise", (0, 6)),
        Student("one-step", "regression to the ends of trajectories, one step", "euler", (0,)),
        Student("causal", "frame-causal attention, frame after frame, two steps each", "streaming", (0, 6)),
        Student("accelerator", "a LoRA of rank 16 on the base, two steps", "euler", (0, 6), accelerator=True),
    )
}
ADAPTERS = {
    adapter.name: adapter
    for adapter in (
        Adapter("noir", "noir", 8, 16, 0, "noir"),
        Adapter("retro", "retro", 8, 4, 0, "retro.safetensors"),
        Adapter("neon", "neon", 16, 8, 0, "neon.safetensors"),
        Adapter("swing", "swing", 8, 16, 0, "swing"),
        Adapter("noir-b", "noir", 16, 16, 1, "noir-b.safetensors"),
    )
}
MAIN_ADAPTERS = ("noir", "retro", "neon", "swing")
CELLS = (
    *((student, adapter) for student in ("few-step", "matched", "one-step") for adapter in MAIN_ADAPTERS),
    *((student, adapter) for student in ("causal", "accelerator") for adapter in ("noir", "swing")),
    *((student, "noir-b") for student in ("few-step", "one-step")),
)
"""The pairs (student, adapter) that have an oracle: the same adapter trained on the student."""


def find_student(name: str) -> Student:
    """Return the student of that name. Raises SettingsError for an unknown one."""
    if name not in STUDENTS:
        raise unknown_name("student", name, STUDENTS)
    return STUDENTS[name]


def find_adapter(name: str) -> Adapter:
    """Return the adapter of that name. Raises SettingsError for an unknown one."""
    if name not in ADAPTERS:
        raise unknown_name("adapter", name, ADAPTERS)
    return ADAPTERS[name]


def student_path(name: str, family: Path = FAMILY) -> Path:
    """Return the student's diffusers folder, or its LoRA file where it is an accelerator."""
    return family / "students" / (f"{name}.safetensors" if find_student(name).accelerator else name)


def target_place(name: str, family: Path = FAMILY) -> str:
    """Return the student as a transfer takes it for its target."""
    return f"{'source+' if find_student(name).accelerator else ''}{student_path(name, family)}"


def adapter_path(name: str, family: Path = FAMILY) -> Path:
    """Return where the LoRA that was trained on the base lies."""
    return family / "adapters" / find_adapter(name).file


def oracle_path(student: str, adapter: str, family: Path = FAMILY) -> Path:
    """Return where the same adapter trained on the student lies: not a transfer, but what a perfect one could reach."""
    return family / "oracles" / find_student(student).name / f"{find_adapter(adapter).name}.safetensors"


def embedded_place(name: str, family: Path = FAMILY) -> str:
    """Return the place that `toy:base`, `toy:STUDENT` (as a target) or `toy:ADAPTER` means; `name` without the prefix.

    Raises SettingsError for a name that the family does not have.
    """
    if name == "base":
        return str(family / "base")
    if name not in STUDENTS and name not in ADAPTERS:
        raise unknown_name("member of the embedded family", name, ("base", *STUDENTS, *ADAPTERS))
    return target_place(name, family) if name in STUDENTS else str(adapter_path(name, family))


BASE = FAMILY / "base"
"""A diffusers folder with its transformer/."""
