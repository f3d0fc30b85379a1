"""What the lab works on: the pairs of student and adapter, their weights, and the clips that are drawn for all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from loraport.errors import InputError
from loraport.files.adapters.updates import LayerUpdate
from loraport.files.lora.read import read_lora
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import TransferInputs, prepare
from loraport.lazy_property import lazy_property
from loraport.methods.layer import Layer
from loraport.spectral.low_rank import LowRank
from loraport.transfers.layer_source import LayerSource
from loraport_lab.family.clips import describe, draw_prompts
from loraport_lab.family.family import (
    ADAPTERS,
    BASE,
    CELLS,
    STUDENTS,
    Adapter,
    Student,
    adapter_path,
    oracle_path,
    student_path,
    target_place,
)
from loraport_lab.family.judge import JUDGE_FILE
from loraport_lab.family.model import open_base, open_student, prepared
from loraport_lab.family.sample import draw_noise
from loraport_lab.training.fit import generator_for

EVALUATION_SEEDS = (11, 12, 13)
TUNING_SEEDS = (7,)
"""Choices are made on clips of these seeds; what is reported comes from the evaluation seeds."""
ADMISSION_SEEDS = (21, 22, 23)
"""Which cells can tell methods apart is decided on clips of these seeds: a cell admitted by a lucky draw of the
reported clips would bias the numbers of every method on it."""
TUNING_CELL = ("one-step", "noir")
"""The pair on which defaults and ranges were chosen; it is marked, and left out where pairs are pooled."""


@dataclass(frozen=True)
class Cell:
    """One adapter on one student."""

    student: Student
    adapter: Adapter

    @property
    def name(self) -> str:
        """`student/adapter`."""
        return f"{self.student.name}/{self.adapter.name}"

    @property
    def tuned(self) -> bool:
        """Whether something was chosen by looking at this pair."""
        return (self.student.name, self.adapter.name) == TUNING_CELL


def all_cells() -> tuple[Cell, ...]:
    """Return the pairs of student and adapter that every family has."""
    return tuple(Cell(STUDENTS[student], ADAPTERS[adapter]) for student, adapter in CELLS)


@dataclass(frozen=True)
class SharedNoise:
    """Prompts and noise that every row of a cell shares."""

    prompts: Tensor
    noise: Tensor

    @property
    def words(self) -> tuple[str, ...]:
        """The prompts in words, by which clips that share one are known."""
        return tuple(map(describe, self.prompts))


def draw(seeds: Sequence[int], clips: int) -> SharedNoise:
    """Draw `clips` clips in all, as many from each seed; the same for every cell, so that cells can be compared."""
    steps = max(len(student.steps) for student in STUDENTS.values())
    each = [clips // len(seeds) + (place < clips % len(seeds)) for place in range(len(seeds))]
    prompts = [
        draw_prompts(count, generator_for(seed, "lab", "prompts")) for seed, count in zip(seeds, each, strict=True)
    ]
    noise = [
        draw_noise(count, generator_for(seed, "lab", "noise"), steps) for seed, count in zip(seeds, each, strict=True)
    ]
    return SharedNoise(torch.cat(prompts), torch.cat(noise))


@dataclass(frozen=True)
class Material:
    """The opened weights of one cell, read by the same code as a transfer's."""

    cell: Cell
    family: Path
    scratch: Path | None = None
    """Where samples of the calibration are kept; nowhere without it."""
    beside: tuple[str, ...] = ()
    """Other adapters that its rows need."""

    @property
    def adapter(self) -> Mapping[str, LowRank]:
        """The adapter's updates, as it was trained on the base."""
        return adapter_updates(self.cell.adapter.name, self.family)

    @lazy_property
    def ready(self) -> TransferInputs:
        """The opened files and their plan."""
        places = (str(adapter_path(self.cell.adapter.name, self.family)), str(self.family / BASE.name))
        return prepare(
            TransferConfig(
                *places, target_place(self.cell.student.name, self.family), "unused.safetensors", device="cpu"
            )
        )

    @lazy_property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer that the adapter touches, as a transfer sees it."""
        source = LayerSource.open(self.ready)
        return {
            job.name: source.read(job.name, with_target=True).layer(
                _plain(job.name, self.ready.lora.updates[job.name]), target=True, routing=True
            )
            for job in self.ready.plan.of("transfer")
        }

    @lazy_property
    def oracle(self) -> Mapping[str, LowRank]:
        """The updates of the same adapter trained on the student."""
        place = str(oracle_path(self.cell.student.name, self.cell.adapter.name, self.family))
        return {name: _plain(name, update) for name, update in read_lora(place).updates.items()}

    def student(self) -> WanTransformer3DModel:
        """Open the student, ready for sampling."""
        return open_student(self.cell.student.name, self.family)

    def base(self) -> WanTransformer3DModel:
        """Open the base, ready for the student's sampling."""
        return prepared(open_base(self.family), self.cell.student)

    @property
    def paths(self) -> Mapping[str, Path]:
        """The files and folders that the cell's numbers depend on, by the stage of training that leaves them.

        Raises InputError where one is missing.
        """
        student, adapter = self.cell.student.name, self.cell.adapter.name
        paths = {
            "base": self.family / BASE.name,
            "judge": self.family / JUDGE_FILE,
            student: student_path(student, self.family),
            self.cell.name: oracle_path(student, adapter, self.family),
            **{name: adapter_path(name, self.family) for name in (adapter, *self.beside)},
        }
        missing = [stage for stage, path in paths.items() if not path.exists()]
        if missing:
            line = f"python -m loraport_lab.training.train --out {self.family} --only {' '.join(missing)}"
            raise InputError(f"{paths[missing[0]]} is missing; train it, with the family's --seed: {line}")
        return paths

    def digest(self, *, reference: bool = False) -> str:
        """One hash over the contents of those files, or of the two that base + adapter needs."""
        digest = hashlib.sha256()
        stages = ("base", self.cell.adapter.name) if reference else self.paths
        for path in (self.paths[stage] for stage in stages):
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file():
                    digest.update(f"{file.relative_to(self.family)} {file.stat().st_size}\n".encode())
                    digest.update(file.read_bytes())
        return digest.hexdigest()


def adapter_updates(name: str, family: Path) -> Mapping[str, LowRank]:
    """Read an adapter's updates, as it was trained on the base."""
    layers = read_lora(str(adapter_path(name, family))).updates
    return {layer: _plain(layer, update) for layer, update in layers.items()}


def _plain(name: str, update: LayerUpdate) -> LowRank:
    if not isinstance(update, LowRank):
        raise InputError(f"layer {name} of a family's adapter is not a plain LoRA; train the family again")
    return update
