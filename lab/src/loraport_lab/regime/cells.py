"""What is measured of one adapter on one student: clips of every row, and statistics of the weights."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from loraport.compute import layer_generator
from loraport.files.disk.atomic import write_whole
from loraport.inputs.rank import auto_rank
from loraport.lazy_property import lazy_property
from loraport.methods.layer import Layer
from loraport.methods.recipes import find_recipe
from loraport.plain_json import json_text
from loraport.spectral.low_rank import cosine
from loraport_lab.bench.agreement import content
from loraport_lab.bench.evaluate import added, as_clips
from loraport_lab.bench.material import EVALUATION_SEEDS, Cell, Material, SharedNoise, draw
from loraport_lab.bench.premises import premises
from loraport_lab.family.family import oracle_path
from loraport_lab.family.judge import open_judge
from loraport_lab.family.measure import measure
from loraport_lab.family.model import open_base
from loraport_lab.family.sample import in_portions, sample_base, sample_student
from loraport_lab.regime.points import MapCell, Places
from loraport_lab.training.fit import save_whole

METHODS = {
    "direct": "direct",
    **{f"{name}, rank 2r": name for name in ("restore-only", "arbitrate-only", "undo:0.25", "undo-orthogonal:0.25")},
    **{name: name for name in ("casa", "restore-only", "arbitrate-only", "core", "prolora")},
    "casa, full rank": "casa",
    **{f"undo:{amount}": f"undo:{amount}" for amount in (0.1, 0.25, 0.5, 1)},
}
"""Row -> method. `casa`, `prolora` and what ends in `rank 2r` are cut to the rank of a file, twice the LoRA's."""
CUT = ("casa", "prolora", *(row for row in METHODS if row.endswith(", rank 2r")))
METRICS = ("psnr", "effect", "content")
Updates = Mapping[str, Tensor]


@dataclass(frozen=True)
class Subject:
    """One adapter at one strength on one student, in the folder of its point."""

    cell: MapCell
    folder: Path
    clips: int
    device: torch.device

    @lazy_property
    def material(self) -> Material:
        """The opened weights."""
        return Material(Cell(self.cell.point.student, self.cell.adapter), self.folder)

    @lazy_property
    def layers(self) -> Mapping[str, Layer]:
        """Every layer as a transfer sees it, with the adapter at its strength."""
        layers = self.material.layers
        return {name: replace(layer, lora=layer.lora.scaled(self.cell.strength)) for name, layer in layers.items()}

    @lazy_property
    def noise(self) -> SharedNoise:
        """Prompts and noise, the same for all subjects."""
        return draw(EVALUATION_SEEDS, self.clips)

    @property
    def has_oracle(self) -> bool:
        """Whether the same adapter was trained on the student; at another strength it was not."""
        path = oracle_path(self.cell.point.student.name, self.cell.adapter.name, self.folder)
        return self.cell.strength == 1 and path.exists()

    def rows(self) -> Iterable[tuple[str, Updates]]:
        """Yield the rows: what is added to the student's weights."""
        yield "student", {}
        if self.has_oracle:
            yield "oracle", {name: low.dense() for name, low in self.material.oracle.items()}
        for row, method in METHODS.items():
            yield row, transferred(method, self.layers, cut=row in CUT)

    def reference(self, places: Places) -> Tensor:
        """Return the clips of base + adapter, from the base's own sampling; kept for all students of the base."""
        name = f"{self.cell.point.base.name}-{self.cell.adapter.name}-{self.cell.strength:g}-{self.clips}.pt"
        file = places.references / name
        if not file.exists():
            model = open_base(self.folder).to(self.device)
            with added(model, self._on_device({name: layer.lora.dense() for name, layer in self.layers.items()})):
                latents = [sample_base(model, *portion).cpu() for portion in self._portions()]
            save_whole(torch.cat(latents), file)
        return as_clips(torch.load(file, weights_only=True))

    def sample(self, model: WanTransformer3DModel, updates: Updates) -> Tensor:
        """Return clips of the student with these updates added to its weights."""
        with added(model, self._on_device(updates)):
            latents = [sample_student(model, self.cell.point.student, *portion).cpu() for portion in self._portions()]
        return as_clips(torch.cat(latents))

    def _portions(self) -> Iterable[tuple[Tensor, ...]]:
        return in_portions([self.noise.prompts, self.noise.noise.to(self.device)])

    def _on_device(self, updates: Updates) -> Updates:
        return {name: update.to(self.device) for name, update in updates.items()}


def transferred(method: str, layers: Mapping[str, Layer], *, cut: bool) -> Updates:
    """Return a method's updates, dense; where they are `cut`, at the rank that a file of it would have."""
    recipe = find_recipe(method)
    updates = {}
    for name, layer in layers.items():
        update = recipe(layer)
        if cut and not update.is_low_rank:
            rank = auto_rank(layer.lora.rank, low_rank=False)
            updates[name] = update.factorized(rank, layer_generator(0, name)).dense()
        else:
            updates[name] = update.dense()
    return updates


def measure_cell(subject: Subject, places: Places, file: Path) -> None:
    """Measure all rows and all statistics, and write them whole."""
    reference, judge = subject.reference(places), open_judge(subject.folder)
    model, effect = subject.material.student().to(subject.device), subject.cell.adapter.effect
    rows: dict[str, dict[str, list[float]]] = {}
    for row, updates in subject.rows():
        values = measure(judge, subject.sample(model, updates), subject.noise.prompts, effect, reference)
        values["content"] = content(values)
        rows[row] = {metric: [round(float(value), 4) for value in values[metric]] for metric in METRICS}
    facts = {"prompts": subject.noise.words, "rows": rows, "statistics": statistics(subject.layers)}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_whole(file, (json_text(facts, indent=1) + "\n").encode())


def statistics(layers: Mapping[str, Layer]) -> dict[str, float]:
    """Return the premises of the method and the alignment of LoRA and drift, as means over layers."""
    each = {key: values.tolist() for key, values in premises(layers).items()}
    each["cosine"] = [cosine(layer.lora, layer.drift) for layer in layers.values()]
    known = {key: [value for value in values if value is not None and value == value] for key, values in each.items()}
    return {key: sum(values) / len(values) for key, values in known.items() if values}


def read_cell(file: Path) -> dict[str, Any]:
    """Return what `measure_cell` wrote."""
    facts: dict[str, Any] = json.loads(file.read_text())
    return facts
