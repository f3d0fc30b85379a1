"""One row on one cell: clips from the noise that all rows share, and what is measured on them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from loraport.files.names.lookup import layer_in
from loraport.lazy_property import lazy_property
from loraport.sampling.choice.guard import decide
from loraport.sampling.end_error import NO_UPDATES, EndEffect
from loraport.sampling.hooks import adapted
from loraport.sampling.pair import Clips
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.sampling.score import compare, judged_clips
from loraport.store.keyed import Entry
from loraport_lab.bench.admission import COMPARED, Admission, admit
from loraport_lab.bench.calibration import open_pair, reference_updates
from loraport_lab.bench.material import ADMISSION_SEEDS, EVALUATION_SEEDS, TUNING_SEEDS, Material, SharedNoise, draw
from loraport_lab.bench.premises import premises
from loraport_lab.bench.rows import AS_TRAINED, FRAME, AdapterUse, Row, Rule, is_studied
from loraport_lab.bench.store import Store
from loraport_lab.family.adapters import attach
from loraport_lab.family.clips import from_latents
from loraport_lab.family.family import adapter_path
from loraport_lab.family.judge import open_judge
from loraport_lab.family.measure import measure, psnr
from loraport_lab.family.model import open_base
from loraport_lab.family.sample import as_frames, in_portions, sample_base, sample_student

SHOWN = 6  # clips of a row that are kept to be looked at


@dataclass(frozen=True)
class RowResult:
    """A row's result: metric -> one value a clip; texture features [clips, 48]; the first clips as frames; facts.

    `end`, the end error, is measured on clips of its own. facts: size, ‖D'‖ / ‖D‖ over all layers, and chosen, the
    candidate that won on the tuning seeds or that the guard kept.
    """

    row: str
    group: str
    against: str
    values: Mapping[str, Tensor]
    features: Tensor
    frames: Tensor
    facts: Mapping[str, object]


@dataclass(frozen=True)
class Session:
    """All that the rows of one cell share: weights, noise, reference clips, finished parts."""

    material: Material
    store: Store
    reference_store: Store
    """Apart from the rows', since all students share the clips of base + adapter."""
    clips: int
    calibration: bool = False

    @lazy_property
    def evaluation(self) -> SharedNoise:
        """The noise of everything that is reported."""
        return draw(EVALUATION_SEEDS, self.clips)

    @lazy_property
    def tuning(self) -> SharedNoise:
        """The noise on which candidates are chosen."""
        return draw(TUNING_SEEDS, max(2, self.clips // 3))

    def reference(self, shared: SharedNoise, seeds: Sequence[int], use: AdapterUse = AS_TRAINED) -> Tensor:
        """Return clips of base + adapter by the base's own sampling: [clips, 3, frames, size, size] in [-1, 1]."""
        adapter, family = self.material.cell.adapter.name, self.material.family
        place, key = f"reference/{adapter}", f"{len(shared.prompts)} clips, seeds {tuple(seeds)}, {use}"
        part = self.reference_store.get(place, key)
        if part is None:
            base = open_base(family)
            model = attach(base, adapter_path(adapter, family)) if use == AS_TRAINED else base
            with adapted(model, {} if use == AS_TRAINED else reference_updates(self.material, use)):
                latents = [sample_base(model, *portion) for portion in in_portions([shared.prompts, shared.noise])]
            part = Entry({"latents": torch.cat(latents)})
            self.reference_store.put(place, key, part)
        return as_clips(part.tensors["latents"])

    @lazy_property
    def admission_reference(self) -> Tensor:
        """The reference clips of the seeds on which cells are admitted."""
        return self.reference(draw(ADMISSION_SEEDS, self.clips), ADMISSION_SEEDS)

    @lazy_property
    def references(self) -> tuple[Tensor, Tensor]:
        """The reference clips of the evaluation and of the tuning seeds."""
        return self.reference(self.evaluation, EVALUATION_SEEDS), self.reference(self.tuning, TUNING_SEEDS)

    @lazy_property
    def admission(self) -> Admission:
        """Whether the cell can tell methods apart, decided on clips of its own."""
        place, key = f"admission/{self.material.cell.name}", f"{COMPARED}; {self.clips} clips, seeds {ADMISSION_SEEDS}"
        part = self.store.get(place, key)
        shared = draw(ADMISSION_SEEDS, self.clips)
        if part is None:
            reference = self.admission_reference
            rows = {row.name: row for row in FRAME if row.name in COMPARED}
            part = Entry({name: psnr(self.clips_of(row, shared), reference) for name, row in rows.items()})
            self.store.put(place, key, part)
        return admit(part.tensors, shared.words)

    @lazy_property
    def premises(self) -> Mapping[str, Tensor]:
        """What the method supposes of weights, drift and adapter, layer by layer."""
        place = f"premises/{self.material.cell.name}"
        part = self.store.get(place, "premises")
        if part is None:
            part = Entry(premises(self.material.layers))
            self.store.put(place, "premises", part)
        return part.tensors

    def clips_of(self, row: Row, shared: SharedNoise) -> Tensor:
        """Return clips of a row of the frame: [clips, 3, frames, size, size]."""
        model = self.student if row.model == "student" else self.material.base()
        return as_clips(self.sample(model, row.rule(self.material), shared))

    @lazy_property
    def student(self) -> WanTransformer3DModel:
        """The student, opened once."""
        return self.material.student()

    def run(self, row: Row) -> RowResult:
        """Return the row's result, from the store or computed now."""
        place, key = f"rows/{self.material.cell.name}", f"{row.key}; {self.clips} clips"
        part = self.store.get(place, key)
        if part is None:
            part = self._make(row)
            self.store.put(place, key, part)
        values = {name.removeprefix("value."): t for name, t in part.tensors.items() if name.startswith("value.")}
        if row.has_end and self.has_ends:
            values["end"] = self._end(row, part.facts["chosen"])
        features, frames = part.tensors["features"], part.tensors["frames"]
        return RowResult(row.name, row.group, row.against, values, features, frames, part.facts)

    @property
    def has_ends(self) -> bool:
        """Whether the rows' end error is measured: it costs as much as the rows themselves."""
        return self.calibration or is_studied(self.material.cell)

    def _end(self, row: Row, chosen: str | None) -> Tensor:
        """Return the row's end errors, from the store or measured now."""
        place, key = f"ends/{self.material.cell.name}", f"{row.key}; {self._end_clips} clips"
        part = self.store.get(place, key)
        if part is None:
            part = Entry({"end": self.end_errors(self.reported_effect, self._updates(row, chosen))})
            self.store.put(place, key, part)
        return part.tensors["end"]

    def _updates(self, row: Row, chosen: str | None) -> Mapping[str, Tensor]:
        """Return the updates of a row, or of the candidate that was chosen for it."""
        return (row.candidates[chosen] if row.candidates and chosen else row.rule)(self.material)

    def _make(self, row: Row) -> Entry:
        chosen = self._choose(row) if row.candidates else None
        updates = self._updates(row, chosen)
        model = self.student if row.model == "student" else self.material.base()
        latents = self.sample(model, updates, self.evaluation)
        clips, judge = as_clips(latents), open_judge(self.material.family)
        effect = self.material.cell.adapter.effect
        alone = row.use == AS_TRAINED
        reference = self.references[0] if alone else self.reference(self.evaluation, EVALUATION_SEEDS, row.use)
        values = measure(judge, clips, self.evaluation.prompts, effect, reference)
        tensors = {f"value.{name}": value for name, value in values.items()}
        features = judge.style_features(clips).detach()
        account = {} if row.account is None else dict(row.account(self.material))
        facts = {"size": _relative_size(updates, self.material), "chosen": chosen, **account}
        return Entry({**tensors, "features": features, "frames": as_frames(latents[:SHOWN])}, facts)

    @lazy_property
    def guard_effect(self) -> EndEffect:
        """The end error on the clips that a guard draws."""
        return self._effect(judged_clips(self._end_clips))

    @lazy_property
    def reported_effect(self) -> EndEffect:
        """The end error on clips that no fit and no guard has seen."""
        return self._effect(self.end_clips)

    @property
    def end_clips(self) -> Clips:
        """The clips on which the end error of a row is reported."""
        return Clips("lab", 0, self._end_clips)

    @property
    def _end_clips(self) -> int:
        return max(2, 2 * self.clips // 3)

    def _effect(self, clips: Clips) -> EndEffect:
        pair = open_pair(self.material.cell.student.name, self.material.family)
        return EndEffect(pair, self.material.adapter, clips, SampleStore(self.material.scratch), PassCounter(1))

    def end_errors(self, effect: EndEffect, updates: Mapping[str, Tensor]) -> Tensor:
        """Return the end error of each clip: [clips]."""
        model: WanTransformer3DModel = effect.pair.network()
        with added(model, updates):
            return effect.errors(NO_UPDATES)

    def _choose(self, row: Row) -> str:
        return self._most_faithful(row) if row.choice == "fidelity" else self._kept_by_the_guard(row)

    def _kept_by_the_guard(self, row: Row) -> str:
        """Return the candidate of the lowest end error if that is surely below direct reuse's, else direct reuse."""
        rules = row.candidates or {}
        errors = {name: self.end_errors(self.guard_effect, rule(self.material)) for name, rule in rules.items()}
        bare, prompts = self.end_errors(self.guard_effect, {}), self.guard_effect.pair.prompts(self.guard_effect.clips)
        return decide(compare(errors, errors["direct"], bare, prompts), self._end_clips).kept

    def _most_faithful(self, row: Row) -> str:
        """Return the candidate of the highest mean fidelity on the tuning seeds."""

        def fidelity(rule: Rule) -> float:
            clips = as_clips(self.sample(self.student, rule(self.material), self.tuning))
            return float(psnr(clips, self.references[1]).mean())

        return max(row.candidates or {}, key=lambda name: fidelity((row.candidates or {})[name]))

    def sample(self, model: WanTransformer3DModel, updates: Mapping[str, Tensor], shared: SharedNoise) -> Tensor:
        """Return latents by the student's own sampling with these updates on the model's weights."""
        student = self.material.cell.student
        with added(model, updates):
            portions = in_portions([shared.prompts, shared.noise])
            return torch.cat([sample_student(model, student, *portion) for portion in portions])


@contextmanager
def added(model: WanTransformer3DModel, updates: Mapping[str, Tensor]) -> Iterator[None]:
    """Add these updates to the model's weights; afterwards the weights are what they were, bit by bit."""
    weights = {name: model.get_submodule(layer_in(name, "diffusers") or name).weight for name in updates}
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    with torch.no_grad():
        try:
            for name, weight in weights.items():
                weight.add_(updates[name])
            yield
        finally:
            for name, weight in weights.items():
                weight.copy_(before[name])


def as_clips(latents: Tensor) -> Tensor:
    """Return latents as clips in [-1, 1]."""
    return from_latents(latents).clamp(-1, 1)


def _relative_size(updates: Mapping[str, Tensor], material: Material) -> float:
    """Return ‖D'‖ / ‖D‖ over all layers."""
    energy = sum(float(update.square().sum()) for update in updates.values())
    lora_energy = sum(layer.lora.norm() ** 2 for layer in material.layers.values())
    return float((energy / lora_energy) ** 0.5)
