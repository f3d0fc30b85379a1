"""The demo: every column samples the same prompts from the same noise, and every clip is measured."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from loraport.toy.adapters import attach
from loraport.toy.clips import describe, draw_prompts, from_latents
from loraport.toy.family import FAMILY, adapter_path, oracle_path
from loraport.toy.fit import generator_for
from loraport.toy.judge import open_judge
from loraport.toy.measure import METRICS, Metric, measure
from loraport.toy.model import draw_noise, open_model
from loraport.toy.sample import as_frames, sample_base, sample_student

Role = Literal["reference", "student", "direct", "transfer", "oracle"]


@dataclass(frozen=True)
class Column:
    """One way of making the clips: a model and the LoRA that is put on it."""

    label: str
    role: Role
    model: Literal["base", "student"]
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


def demo_columns(style: str, transferred: Path, method: str) -> tuple[Column, ...]:
    """The reference, the student without and with the LoRA as it is, with the transferred one, and the headroom."""
    columns = (
        Column("base + LoRA", "reference", "base", adapter_path(style)),
        Column("student", "student", "student", None),
        Column("student + LoRA as it is", "direct", "student", adapter_path(style)),
        Column(f"student + {method}", "transfer", "student", transferred),
        Column("student + LoRA trained on it", "oracle", "student", oracle_path(style)),
    )
    return tuple(column for column in columns if column.adapter is None or column.adapter.exists())


def run_demo(
    columns: Sequence[Column],
    *,
    style: str,
    clips: int = 32,
    seed: int = 0,
    family: Path = FAMILY,
    progress: Callable[[str, int, int], None] | None = None,
) -> DemoResult:
    """Sample and measure `columns`, the reference first. `progress` gets (label, columns done, columns)."""
    prompts = draw_prompts(clips, generator_for(seed, "demo", "prompts"))
    noise = draw_noise(clips, generator_for(seed, "demo", "noise"))
    judge = open_judge(family)
    results: list[ColumnResult] = []
    reference: Tensor | None = None
    for done, column in enumerate(columns):
        if progress is not None:
            progress(column.label, done, len(columns))
        began = time.monotonic()
        model = open_model(column.model, family)
        if column.adapter is not None:
            attach(model, column.adapter)
        sampler = sample_base if column.model == "base" else sample_student
        latents = torch.cat(
            [sampler(model, p, n) for p, n in zip(torch.split(prompts, 16), torch.split(noise, 16), strict=True)]
        )
        sampled = from_latents(latents).clamp(-1, 1)
        values = measure(judge, sampled, prompts, style, reference)
        reference = sampled if reference is None else reference
        took = time.monotonic() - began
        results.append(ColumnResult(column.label, column.role, as_frames(latents), values, took))
    known = tuple(metric for metric in METRICS if any(metric.key in result.values for result in results))
    return DemoResult(style, tuple(describe(prompt) for prompt in prompts), tuple(results), known, seed)
