"""Plan a run from headers alone: which layers of the LoRA are transferred, copied or dropped, and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from loraport.errors import MismatchError, SettingsError
from loraport.files.adapters.updates import adapter_kind, aimed_rank, needs_weight
from loraport.files.additions import no_fit_message
from loraport.files.lora.kernels import same_kernel
from loraport.files.lora.read import Lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.families import Family
from loraport.inputs.accelerator import AcceleratedModel, Target
from loraport.inputs.config import matches

Action = Literal["transfer", "copy", "drop"]

NO_DRIFT = "source and target have the same weights: the drift is zero, so direct reuse is exact"
"""Noted before the work if the files are the same, and after it if only their contents are."""


@dataclass(frozen=True)
class LayerJob:
    """One layer of the LoRA and what will be done with it."""

    name: str
    action: Action
    shape: tuple[int, int]
    rank: int
    reason: str | None = None
    kind: str = "LoRA"
    """LoRA, LoHa, LoKr, DoRA or difference."""
    aim: int = 0
    """What counts as its own rank (`aimed_rank`); 0 takes what other layers have."""
    drift_unknown: bool = False
    """Whether it is copied because the source has no such layer, which the user did not ask for."""


@dataclass(frozen=True)
class Plan:
    """The jobs of a run in the LoRA's own order, and what the user should know before it starts."""

    jobs: tuple[LayerJob, ...]
    warnings: tuple[str, ...] = ()

    def of(self, action: Action) -> tuple[LayerJob, ...]:
        """Return the jobs of one kind."""
        return tuple(job for job in self.jobs if job.action == action)


def make_plan(
    lora: Lora,
    source: Checkpoint,
    target: Target,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    reuses: bool = False,
) -> Plan:
    """Pair every layer by name and shape; `reuses`: the method writes the LoRA as it is, whatever the drift.

    A layer that the user excludes is copied as it is. Of the others, one that the target lacks or has in another shape
    is dropped (nothing could load it), and one that only the source lacks is copied, since its drift is unknown: both
    are losses that the user did not ask for.
    Raises MismatchError if nothing matches, or most layers have another shape: then it is another model;
    SettingsError for a pattern that fits no layer.
    """
    _check_patterns(lora, [*include, *exclude])
    chosen = {
        name
        for name in lora.layers
        if (not include or any(matches(name, pattern) for pattern in include))
        and not any(matches(name, pattern) for pattern in exclude)
    }
    jobs = tuple(_job(name, lora, source, target, chosen=name in chosen, reuses=reuses) for name in lora.layers)
    open_jobs = [job for job in jobs if job.name in chosen and not lora.layers[job.name].settled]
    _check_most(open_jobs, lora, source, target)
    settled = any(layer.settled for layer in lora.layers.values())
    if not settled and not any(job.action == "transfer" or job.name not in chosen for job in jobs):
        raise MismatchError(_nothing_matches(lora, source, target))
    return Plan(jobs, tuple(_warnings(lora, source, target, jobs)))


_EXCLUDED = "excluded by the user"


def _job(name: str, lora: Lora, source: Checkpoint, target: Target, *, chosen: bool, reuses: bool) -> LayerJob:
    update = lora.updates[name]

    def job(action: Action, reason: str | None = None, *, unknown: bool = False) -> LayerJob:
        return LayerJob(
            name, action, update.shape, update.rank, reason, adapter_kind(update), aimed_rank(update), unknown
        )

    if f"{name}.weight" not in target:
        return job("drop", f"{target.where} has no such layer")
    wrong = _misfit(name, update.shape, lora, target)
    base = source if f"{name}.weight" in source else target
    if needs_weight(update) and (alien := _misfit(name, update.shape, lora, base)):
        return job("drop", f"{alien}, at which it has to look")
    if not chosen:
        return job("copy", f"{_EXCLUDED}, though {wrong}" if wrong else _EXCLUDED)
    if wrong:
        return job("drop", wrong)
    if lora.layers[name].settled:
        return job("copy", lora.layers[name].settled)
    missing = _misfit(name, update.shape, lora, source) if base is source else f"{source.where} has no such layer"
    if missing:
        return job("copy", f"{missing}, so its drift is unknown: copied, not transferred", unknown=not reuses)
    return job("transfer")


def _misfit(name: str, shape: tuple[int, int], lora: Lora, model: Target) -> str:
    """Return why an update of a shape cannot be added to the weight of a layer that the model has; "" if it can."""
    weight = model.shape(f"{name}.weight")
    matrix, kernel = (weight[0], prod(weight[1:])), lora.layers[name].kernel
    if shape == matrix and len(weight) > 1 and (kernel is None or same_kernel(kernel, weight[2:])):
        return ""
    return f"the LoRA is {shape[0]} × {shape[1]}, the weight in {model.where} {_times(weight)}"


def _check_most(jobs: Sequence[LayerJob], lora: Lora, source: Checkpoint, target: Target) -> None:
    """Raise MismatchError if half of the layers or more have another shape: then it is another model."""
    models: tuple[Target, ...] = (target, source)
    in_target = [job for job in jobs if f"{job.name}.weight" in target]
    misfits = [
        (job.name, wrong)
        for job in in_target
        for wrong in [_misfit(job.name, job.shape, lora, model) for model in models if f"{job.name}.weight" in model]
        if wrong
    ]
    if misfits and 2 * len({name for name, _ in misfits}) >= len(in_target):
        name, wrong = misfits[0]
        raise MismatchError(
            f"layer {name}: {wrong}; this LoRA was made for {_other_model(lora, source)}: give the models that it "
            "belongs to"
        )


def _other_model(lora: Lora, source: Checkpoint) -> str:
    """Return for what a LoRA was made that does not fit, for people."""
    if lora.dialect.family is None or source.family is None or lora.dialect.family == source.family.name:
        return "another model (size)"
    return f"{lora.dialect.family}, and {source.where} is {source.family.name}"


def _check_patterns(lora: Lora, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, pattern) for name in lora.layers):
            example = next(iter(lora.layers))
            raise SettingsError(f"pattern {pattern!r} fits no layer of the LoRA; names look like {example!r}")


def check_families(source: Checkpoint, target: Target) -> None:
    """Raise MismatchError for models of two families, of which each has names that the other's table lacks."""
    other = target if isinstance(target, Checkpoint) else target.model
    if source.family is None or other.family is None or source.family.name == other.family.name:
        return
    if _all_named(source, other.family) or _all_named(other, source.family):
        return  # so little of a model that its names are both families'
    reason = source.family.apart.get(other.family.name, "")
    raise MismatchError(
        f"{source.where} is a model of {source.family.name}, {other.where} one of {other.family.name}"
        f"{f': {reason}' if reason else ''}; a LoRA moves from a base to a model that was made from it: give two of "
        "one family"
    )


def _all_named(model: Checkpoint, family: Family) -> bool:
    names = [name for name in model.own if name not in model.extra]
    return all(family.parameter_rows(name, family.canonical) for name in names)


def _nothing_matches(lora: Lora, source: Checkpoint, target: Target) -> str:
    missing_in: Target = target if not any(f"{name}.weight" in target for name in lora.layers) else source
    family = missing_in.model.family if isinstance(missing_in, AcceleratedModel) else missing_in.family
    return no_fit_message(lora, missing_in.where, missing_in.layers, family)


def _warnings(lora: Lora, source: Checkpoint, target: Target, jobs: Sequence[LayerJob]) -> list[str]:
    notes = list(lora.notes)
    if source.paths and set(source.paths) == set(target.paths) and source.part == target.part:
        notes.append(NO_DRIFT)
    models: tuple[Target, ...] = (source, target)
    notes += [*_other_family(lora, source), *_versions(source, target)]
    notes += dict.fromkeys([*source.notes, *(target.model if isinstance(target, AcceleratedModel) else target).notes])
    exact = isinstance(target, AcceleratedModel) and target.on_source  # its drift is not a difference of two files
    for model in models:
        if model.extra:
            notes.append(f"{model.where} has tensors outside its family's table, left alone: {_some(model.extra)}")
        if model.quantized and not exact:
            notes.append(
                f"{model.where} is stored as {', '.join(model.quantized)}: what such rounding alone would make of the "
                "drift is compared with it, layer by layer"
            )
    if unknown := [job.name for job in jobs if job.drift_unknown]:
        notes.append(
            f"{len(unknown)} of the LoRA's {len(jobs)} layers are in {target.where}, but not in {source.where} under "
            f"these names and in this shape: {_some(unknown)}; their drift is unknown, so they are copied, not "
            "transferred"
        )
    if forced := [job.name for job in jobs if job.action == "copy" and _misfit(job.name, job.shape, lora, target)]:
        notes.append(
            f"{_some(forced)}: excluded, so copied as asked, but of another shape than in {target.where}: loaders may "
            "refuse the file for it"
        )
    known = {*source, *source.absent, *(f"{name}.weight" for name in lora.layers)}
    if gates := [layer for layer in target.layers if f"{layer}.weight" not in known]:
        notes.append(f"{target.where} has layers that the source lacks, left alone: {_some(gates)}")
    if isinstance(target, AcceleratedModel):
        notes += target.notes(lora.layers, len(lora.layers))
    notes += _kinds(lora)
    return notes


def _other_family(lora: Lora, source: Checkpoint) -> list[str]:
    """Return a note where the LoRA has layers that only another family than the models' has."""
    own, family = lora.dialect.family, source.family
    if own is None or family is None or own == family.name:
        return []
    alien = [name for name in lora.layers if family.rows(name, family.canonical) is None]
    if not alien or any(f"{name}.weight" in source for name in alien):
        return []
    return [
        f"the LoRA is one of {own}, by layers such as {alien[0]}, and {source.where} is {family.name}: what both call "
        "alike is moved, which need not mean the same there"
    ]


def _versions(source: Checkpoint, target: Target) -> list[str]:
    """Return a note where the models are two versions of a family: one was not made from the other by distilling it."""
    other = target.model if isinstance(target, AcceleratedModel) else target
    if source.family is None or other.family is not source.family:
        return []
    mine, theirs = (source.family.version({*model, *model.absent}) for model in (source, other))
    if not mine or not theirs or mine == theirs:
        return []
    return [
        f"{source.where} is {mine}, and {other.where} {theirs}: two trainings, not a model and what was distilled from "
        "it, so a LoRA may mean something else there; loraport diagnose measures how far apart they are"
    ]


def _kinds(lora: Lora) -> list[str]:
    """Return a note on what is written if the input is not a plain LoRA."""
    counts = Counter(adapter_kind(update) for update in lora.updates.values())
    others = ", ".join(f"{count} layers are {kind}" for kind, count in sorted(counts.items()) if kind != "LoRA")
    dora = ", of a DoRA what --dora says: all that it adds to the source's weights, or its factors"
    return [f"{others}: a plain LoRA is written{dora if counts['DoRA'] else ''}"] if others else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
