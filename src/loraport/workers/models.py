"""The models of a run as one worker has them: opened pairs, a wave's LoRAs, and layers that stay in memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from loraport.batches.checks import prepare_portion
from loraport.compute import is_out_of_memory, weights_device
from loraport.errors import InputError, LoraportError
from loraport.estimates.card_memory import bytes_in_work, bytes_kept, room_on_card
from loraport.estimates.layer_cost import CARD, PROCESSOR, layer_seconds
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import TransferInputs, check_names
from loraport.inputs.plan import LayerJob
from loraport.lazy_property import lazy_property
from loraport.progress import NO_PROGRESS
from loraport.transfers.journal import LayerStore
from loraport.transfers.layer_source import LayerSource, LayerWeights
from loraport.transfers.run import Run, new_run
from loraport.workers.fingerprint import FileSamples, job_key, layer_identity, part_name
from loraport.workers.plan import RunPlan


@dataclass(frozen=True)
class OpenJob:
    """One job with its opened LoRA and models."""

    number: int
    run: Run[LayerStore]
    key: str
    """Of all that its parts depend on beside the layers' weights."""
    identities: Mapping[str, str]
    """Layer -> what its weights in both models are, by names, sizes and samples of the files."""

    @property
    def inputs(self) -> TransferInputs:
        """The opened inputs, and which layers are moved."""
        return self.run.inputs

    @lazy_property
    def layers(self) -> Mapping[str, LayerJob]:
        """The layers that are moved; each is a part."""
        return {job.name: job for job in self.inputs.plan.of("transfer")}

    @lazy_property
    def seconds(self) -> Mapping[str, float]:
        """Layer -> what it takes beside what all jobs of a wave share, on the machine where layers were measured."""
        return {
            name: layer_seconds(job.shape, self.inputs.config.recipe, PROCESSOR).own
            for name, job in self.layers.items()
        }

    @lazy_property
    def parts(self) -> Mapping[str, str]:
        """Layer -> the name of its part in a store."""
        return {name: part_name(self.key, self.identities[name], name) for name in self.layers}


@dataclass(frozen=True)
class OpenWave:
    """Jobs that go through the layers together."""

    number: int
    jobs: Mapping[int, OpenJob]
    refused: Mapping[int, str]
    """Jobs that cannot be opened, with the reason."""
    layers: LayerSource | None
    """None where nothing could be opened."""

    @lazy_property
    def names(self) -> tuple[str, ...]:
        """The layers of all jobs."""
        return tuple(dict.fromkeys(name for job in self.jobs.values() for name in job.layers))

    def having(self, layer: str) -> list[OpenJob]:
        """Return the jobs that move a layer, in the order of the plan."""
        return [job for job in self.jobs.values() if layer in job.layers]


def shared_seconds(shape: tuple[int, int], jobs: Sequence[OpenJob], *, card: bool) -> float:
    """Return what a layer takes once for all jobs of a wave."""
    device = CARD if card else PROCESSOR
    return max(layer_seconds(shape, job.inputs.config.recipe, device).shared for job in jobs)


def room_for_layers(device: str, sharing: int = 1) -> int:
    """Return how many bytes layers may take of a card that so many workers share.

    On a processor bases are in the cache on the disk, and the memory is every worker's: no layer stays.
    """
    found = weights_device(device)
    return room_on_card(found) // sharing if found.type == "cuda" else 0


class OpenModels:
    """Opens what a worker needs of a plan, and keeps no more than it may.

    One wave is open at a time; its LoRAs are read layer by layer. Layers stay in memory, with bases and routing, while
    all of them fit into `resident_bytes` beside the one in work, which is taken in any case.
    """

    def __init__(
        self, plan: RunPlan, *, device: str = "auto", cache: str | None = None, resident_bytes: int = 0
    ) -> None:
        self.plan, self.device, self.cache = plan, device, cache
        self.resident_bytes = resident_bytes
        self.samples = FileSamples()
        self._wave: OpenWave | None = None
        self._alone: OpenJob | None = None
        self._resident: OrderedDict[tuple[Any, ...], tuple[LayerWeights, int]] = OrderedDict()

    @property
    def torch_device(self) -> torch.device:
        """What layers are computed on."""
        return weights_device(self.device)

    def set_threads(self) -> None:
        """Compute with as many threads as the plan says, in the thread that asks."""
        if torch.get_num_threads() != self.plan.machine.threads:
            torch.set_num_threads(self.plan.machine.threads)

    def wave(self, number: int, leave: Collection[int] = ()) -> OpenWave:
        """Return an opened wave; `leave`: jobs that need not be opened.

        Jobs whose LoRA or models cannot be used are in its `refused`.
        """
        if self._wave is None or self._wave.number != number:
            self._wave = None  # what it held goes first
            self._wave = self._open(number, [job for job in self.plan.waves[number].jobs if job not in leave])
        return self._wave

    def close_wave(self) -> None:
        """Let go of the open wave, so that it is opened anew: a file may have come or been mended."""
        self._wave = self._alone = None

    def job(self, number: int) -> OpenJob:
        """Return one opened job: of the open wave, else by itself. Raises InputError where it cannot be opened."""
        if self._wave is not None and number in self._wave.jobs:
            return self._wave.jobs[number]
        if self._alone is None or self._alone.number != number:
            opened = self._open(self.plan.wave_of[number], [number])
            if number in opened.refused:
                raise InputError(opened.refused[number])
            self._alone = opened.jobs[number]
        return self._alone

    def twins(self, job: OpenJob) -> list[int]:
        """Return the other jobs of the open wave that have the same parts: the same LoRA under another name."""
        beside = () if self._wave is None else self._wave.jobs.values()
        return [one.number for one in beside if one.key == job.key and one.number != job.number]

    def layer(self, job: OpenJob, name: str) -> LayerWeights:
        """Return the weights of a layer of a job's models, from memory or read now. Raises InputError."""
        wave = self._wave if self._wave is not None and job.number in self._wave.jobs else None
        beside = [job] if wave is None else wave.having(name)
        kept = any(one.layers[name].kind != "LoRA" or one.run.transfer_layer.looks_itself(name) for one in beside)
        with_target = any(one.run.transfer_layer.recipe.needs_target for one in beside)
        key = (job.identities[name], job.inputs.config.force_drift, kept, with_target)
        shape, there = job.layers[name].shape, self._resident.pop(key, None)
        working = bytes_in_work(shape)
        while self._resident and sum(own for _, own in self._resident.values()) + working > self.resident_bytes:
            self._resident.popitem(last=False)
        if there is not None:
            self._resident[key] = there  # as the one that was asked for last
            return there[0]
        source = self._source(job, wave)
        recipes = [one.run.transfer_layer.recipe for one in beside]
        stored = source.load(
            name, basis=any(recipe.needs_basis for recipe in recipes),
            routing=any(recipe.needs_routing for recipe in recipes),
        )  # fmt: skip
        weights = source.weights(stored, keep_weights=kept, with_target=with_target)
        self._resident[key] = weights, bytes_kept(shape)
        return weights

    def make_room(self, error: Exception) -> None:
        """Let go of all layers where an error says that memory ran out, before what failed is tried again."""
        if is_out_of_memory(error):
            self._resident.clear()
            torch.cuda.empty_cache()

    def is_resident(self, job: OpenJob, name: str) -> bool:
        """Return whether a layer is in memory."""
        identity = job.identities[name]
        return any(key[0] == identity for key in self._resident)

    def _source(self, job: OpenJob, wave: OpenWave | None) -> LayerSource:
        return LayerSource.open(job.inputs) if wave is None or wave.layers is None else wave.layers

    def own(self, config: TransferConfig) -> TransferConfig:
        """Return a job's configuration with this worker's device and cache."""
        return replace(config, device=self.device, cache=self.cache)

    def _open(self, number: int, numbers: Sequence[int]) -> OpenWave:
        configs = {self.plan.jobs[one].name: one for one in numbers}
        ready, wrong = (
            prepare_portion(tuple(self.own(self.plan.jobs[one].config) for one in numbers), NO_PROGRESS, None, True)
            if numbers
            else ((), [])
        )
        refused = {configs[one.output]: one.reason for one in wrong}
        jobs: dict[int, OpenJob] = {}
        identities: dict[str, str] = {}  # the same for all: they have the same models
        for inputs in ready:
            at = configs[inputs.config.output]
            try:
                check_names(inputs)
            except LoraportError as error:
                refused[at] = str(error)
                continue
            for job in inputs.plan.of("transfer"):
                if job.name not in identities:
                    identities[job.name] = layer_identity(inputs, job.name, self.samples)
            run: Run[LayerStore] = new_run(inputs, LayerStore())
            jobs[at] = OpenJob(at, run, job_key(inputs, self.plan.machine), identities)
        first = next(iter(jobs.values()), None)
        return OpenWave(number, jobs, refused, None if first is None else LayerSource.open(first.inputs))
