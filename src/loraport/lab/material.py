"""What the lab works on: the pairs of student and adapter, their weights, and the clips that are drawn for all rows."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from loraport.errors import InputError
from loraport.methods import Layer
from loraport.runs.config import TransferConfig
from loraport.runs.execute import Prepared, prepare
from loraport.runs.layer import read_weights
from loraport.spectral.svd import LowRank, decompose
from loraport.toy.clips import draw_prompts
from loraport.toy.family import (
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
from loraport.toy.fit import generator_for
from loraport.toy.model import open_base, open_student, prepared
from loraport.toy.sample import draw_noise
from loraport.weights.lora import read_lora

EVALUATION_SEEDS = (11, 12, 13)
TUNING_SEEDS = (7,)
"""Whatever is chosen is chosen on clips of these seeds; what is reported comes from the others."""
TUNING_CELL = ("one-step", "noir")
"""The pair on which defaults and ranges were looked at; its numbers are marked wherever pairs are pooled."""


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


def all_cells(family: Path) -> tuple[Cell, ...]:
    """The pairs of the family. Raises InputError where a file of one of them is missing."""
    cells = tuple(Cell(STUDENTS[student], ADAPTERS[adapter]) for student, adapter in CELLS)
    for cell in cells:
        names = cell.student.name, cell.adapter.name
        for path in (student_path(names[0], family), adapter_path(names[1], family), oracle_path(*names, family)):
            if not path.exists():
                raise InputError(
                    f"{path} is missing; finish the family with: python -m loraport.toy.train --out {family}"
                )
    return cells


@dataclass(frozen=True)
class Drawn:
    """Prompts and noise that every row of a cell shares."""

    prompts: Tensor
    noise: Tensor


def draw(seeds: Sequence[int], clips: int) -> Drawn:
    """`clips` clips in all, as many from each seed; the same for every cell, so that cells can be compared."""
    looks = max(len(student.looks) for student in STUDENTS.values())
    each = [clips // len(seeds) + (place < clips % len(seeds)) for place in range(len(seeds))]
    prompts = [
        draw_prompts(count, generator_for(seed, "lab", "prompts")) for seed, count in zip(seeds, each, strict=True)
    ]
    noise = [
        draw_noise(count, generator_for(seed, "lab", "noise"), looks) for seed, count in zip(seeds, each, strict=True)
    ]
    return Drawn(torch.cat(prompts), torch.cat(noise))


@dataclass(frozen=True)
class Material:
    """The opened weights of one cell, read by the same code as a transfer's."""

    cell: Cell
    family: Path

    @cached_property
    def ready(self) -> Prepared:
        """The opened files and their plan."""
        places = (str(adapter_path(self.cell.adapter.name, self.family)), str(self.family / BASE.name))
        return prepare(TransferConfig(*places, target_place(self.cell.student.name, self.family), "unused.safetensors"))

    @cached_property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer that the adapter touches, with the bases of both weights."""
        found = {}
        for job in self.ready.plan.of("transfer"):
            weights = read_weights(job, self.ready.source, self.ready.target, keep_target=True)
            target = weights.W_s + weights.drift
            layer = Layer(self.ready.lora.layers[job.name], weights.drift, decompose(weights.W_s), decompose(target))
            found[job.name] = layer
        return found

    @cached_property
    def oracle(self) -> Mapping[str, LowRank]:
        """The updates of the same adapter trained on the student."""
        return read_lora(str(oracle_path(self.cell.student.name, self.cell.adapter.name, self.family))).layers

    def student(self) -> WanTransformer3DModel:
        """The student, ready for sampling."""
        return open_student(self.cell.student.name, self.family)

    def base(self) -> WanTransformer3DModel:
        """The base, ready for the student's sampling."""
        return prepared(open_base(self.family), self.cell.student)


def family_digest(family: Path) -> str:
    """One hash over all files of a family, without what is only left from its making."""
    digest = hashlib.sha256()
    for path in sorted(path for path in family.rglob("*") if path.is_file()):
        place = path.relative_to(family)
        if place.parts[0] != "checkpoints":
            digest.update(f"{place}\n".encode() + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
