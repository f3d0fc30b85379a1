"""Open the inputs of transfers, pair their layers, check their outputs: all that can be refused before the work."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from loraport.compute import ON_PROCESSOR, find_device, weights_device
from loraport.errors import LoraportError, MismatchError, OutputError, SettingsError
from loraport.files.disk.free_space import check_free_space
from loraport.files.disk.protect_inputs import ProtectedInputs, protect_inputs
from loraport.files.lora.provenance import accumulated_loss
from loraport.files.lora.read import Lora, read_lora
from loraport.files.lora.write import check_form, nameless_layers, output_dialect
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.layout import assumed_layout, parse_layouts, settled_layouts
from loraport.files.models.presets import Opener, open_model
from loraport.files.names.blocks import layer_role
from loraport.files.names.dialects import Dialect
from loraport.files.whole_weights import as_differences, carried_note
from loraport.inputs.accelerator import SOURCE, AcceleratedPlace, Target, open_target, split_target, target_places
from loraport.inputs.batch import counter_drift_place
from loraport.inputs.config import LAYOUT_ROLES, TransferConfig
from loraport.inputs.extras import fit_extras
from loraport.inputs.pairing import Pairing, differ_in_depth, find_pairing
from loraport.inputs.plan import Plan, check_families, make_plan
from loraport.parametrizations.port import carry_or_drop, differ_in_form
from loraport.parametrizations.time_path import TimePath, read_time_path
from loraport.progress import NO_PROGRESS, Progress
from loraport.store.bases import BasisCache
from loraport.store.basis_source import BasisSource

Made = TypeVar("Made")


@dataclass(frozen=True)
class TransferInputs:
    """The opened inputs of a run and its plan."""

    config: TransferConfig
    lora: Lora
    source: Checkpoint
    target: Target
    plan: Plan
    pairing: Pairing | None = None
    """Set if layers were paired by similarity: the source and the LoRA have the names of the target's layers then."""


def prepare(config: TransferConfig) -> TransferInputs:
    """Read the LoRA, open both models (headers only), pair their layers. Raises InputError for whatever is wrong."""
    return prepare_many([config])[0]


def prepare_many(
    configs: Sequence[TransferConfig], progress: Progress = NO_PROGRESS, *, open_model: Opener = open_model
) -> tuple[TransferInputs, ...]:
    """Do the same for several runs between the same models; each LoRA is read once, and kept if it is the only one.

    `open_model`: how models are opened; one that reads headers alone will do for a plan.
    Raises InputError for whatever is wrong with any of them, naming every LoRA that is refused; SettingsError if their
    models, device or cache differ, or two would write the same file.
    """
    ready, refused = prepare_each(configs, progress, open_model=open_model)
    if refused:
        raise refusal_of(refused, len(configs))
    return ready


@dataclass(frozen=True)
class Refusal:
    """A run that cannot begin or go on, and why."""

    config: TransferConfig
    error: LoraportError


def refusal_of(refused: Sequence[Refusal], count: int) -> LoraportError:
    """Return the one error for all of `count` runs that are refused; each LoRA is named once, with its reason."""
    reasons = {f"{one.config.lora}\n{one.error}": one for one in refused}
    first = next(iter(reasons.values())).error
    if len(reasons) == 1:
        return first
    lines = [
        str(one.error) if one.config.lora in str(one.error) else f"{one.config.lora}: {one.error}"
        for one in reasons.values()
    ]
    return type(first)("\n  ".join([f"{len(refused)} of {count} transfers cannot be made, so none was begun:", *lines]))


def prepare_each(
    configs: Sequence[TransferConfig], progress: Progress = NO_PROGRESS, *, open_model: Opener = open_model
) -> tuple[tuple[TransferInputs, ...], tuple[Refusal, ...]]:
    """Do the same; what is wrong with one of the LoRAs is returned, and the others are prepared.

    Raises InputError for what concerns them all: models that cannot be opened, settings that differ.
    """
    if not configs:
        raise SettingsError("there is nothing to transfer; give at least one LoRA and one method")
    _check_together(configs)
    first = configs[0]
    places = list(dict.fromkeys(config.lora for config in configs))
    several = len(places) > 1
    wrong: dict[str, LoraportError] = {}

    def each(make: Callable[[str], Made], which: Iterable[str]) -> dict[str, Made]:
        made = {}
        for place in which:
            try:
                with _errors_name(place, several):
                    made[place] = make(place)
            except LoraportError as error:
                wrong[place] = error
        return made

    loras = each(lambda place: _read(place, first, keep=not several), places)
    batch = []
    if loras:
        source, target = _open_models(first, loras.values(), open_model)
        pairing, source, target = _by_similarity(first, loras.values(), source, target, progress, open_model)
        if pairing is not None:
            where = target.where
            loras = {place: pairing.of(lora, where) for place, lora in loras.items()}
        loras = each(lambda place: as_differences(loras[place], source), loras)
        paths = _time_paths(first, loras.values(), source, target)
        loras = each(lambda place: fit_extras(carry_or_drop(loras[place], *paths), target), loras)
    refused = [Refusal(config, wrong[config.lora]) for config in configs if config.lora in wrong]
    for config in configs:
        if config.lora not in loras:
            continue
        try:
            with _errors_name(config.lora, several):
                batch.append(_paired(config, loras[config.lora], source, target, pairing))
        except LoraportError as error:
            refused.append(Refusal(config, error))
    order = {config.output: number for number, config in enumerate(configs)}
    return tuple(batch), tuple(sorted(refused, key=lambda one: order[one.config.output]))


def _read(place: str, config: TransferConfig, *, keep: bool) -> Lora:
    qkv = parse_layouts(config.qkv, LAYOUT_ROLES).get("lora")
    return read_lora(place, diffs=config.transfer_diffs, keep=keep, part=config.lora_part, qkv=qkv)


def _open_models(config: TransferConfig, loras: Iterable[Lora], open_model: Opener) -> tuple[Checkpoint, Target]:
    """Open both models, of which no more is needed than what the LoRAs touch."""
    layers = None if split_target(config.target) else touched_layers(loras)
    source = open_model(config.source, part=config.source_part, layers=layers)
    target = open_target(
        config.target, source, part=config.target_part, layers=layers, lora_part=_accelerator_part(config),
        open_model=open_model,
    )  # fmt: skip
    check_families(source, target)
    asked, touched = parse_layouts(config.qkv, LAYOUT_ROLES), touched_layers(loras) or set()
    if isinstance(target, Checkpoint):
        return settled_layouts(source, target, asked, touched)
    if target.on_source:
        source = assumed_layout(source, asked.get("source"), "source")
        return source, replace(target, model=source)
    source, model = settled_layouts(source, target.model, asked, touched)
    return source, replace(target, model=model)


def _time_paths(
    config: TransferConfig, loras: Iterable[Lora], source: Checkpoint, target: Target
) -> tuple[TimePath | None, TimePath | None]:
    """Return what both models' modulation layers see, where they store them in different forms; else None of both."""
    model = target if isinstance(target, Checkpoint) else target.model
    if not (source.is_here and is_here(model)) or not any(differ_in_form(lora, source, model) for lora in loras):
        return None, None
    place: str = config.target
    place = place.model if isinstance(place, AcceleratedPlace) else (split_target(place) or (place,))[0]
    of_source = read_time_path(config.source, config.source_part)
    return of_source, of_source if place == SOURCE else read_time_path(place, config.target_part)


def _accelerator_part(config: TransferConfig) -> str | None:
    return config.accelerator_part or config.lora_part


def _by_similarity(
    config: TransferConfig,
    loras: Iterable[Lora],
    source: Checkpoint,
    target: Target,
    progress: Progress,
    open_model: Opener,
) -> tuple[Pairing | None, Checkpoint, Target]:
    """Return the pairing of models of different depth, if any, and both models with all the layers that it needs.

    Where only headers are known, there is none: it is found from the weights.
    """
    layers = {layer for lora in loras for layer in lora.layers}
    roles = {layer_role(layer) for layer in layers}
    wanted = config.pairing == "similarity" or (config.pairing == "auto" and differ_in_depth(roles, source, target))
    if wanted and (source.absent or (isinstance(target, Checkpoint) and target.absent)):
        source = open_model(config.source, part=config.source_part)
        target = open_target(
            config.target, source, part=config.target_part, lora_part=_accelerator_part(config), open_model=open_model
        )
    if wanted and not all(is_here(model) for model in (source, target)):
        return None, source, target
    bases = BasisSource(BasisCache(config.cache), weights_device(config.device))
    pairing = find_pairing(layers, source, target, config.pairing, config.pair_min, bases, progress)
    return pairing, source if pairing is None else pairing.source_view(source), target


def is_here(model: Target) -> bool:
    """Return whether a model's weights can be read; else its headers alone are known."""
    return (model if isinstance(model, Checkpoint) else model.model).is_here


def _paired(
    config: TransferConfig, lora: Lora, source: Checkpoint, target: Target, pairing: Pairing | None
) -> TransferInputs:
    """Return a run with its plan. The counter-drift part has the transferred layers alone: the adapter has all else."""
    plan = make_plan(
        lora, source, target, include=config.include, exclude=config.exclude, reuses=config.method == "direct"
    )
    dialect = output_dialect(lora, "comfy" if config.as_diff else config.format)
    notes = [*carried_note(lora, dialect, "neither model has"), *accumulated_loss(lora.path.name, lora.metadata)]
    notes += _idle_settings(config, lora, plan)
    if find_device(config.device).type == "mps":
        notes.append(ON_PROCESSOR)
    plan = replace(plan, warnings=(*plan.warnings, *notes))
    if pairing is not None:
        jobs = tuple(replace(job, reason=job.reason or pairing.reason(job.name)) for job in plan.jobs)
        plan = replace(plan, jobs=jobs, warnings=(*pairing.notes(), *plan.warnings))
    if config.part == "counter-drift":
        plan = replace(plan, jobs=plan.of("transfer"))
        lora = replace(lora, extras={}, dropped=(), encoders={})
    return TransferInputs(config, lora, source, target, plan, pairing)


def _idle_settings(config: TransferConfig, lora: Lora, plan: Plan) -> list[str]:
    """Return notes on settings without effect for this LoRA, and on an earlier output that is not of this one."""
    notes = []
    if config.dora != "effective" and not any(job.kind == "DoRA" for job in plan.jobs):
        notes.append(f"--dora {config.dora} does nothing: no layer of {lora.path.name} is a DoRA")
    if config.transfer_diffs and not any(key.endswith(".diff") for layer in lora.layers.values() for key in layer.keys):
        notes.append(f"--transfer-diffs does nothing: {lora.path.name} holds no full difference of a matrix")
    beside = counter_drift_place(config.output) if config.output else None  # in memory there is nothing beside it
    if beside is not None and config.part == "whole" and os.path.exists(beside):
        notes.append(f"{beside} is of an earlier --split: it does not go with this result, which is whole")
    return notes


def touched_layers(loras: Iterable[Lora]) -> set[str] | None:
    """Return the layers that LoRAs or their extras belong to; None if some have names that only the models resolve."""
    touched: set[str] = set()
    for lora in loras:
        parsed = [lora.parse(key) for key in lora.extras]
        if lora.unresolved or any(one.unresolved for one in parsed):
            return None
        names = [(name, one.bare) for one in parsed if not one.text_encoder for name, _ in one.pieces]
        touched |= {*lora.layers, *(name.rpartition(".")[0] if bare else name for name, bare in names)}
    return touched


def check_outputs(batch: Sequence[TransferInputs]) -> None:
    """Refuse, before hours of work, an output that could not be written afterwards, or that is an input of any run."""
    loras = list(dict.fromkeys(inputs.config.lora for inputs in batch))
    protected = ProtectedInputs(loras)
    for inputs in batch:
        with _errors_name(inputs.config.lora, len(loras) > 1):
            check_names(inputs)
            check_output(inputs, protected)
    check_room(batch)


def fitting_outputs(batch: Sequence[TransferInputs]) -> tuple[tuple[TransferInputs, ...], tuple[Refusal, ...]]:
    """Return those whose outputs can be written, and the others with the reason. Raises OutputError without room."""
    protected = ProtectedInputs(dict.fromkeys(inputs.config.lora for inputs in batch))
    fitting, unfit = [], []
    for inputs in batch:
        try:
            check_names(inputs)
            check_output(inputs, protected)
            fitting.append(inputs)
        except LoraportError as error:
            unfit.append(Refusal(inputs.config, error))
    check_room(fitting)
    return tuple(fitting), tuple(unfit)


def check_room(batch: Sequence[TransferInputs]) -> None:
    """Raise OutputError where the disk has no room for what the runs will write at least."""
    check_free_space({Path(inputs.config.output): _least_bytes(inputs) for inputs in batch})


def _least_bytes(inputs: TransferInputs) -> int:
    """Return the least size of a file of dense differences; that of factors depends on ranks that are not known yet."""
    config = inputs.config
    if not config.as_diff or config.method.startswith("prolora"):
        return 0
    nameless = nameless_layers(inputs.lora, output_dialect(inputs.lora, "comfy"))
    jobs = (job for job in inputs.plan.jobs if job.action != "drop" and job.name not in nameless)
    return sum(math.prod(job.shape) for job in jobs) * (4 if config.dtype == "fp32" else 2)


def check_names(inputs: TransferInputs) -> None:
    """Raise MismatchError where no layer has a name in the format that is asked for."""
    lora, dialect = inputs.lora, _dialect(inputs)
    nameless = nameless_layers(lora, dialect)
    if nameless and len(nameless) == len(lora.layers):
        layer, reason = next(iter(nameless.items()))
        raise MismatchError(f"no layer of {lora.path} can be written so: of {layer}, for one, {reason}")


def _dialect(inputs: TransferInputs) -> Dialect:
    return output_dialect(inputs.lora, "comfy" if inputs.config.as_diff else inputs.config.format)


def check_output(inputs: TransferInputs, protected: ProtectedInputs) -> None:
    """Refuse an output that has the wrong form, or is an input: of this run, or one of the `protected` of all runs."""
    config, lora, output = inputs.config, inputs.lora, Path(inputs.config.output)
    if not config.output:
        raise OutputError("there is no output; name a .safetensors file, or a folder for PEFT's format")
    check_form(output, not config.as_diff and _dialect(inputs).folder)
    protected.check(output)
    own = (lora.path, config.source, *target_places(config.target), config.cache)
    protect_inputs(output, (*own, *inputs.source.paths, *inputs.target.paths))


SHARED_SETTINGS = (
    *("source", "target", "source_part", "target_part", "lora_part", "accelerator_part", "device", "cache"),
    *("transfer_diffs", "force_drift", "qkv"),
)
"""The settings that all runs in one pass share."""


def _check_together(configs: Sequence[TransferConfig]) -> None:
    first = configs[0]
    for config in configs[1:]:
        for name in SHARED_SETTINGS:
            values = getattr(first, name), getattr(config, name)
            if values[0] != values[1]:
                raise SettingsError(
                    f"all transfers in one pass must have the same {name.replace('_', ' ')}; got {values[0]!r} and "
                    f"{values[1]!r}: run them one after the other"
                )
    by_output: dict[str, TransferConfig] = {}
    for config in configs:
        place = str(Path(config.output).absolute()).casefold()
        if place in by_output:
            other = by_output[place]
            raise SettingsError(
                f"{other.lora} by {other.method} and {config.lora} by {config.method} would both be written to "
                f"{config.output}; rename one LoRA, or give each method once"
            )
        by_output[place] = config


@contextmanager
def _errors_name(lora: str, several: bool) -> Iterator[None]:
    """Make errors say which of several LoRAs they are about."""
    try:
        yield
    except LoraportError as error:
        if several and lora not in str(error):
            raise type(error)(f"{lora}: {error}") from error
        raise
