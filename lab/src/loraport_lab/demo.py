"""The demo: every column samples the same prompts from the same noise, and every clip is measured."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from loraport.progress import NO_PROGRESS, Progress
from loraport_lab.family.adapters import attach
from loraport_lab.family.clips import describe, draw_prompts, from_latents
from loraport_lab.family.family import FAMILY, STUDENTS, adapter_path, find_adapter, find_student, oracle_path
from loraport_lab.family.judge import open_judge
from loraport_lab.family.measure import METRICS, Metric, measure
from loraport_lab.family.model import open_base, open_student
from loraport_lab.family.sample import as_frames, draw_noise, in_portions, sample_base, sample_student
from loraport_lab.training.fit import generator_for

MOST_STEPS = max(len(student.steps) for student in STUDENTS.values())
Role = Literal["reference", "student", "direct", "transfer", "oracle"]


@dataclass(frozen=True)
class Column:
    """One way of making the clips: a model (`base`, or a student's name) and the LoRA that is put on it."""

    label: str
    role: Role
    model: str
    adapter: Path | None


@dataclass(frozen=True)
class ColumnResult:
    """The clips of one column, uint8 [n, frames, height, width, 3], and metric key -> one value per clip."""

    label: str
    role: Role
    frames: Tensor
    values: dict[str, Tensor]
    seconds: float


@dataclass(frozen=True)
class DemoResult:
    """All columns over the same prompts and noise; the first is the reference the others are measured against."""

    style: str
    prompts: tuple[str, ...]
    columns: tuple[ColumnResult, ...]
    metrics: tuple[Metric, ...]
    seed: int


def demo_columns(adapter: str, transferred: Path, method: str, student: str = "one-step") -> tuple[Column, ...]:
    """Return the columns: the reference, the student alone, with the LoRA as it is, transferred, and trained on it."""
    oracle = oracle_path(student, adapter)
    columns = (
        Column("base + LoRA", "reference", "base", adapter_path(adapter)),
        Column("student", "student", student, None),
        Column("student + LoRA as it is", "direct", student, adapter_path(adapter)),
        Column(f"student + {method}", "transfer", student, transferred),
        Column("student + LoRA trained on it", "oracle", student, oracle),
    )
    return tuple(column for column in columns if column.role != "oracle" or oracle.exists())


def run_demo(
    columns: Sequence[Column],
    *,
    adapter: str,
    clips: int = 32,
    seed: int = 0,
    family: Path = FAMILY,
    progress: Progress = NO_PROGRESS,
) -> DemoResult:
    """Sample and measure `columns`, the reference first."""
    effect, judge = find_adapter(adapter).effect, open_judge(family)
    prompts = draw_prompts(clips, generator_for(seed, "demo", "prompts"))
    noise = draw_noise(clips, generator_for(seed, "demo", "noise"), MOST_STEPS)
    results: list[ColumnResult] = []
    reference: Tensor | None = None
    for done, column in enumerate(columns):
        progress.step(column.label, done, len(columns))
        began = time.monotonic()
        latents = _sample(column, prompts, noise, family)
        sampled = from_latents(latents).clamp(-1, 1)
        values = measure(judge, sampled, prompts, effect, reference)
        reference = sampled if reference is None else reference
        took = time.monotonic() - began
        results.append(ColumnResult(column.label, column.role, as_frames(latents), values, took))
    known = tuple(metric for metric in METRICS if any(metric.key in result.values for result in results))
    return DemoResult(effect, tuple(describe(prompt) for prompt in prompts), tuple(results), known, seed)


def _sample(column: Column, prompts: Tensor, noise: Tensor, family: Path) -> Tensor:
    model = open_base(family) if column.model == "base" else open_student(column.model, family)
    if column.adapter is not None:
        attach(model, column.adapter)
    if column.model == "base":
        portions = [sample_base(model, *portion) for portion in in_portions([prompts, noise])]
    else:
        student = find_student(column.model)
        portions = [sample_student(model, student, *portion) for portion in in_portions([prompts, noise])]
    return torch.cat(portions)
