"""The demo: every column samples the same prompts from the same noise, and every clip is measured."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from loraport.clips.clip import Clip
from loraport.evaluation.metrics.efficientnet import PACKAGE
from loraport.evaluation.metrics.own import APPEARANCE, OWN_METRICS
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport_lab.family.adapters import attach
from loraport_lab.family.clips import ATTRIBUTES, describe, draw_prompts, from_latents, visible
from loraport_lab.family.family import FAMILY, STUDENTS, adapter_path, find_adapter, find_student, oracle_path
from loraport_lab.family.judge import Judge, open_judge
from loraport_lab.family.measure import METRICS, Metric, measure
from loraport_lab.family.model import open_base, open_student
from loraport_lab.family.sample import as_frames, draw_noise, in_portions, sample_base, sample_student
from loraport_lab.training.fit import generator_for

MOST_STEPS = max(len(student.steps) for student in STUDENTS.values())
Role = Literal["reference", "student", "direct", "transfer", "beside", "oracle"]
Sampler = Callable[[Tensor, Tensor], Tensor]


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


@dataclass(frozen=True)
class DemoResult:
    """All columns over the same prompts and noise; the first is the reference the others are measured against."""

    style: str
    student: str
    prompts: tuple[str, ...]
    columns: tuple[ColumnResult, ...]
    metrics: tuple[Metric, ...]
    seed: int
    order: tuple[int, ...]
    """The clips' numbers as they are shown, first those of the reference that fulfil their prompts best."""
    styles: Mapping[str, Tensor] = field(default_factory=dict)
    """What `loraport evaluate` gives for the style of the clips shown first, in percent, by the column's label."""


def demo_columns(adapter: str, student: str, transferred: dict[str, Path], *, bare: bool = False) -> list[Column]:
    """Return the columns: the reference, the LoRA as it is, as each method moves it, and trained on the student.

    `transferred` is {method: file}, the method in question first, one to put beside it second. `bare` adds the student
    without a LoRA; the column of the trained LoRA is there where the family has one.
    """
    columns = [Column("base + LoRA", "reference", "base", adapter_path(adapter))]
    if bare:
        columns.append(Column("student alone", "student", student, None))
    columns.append(Column("LoRA as it is", "direct", student, adapter_path(adapter)))
    roles: tuple[Role, Role] = ("transfer", "beside")
    for role, (method, file) in zip(roles, transferred.items(), strict=False):
        columns.append(Column(method, role, student, file))
    oracle = oracle_path(student, adapter)
    if oracle.exists():
        columns.append(Column("trained on the student", "oracle", student, oracle))
    return columns


def run_demo(
    columns: Sequence[Column],
    *,
    adapter: str,
    clips: int,
    seed: int = 0,
    evaluated: int = 0,
    family: Path = FAMILY,
    progress: Progress = NO_PROGRESS,
) -> DemoResult:
    """Sample and measure `columns`, the reference first; so many of their clips also as `loraport evaluate` does."""
    effect, judge = find_adapter(adapter).effect, open_judge(family)
    prompts = draw_prompts(clips, generator_for(seed, "demo", "prompts"))
    noise = draw_noise(clips, generator_for(seed, "demo", "noise"), MOST_STEPS)
    with _threads() as pool:
        latents = _sample_all(columns, prompts, noise, family, pool, progress)
        clips_made = [from_latents(one).clamp(-1, 1) for one in latents]
        references = [None, *clips_made[:1] * (len(columns) - 1)]
        work = [
            pool.submit(measure, judge, made, prompts, effect, reference)
            for made, reference in zip(clips_made, references, strict=True)
        ]
        values = [one.result() for one in work]
    results = [
        ColumnResult(column.label, column.role, as_frames(one), numbers)
        for column, one, numbers in zip(columns, latents, values, strict=True)
    ]
    known = tuple(metric for metric in METRICS if any(metric.key in result.values for result in results))
    student = next((column.model for column in columns if column.model != "base"), "base")
    order = tuple(surest(judge, clips_made[0], prompts, effect))  # no other column has a say in what is shown first
    styles = evaluate_styles(results, order[:evaluated], progress)
    return DemoResult(effect, student, tuple(map(describe, prompts)), tuple(results), known, seed, order, styles)


@torch.no_grad()
def surest(judge: Judge, clips: Tensor, prompts: Tensor, effect: str) -> list[int]:
    """Return the clips' numbers, first those in which the judge is surest of all that the prompt asks for."""
    scores = judge.content_scores(clips)
    asked = torch.stack(
        [
            scores[attribute].double().log_softmax(1).gather(1, prompts[:, [column]])[:, 0]
            for column, attribute in enumerate(ATTRIBUTES)
            if attribute in visible(effect)
        ]
    )  # doubles: of most clips the judge is too sure for a difference in float32
    return [int(clip) for clip in asked.sum(0).argsort(descending=True, stable=True)]


def evaluate_styles(
    columns: Sequence[ColumnResult], clips: Sequence[int], progress: Progress = NO_PROGRESS
) -> dict[str, Tensor]:
    """Return the style of these clips of each column as `loraport evaluate` measures it, label -> [clips].

    The first column is the reference. Nothing where the package with the network's weights is not installed.
    """
    score = next(metric.score for metric in OWN_METRICS if metric.name == "style")
    if not clips or score is None or find_spec(PACKAGE) is None:
        return {}
    look = APPEARANCE.open((), "cpu")
    report = counter(progress, "evaluating clips", len(columns) * len(clips))
    styles, references = {}, []
    for column in columns:
        readings = []
        for frames in column.frames[list(clips)].numpy():
            readings.append(look(Clip(frames), None, None))
            report(1, column.label)
        if column.role == "reference":
            references = readings
        else:
            pairs = zip(readings, references, strict=True)
            styles[column.label] = torch.tensor([score(own, reference) for own, reference in pairs])
    return styles


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Lend a thread a core, each with kernels of one thread: no number depends on how many cores there are."""
    cores = torch.get_num_threads()
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(cores, initializer=partial(torch.set_num_threads, 1))
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(cores)


def _sample_all(
    columns: Sequence[Column],
    prompts: Tensor,
    noise: Tensor,
    family: Path,
    pool: ThreadPoolExecutor,
    progress: Progress,
) -> list[Tensor]:
    """Return the latents of every column; a few clips of one column are the work of one core at a time."""
    samplers = [_sampler(column, family) for column in columns]
    portions = list(in_portions([prompts, noise]))
    report = counter(progress, "making clips", len(columns) * len(portions))
    work = [[pool.submit(sampler, *portion) for portion in portions] for sampler in samplers]
    latents = []
    for column, parts in zip(columns, work, strict=True):
        done = []
        for part in parts:
            done.append(part.result())
            report(1, column.label)
        latents.append(torch.cat(done))
    return latents


def _sampler(column: Column, family: Path) -> Sampler:
    """Open the column's model with its LoRA on it."""
    model = open_base(family) if column.model == "base" else open_student(column.model, family)
    if column.adapter is not None:
        attach(model, column.adapter)
    if column.model == "base":
        return partial(sample_base, model)
    return partial(sample_student, model, find_student(column.model))
