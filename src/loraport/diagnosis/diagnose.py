"""Diagnose a pair and a LoRA from their weights: do they fit, what is the drift like, and which method to take."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraport.analysis.inputs import exact_factors
from loraport.diagnosis.commands import next_command
from loraport.diagnosis.look import LayerLook, chosen_layers, look_at
from loraport.diagnosis.relation import Relation, by_names, by_weights
from loraport.diagnosis.result import Diagnosis, Keys
from loraport.diagnosis.rule.advice import NOT_THIS_PAIR, Advice, advise
from loraport.diagnosis.rule.traits import Traits, traits_of
from loraport.errors import MismatchError
from loraport.estimates.estimate import estimate
from loraport.files.accelerator_names import fitted
from loraport.files.inspect import looks_like_lora
from loraport.files.lora.read import read_lora
from loraport.inputs.accelerator import AcceleratedModel, split_target
from loraport.inputs.batch import becomes_folder
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import TransferInputs, prepare_many
from loraport.inputs.plan import LayerJob
from loraport.inputs.rank import common_rank
from loraport.parallel.at_once import read_ahead
from loraport.progress import NO_PROGRESS, Progress
from loraport.sampling.providers import known_place
from loraport.transfers.advice import quantized_kinds
from loraport.transfers.layer_source import LayerSource, LayerWeights

COMPARING = "comparing the models"


@dataclass(frozen=True)
class Named:
    """The inputs as the user named them, and where they lie."""

    lora: str
    source: str
    target: str
    config: TransferConfig


def diagnose(
    lora: str | Path,
    source: str | Path,
    target: str | Path,
    *,
    exact: bool = False,
    device: str = "auto",
    cache: str | None = None,
    source_part: str | None = None,
    target_part: str | None = None,
    lora_part: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> Diagnosis:
    """Say what the weights of a pair and a LoRA speak for; nothing is sampled and nothing written.

    A sample of the layers is looked at, or all with `exact`. A pair that does not fit is a verdict, `not-this-pair`.
    Raises InputError for files that cannot be read.
    """
    words = [os.fspath(place) for place in (lora, source, target)]
    words[2] = fitted(words[2], words[1])
    place, model, distilled = (known_place(word) for word in words)
    config = TransferConfig(
        place, model, distilled, "diagnosis.safetensors", device=device, cache=cache, source_part=source_part,
        target_part=target_part, lora_part=lora_part,
    )  # fmt: skip
    return diagnose_transfer(config, Named(words[0], words[1], words[2], config), exact=exact, progress=progress)


def diagnose_transfer(
    config: TransferConfig, named: Named | None = None, *, exact: bool = False, progress: Progress = NO_PROGRESS
) -> Diagnosis:
    """Do the same for the inputs of a transfer that is configured already."""
    start = time.perf_counter()
    named = named or Named(config.lora, config.source, config.target, config)
    if (early := _not_models(named)) is not None:
        return early
    try:
        inputs = prepare_many([config], progress)[0]
    except MismatchError as error:
        return _not_this_pair(named, str(error), _unmatched(config))
    jobs = inputs.plan.of("transfer")
    keys = _keys(inputs, jobs)
    if not jobs:
        return _not_this_pair(named, "no layer of the LoRA is in both models", keys)
    looked = Looked.at(inputs, jobs, exact=exact, progress=progress)
    told = looked.diagnosis(named, keys)
    return replace(told, seconds=time.perf_counter() - start)


@dataclass(frozen=True)
class Looked:
    """The layers of a pair that were looked at."""

    inputs: TransferInputs
    looks: tuple[LayerLook, ...]
    exact: bool
    rank: int

    @classmethod
    def at(
        cls, inputs: TransferInputs, jobs: Sequence[LayerJob], *, exact: bool, progress: Progress
    ) -> Looked:  # fmt: skip
        """Look at some of the layers, or at all."""
        source = LayerSource.open(inputs)
        chosen, closely = chosen_layers(jobs, exact=exact)
        rank = common_rank(inputs.config, inputs.plan)

        def read(job: LayerJob) -> LayerWeights:
            return source.read(job.name, keep_weights=True, with_target=True)

        looks = []
        for number, (job, weights) in enumerate(read_ahead(chosen, read), 1):
            lora = exact_factors(job.name, inputs.lora.updates[job.name], weights.W_s)
            looks.append(look_at(job.name, weights, lora, rank, closely=job.name in closely, exact=exact))
            progress.advance(COMPARING, number, len(chosen), job.name)
        return cls(inputs, tuple(looks), exact, rank)

    @property
    def beside(self) -> bool:
        """Whether the target is the source with an accelerator beside it."""
        target = self.inputs.target
        return isinstance(target, AcceleratedModel) and target.on_source

    def diagnosis(self, named: Named, keys: Keys) -> Diagnosis:
        """Return what they say."""
        traits, config = self.traits(), self.inputs.config
        relation = self.relation(named)
        if relation.swapped or not relation.is_base:
            advice = Advice(NOT_THIS_PAIR, relation.words, relation.sure, "direct", advise(traits).regime, False)
        else:
            advice = advise(traits)
        folder = becomes_folder(config)
        command = next_command(named.lora, named.source, named.target, advice, relation, folder=folder)
        notes = (*self.inputs.plan.warnings, *_partly(keys, config))
        return Diagnosis(
            named.lora, named.source, named.target, keys, advice, command, relation, traits, self.looks, self.exact,
            self.rank, self.kept(), self.estimate(advice), notes,
        )  # fmt: skip

    def estimate(self, advice: Advice) -> dict[str, float | int]:
        """Return what a transfer by the advised method will take."""
        return estimate([replace(self.inputs, config=replace(self.inputs.config, method=advice.method))]).as_json()

    def relation(self, named: Named) -> Relation:
        """Return what source and target are to each other: names win over weights, but not over strangers."""
        of_names = by_names(named.source, named.target, self.inputs.lora.metadata)
        of_weights = by_weights(self.looks, beside=self.beside)
        if of_names is not None and not of_names.is_base:
            return of_names
        if of_names is not None and of_weights.swapped:
            return of_names
        if of_names is not None and of_weights.is_base:
            return replace(of_weights, words=f"{of_names.words}; {of_weights.words}")
        return of_weights

    def traits(self) -> Traits:
        """Return the means over the layers that moved."""
        return traits_of(
            [look.traits for look in self.looks],
            of=len(self.inputs.plan.of("transfer")),
            beside=self.beside,
            quantized=quantized_kinds(self.inputs),
        )

    def kept(self) -> dict[str, float | None]:
        """Return what the default rank keeps of the corrections, every layer by the size of its drift."""
        return {"casa": self._kept("kept"), "undo:0.25": self._kept("undone")}

    def _kept(self, name: str) -> float | None:
        pairs = [(value, look.moved) for look in self.looks if (value := getattr(look, name)) is not None]
        whole = sum(size for _, size in pairs)
        return sum(value * size for value, size in pairs) / whole if whole else None


def _keys(inputs: TransferInputs, jobs: Sequence[LayerJob]) -> Keys:
    layers = inputs.lora.layers
    matched = sum(len(layers[job.name].keys) for job in jobs)
    return Keys(sum(len(layer.keys) for layer in layers.values()), matched, len(layers), len(jobs))


def _unmatched(config: TransferConfig) -> Keys:
    lora = read_lora(config.lora, keep=False, part=config.lora_part)
    return Keys(sum(len(layer.keys) for layer in lora.layers.values()), 0, len(lora.layers), 0)


def _partly(keys: Keys, config: TransferConfig) -> list[str]:
    """Return a note where a method does not move all layers."""
    if keys.matched_layers == keys.layers:
        return []
    return [
        f"{keys.layers - keys.matched_layers} of the LoRA's {keys.layers} layers are moved by no method between these "
        "models: they are copied, carried over or dropped, which `loraport transfer --dry-run` lists"
    ]


def _not_models(named: Named) -> Diagnosis | None:
    """Return the verdict where a LoRA was given as a model; None where both may be models."""
    config = named.config
    if split_target(config.target) is None and looks_like_lora(config.target):
        why = (
            f"the target {Path(config.target).name} is a LoRA, not a model: an accelerator is used beside its base, so "
            f"the target is written 'source+{named.target}*1'"
        )
        command = next_command(named.lora, named.source, f"source+{named.target}*1")
        return _not_this_pair(named, why, _unmatched(config), command)
    if looks_like_lora(config.source):
        why = (
            f"the source {Path(config.source).name} is a LoRA, not a model: give the model that {named.lora} was "
            "trained on"
        )
        return _not_this_pair(named, why, _unmatched(config))
    return None


def _not_this_pair(named: Named, why: str, keys: Keys, command: str | None = None) -> Diagnosis:
    advice = Advice(NOT_THIS_PAIR, why, 1.0, "direct", "unknown", False)
    command = command or next_command(named.lora, named.source, named.target, advice)
    return Diagnosis(named.lora, named.source, named.target, keys, advice, command)
