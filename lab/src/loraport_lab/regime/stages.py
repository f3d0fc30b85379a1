"""The stages of the map, by the family's own: each leaves its result whole or not at all, and is not done twice."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loraport.files.disk.atomic import new_file
from loraport_lab.family.family import ADAPTERS, BASE, Adapter, adapter_path, oracle_path, student_path
from loraport_lab.family.judge import JUDGE_FILE
from loraport_lab.regime.points import ADAPTERS_USED, Base, Places, Point, Scale
from loraport_lab.training.fit import LossReport
from loraport_lab.training.stages import (
    TrainingJob,
    keep_trajectories,
    train_adapter,
    train_base,
    train_judge,
    train_oracle,
    train_student,
)


@dataclass(frozen=True)
class Workshop:
    """Where the map is made, at which scale, on which device."""

    places: Places
    scale: Scale
    device: torch.device
    progress: LossReport

    def make_base(self, base: Base) -> Path:
        """Make a base, the judge, the adapters and all trajectories that students and oracles learn from."""
        folder = self.places.base(base)
        job = TrainingJob(folder, self.scale.recipe(base), base.seed, self.progress, self.device)
        if base.lora_length > 1:
            origin = self.make_base(base.with_usual_loras)
            for name in (BASE.name, JUDGE_FILE, "checkpoints/trajectories", "checkpoints/trajectories.done"):
                _link(folder / name, origin / name)
        _unless(folder / BASE.name, train_base, job)
        _unless(folder / JUDGE_FILE, self._bring_judge, job)
        _unless(folder / "checkpoints/trajectories.done", keep_trajectories, job)
        for adapter in (ADAPTERS[name] for name in ADAPTERS_USED):
            _unless(adapter_path(adapter.name, folder), train_adapter, job, adapter)
            _unless(folder / "checkpoints" / f"{adapter.name}-trajectories.done", keep_trajectories, job, adapter)
        return folder

    def make_student(self, point: Point) -> Path:
        """Make a point's student, going on from where its training was looked at before; return the point's folder."""
        family = self.make_base(point.base)
        folder = self.places.point(point)
        if student_path(point.student.name, folder).exists():
            return folder
        checkpoints = folder / "checkpoints"
        checkpoints.mkdir(parents=True, exist_ok=True)
        shared = ["trajectories", *(f"{name}-trajectories" for name in ADAPTERS_USED)]
        for name in (BASE.name, JUDGE_FILE, "adapters", *(f"checkpoints/{name}" for name in shared)):
            _link(folder / name, family / name)
        if point.base.lora_length > 1:  # a student does not know the LoRAs
            origin = self.make_student(replace(point, base=point.base.with_usual_loras))
            _link(folder / "students", origin / "students")
            return folder
        if point.before is not None:
            self._continue_from(self.make_student(point.before) / "checkpoints", checkpoints)
        train_student(self._job(point, folder), point.student)
        return folder

    def make_oracle(self, point: Point, adapter: Adapter) -> Path:
        """Train the adapter on the point's student; return the point's folder."""
        folder = self.make_student(point)
        path = oracle_path(point.student.name, adapter.name, folder)
        _unless(path, train_oracle, self._job(point, folder), point.student, adapter)
        return folder

    def _job(self, point: Point, folder: Path) -> TrainingJob:
        recipe = self.scale.recipe(point.base, point.distillation, point.steps)
        return TrainingJob(folder, recipe, point.base.seed, self.progress, self.device)

    def _continue_from(self, before: Path, checkpoints: Path) -> None:
        """Begin with the checkpoints of the shorter training, unless this one is under way."""
        for file in sorted(before.glob("*.pt")):
            if not (checkpoints / file.name).exists():
                with new_file(checkpoints / file.name) as copy:
                    copy.write(file.read_bytes())

    def _bring_judge(self, job: TrainingJob) -> None:
        """Take the one judge of all points, trained by whoever needs it first."""
        judge = self.places.out / "judge" / JUDGE_FILE
        judge.parent.mkdir(parents=True, exist_ok=True)
        _unless(judge, train_judge, TrainingJob(judge.parent, job.recipe, 0, self.progress, torch.device("cpu")))
        _link(job.out / JUDGE_FILE, judge)


def _unless(result: Path, stage: Callable[..., None], *arguments: object) -> None:
    if not result.exists():
        stage(*arguments)


def _link(place: Path, to: Path) -> None:
    """Link one place of a point's folder to what it shares, by a relative path, so that all can be moved together.

    Where links are not allowed (Windows asks for a privilege), it is copied.
    """
    if place.is_symlink() or place.exists():
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        place.symlink_to(os.path.relpath(to.resolve(), place.parent.resolve()), target_is_directory=to.is_dir())
    except OSError:
        (shutil.copytree if to.is_dir() else shutil.copy2)(to, place)
