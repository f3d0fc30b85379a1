"""Train a family: `python -m loraport_lab.training.train --out FOLDER`.

Every stage leaves its result whole or not at all; a second start skips what is done and continues what was interrupted.
Stages that do not wait for each other run side by side (`--jobs`). The measured minutes are in docs/lab/family.md.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from loraport.cli.stopping import Stopped, listening
from loraport.errors import LoraportError, unknown_name
from loraport_lab.family.family import ADAPTERS, CELLS, STUDENTS, adapter_path, oracle_path, student_path
from loraport_lab.training.fit import LossReport
from loraport_lab.training.recipe import SHIPPED, Recipe
from loraport_lab.training.stages import (
    TrainingJob,
    keep_trajectories,
    train_adapter,
    train_base,
    train_judge,
    train_oracle,
    train_student,
)
from loraport_lab.workers import workers

Stage = Callable[[TrainingJob], None]


@dataclass(frozen=True)
class Step:
    """One stage: what it leaves, which stages must be done before it, and what it does."""

    result: Path
    after: tuple[str, ...]
    run: Stage


def plan(job: TrainingJob) -> dict[str, Step]:
    """Return all stages by name, in an order in which they could run one after the other."""
    out = job.out
    steps = {
        "base": Step(out / "base", (), train_base),
        "judge": Step(out / "judge.safetensors", (), train_judge),
        "trajectories": Step(out / "checkpoints/trajectories.done", ("base",), keep_trajectories),
    }
    for adapter in ADAPTERS.values():
        steps[adapter.name] = Step(adapter_path(adapter.name, out), ("base",), partial(train_adapter, adapter=adapter))
    for name, student in STUDENTS.items():
        steps[name] = Step(student_path(name, out), ("trajectories",), partial(train_student, student=student))
    for name, adapter in ADAPTERS.items():
        done = out / "checkpoints" / f"{name}-trajectories.done"
        steps[f"{name}-trajectories"] = Step(done, (name,), partial(keep_trajectories, adapter=adapter))
    for on, of in CELLS:
        stage = partial(train_oracle, student=STUDENTS[on], adapter=ADAPTERS[of])
        steps[f"{on}/{of}"] = Step(oracle_path(on, of, out), (on, f"{of}-trajectories"), stage)
    return steps


def needed(steps: Mapping[str, Step], wanted: Iterable[str]) -> dict[str, Step]:
    """Return the wanted stages, all that come before them, and the judge. Raises SettingsError for an unknown name."""
    names: set[str] = set()
    todo = ["judge", *wanted]
    while todo:
        name = todo.pop()
        if name not in steps:
            raise unknown_name("stage", name, steps)
        names.add(name)
        todo += steps[name].after
    return {name: step for name, step in steps.items() if name in names}


def train_family(job: TrainingJob, jobs: int = 1, only: Sequence[str] = ()) -> None:
    """Run the stages whose results are missing, or some and what they need, up to `jobs` of them side by side."""
    steps = needed(plan(job), only) if only else plan(job)
    left = {name: step for name, step in steps.items() if not step.result.exists()}
    if jobs == 1:
        for step in left.values():
            step.run(job)
        return
    running: dict[Future[None], str] = {}
    with workers(jobs) as submit:
        while left or running:
            for name in [name for name, step in left.items() if _ready(step, steps)]:
                running[submit(left.pop(name).run, job)] = name
            for finished in wait(running, return_when=FIRST_COMPLETED).done:
                running.pop(finished)
                finished.result()


def _ready(step: Step, steps: dict[str, Step]) -> bool:
    return all(steps[name].result.exists() for name in step.after)


@dataclass
class Printer:
    """Prints minutes, stage and a running mean of the loss, a line every fifty steps."""

    began: float
    mean: float | None = None

    def __call__(self, stage: str, step: int, steps: int, loss: float) -> None:
        self.mean = loss if self.mean is None or step == 1 else self.mean * 0.98 + loss * 0.02
        if step % 50 == 0 or step == steps:
            minutes = (time.time() - self.began) / 60
            print(f"{minutes:6.1f} min  {stage} {step}/{steps}  loss {self.mean:.4f}", file=sys.stderr, flush=True)


def training_job(
    out: Path,
    *,
    seed: int = 0,
    recipe: Recipe = SHIPPED,
    progress: LossReport | None = None,
    device: torch.device | None = None,
    compiled: bool = False,
) -> TrainingJob:
    """Return the job of making a family in a folder, by the shipped recipe, with lines on stderr.

    Without a device it is a card where there is one, else the processor.
    """
    found = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return TrainingJob(out, recipe, seed, progress or Printer(time.time()), device or found, compiled)


@contextmanager
def ending(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the program as its parser does where the work inside is refused or stopped by a signal."""
    try:
        with listening():
            yield
    except LoraportError as error:
        parser.error(str(error))
    except Stopped as stopped:
        parser.exit(128 + stopped.signal, f"{parser.prog}: {stopped}\n")


def main() -> None:
    """Parse the command line and run the stages."""
    parser = argparse.ArgumentParser(prog="python -m loraport_lab.training.train", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder of the family; started again, it continues")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="stages side by side, a core each")
    parser.add_argument(
        "--only", nargs="+", default=(), metavar="STAGE", help="such as one-step/retro: that and what it needs"
    )
    parser.add_argument("--device", help="cuda or cpu; without it a card where there is one")
    parser.add_argument(
        "--compiled", action="store_true", help="fuse the base's elementwise work: 30 % faster; needs a C++ compiler"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // arguments.jobs))
    with ending(parser):
        device = torch.device(arguments.device) if arguments.device else None
        job = training_job(arguments.out, seed=arguments.seed, device=device, compiled=arguments.compiled)
        train_family(job, arguments.jobs, arguments.only)


if __name__ == "__main__":
    main()
