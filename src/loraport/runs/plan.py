"""What a run will do: each LoRA layer paired with its source and target weights, or set aside with the reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

from loraport.errors import MismatchError, SettingsError
from loraport.runs.accelerator import Accelerated, Target
from loraport.runs.additions import nothing_fits
from loraport.runs.config import matches
from loraport.weights.checkpoint import Checkpoint
from loraport.weights.kernels import same_kernel
from loraport.weights.lora import Lora
from loraport.weights.variants import aimed_rank, kind_of

Action = Literal["transfer", "copy", "drop"]

NO_DRIFT = "source and target have the same weights: the drift is zero, so direct reuse is exact"
"""Said before the work where the files are the same, and after it where only their contents are."""


@dataclass(frozen=True)
class LayerJob:
    """One layer of the LoRA and what will become of it."""

    name: str
    action: Action
    shape: tuple[int, int]
    rank: int
    reason: str | None = None
    kind: str = "LoRA"
    """LoRA, LoHa, LoKr, DoRA or difference."""
    aim: int = 0
    """The rank that it is written at where none is asked for; 0 takes what other layers have."""

    @property
    def cost(self) -> int:
        """Multiplications of one singular value decomposition, up to a constant: out · in · min(out, in)."""
        return prod(self.shape) * min(self.shape)


@dataclass(frozen=True)
class Plan:
    """The jobs of a run in the LoRA's own order, and what the user should know before it starts."""

    jobs: tuple[LayerJob, ...]
    warnings: tuple[str, ...] = ()

    def of(self, action: Action) -> tuple[LayerJob, ...]:
        """The jobs of one kind."""
        return tuple(job for job in self.jobs if job.action == action)


def make_plan(
    lora: Lora,
    source: Checkpoint,
    target: Target,
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> Plan:
    """Pair every layer by name and shape.

    A layer that the target lacks is dropped (nothing could load it); one that only the source lacks, such as a gate of
    the distilled model, and one that the user excludes are copied as they are.
    Raises MismatchError where shapes disagree or nothing matches, SettingsError for a pattern that fits no layer.
    """
    _check_patterns(lora, [*include, *exclude])
    jobs = tuple(_job(name, lora, source, target, include, exclude) for name in lora.layers)
    if not any(job.action == "transfer" or job.reason == _EXCLUDED for job in jobs):
        raise MismatchError(_nothing_matches(lora, source, target))
    return Plan(jobs, tuple(_warnings(lora, source, target)))


_EXCLUDED = "excluded by the user"


def _job(
    name: str, lora: Lora, source: Checkpoint, target: Target, include: Sequence[str], exclude: Sequence[str]
) -> LayerJob:
    update = lora.layers[name]

    def job(action: Action, reason: str | None = None) -> LayerJob:
        return LayerJob(name, action, update.shape, update.rank, reason, kind_of(update), aimed_rank(update))

    weight = f"{name}.weight"
    if weight not in target:
        return job("drop", f"{target.where} has no such layer")
    _check_shape(name, lora, target)
    if weight not in source:
        return job("copy", f"{source.where} has no such layer, so its drift is unknown")
    _check_shape(name, lora, source)
    chosen = not include or any(matches(name, pattern) for pattern in include)
    if not chosen or any(matches(name, pattern) for pattern in exclude):
        return job("copy", _EXCLUDED)
    return job("transfer")


def _check_shape(name: str, lora: Lora, model: Target) -> None:
    weight = model.shape(f"{name}.weight")
    matrix = (weight[0], prod(weight[1:]))
    shape, kernel = lora.layers[name].shape, lora.kernels.get(name, weight[2:])
    if shape != matrix or len(weight) < 2 or not same_kernel(kernel, weight[2:]):
        raise MismatchError(
            f"layer {name}: the LoRA is {shape[0]} × {shape[1]}, the weight in {model.where} {_times(weight)}; "
            "this LoRA was made for another model (size): give the models that it belongs to"
        )


def _check_patterns(lora: Lora, patterns: Sequence[str]) -> None:
    for pattern in patterns:
        if not any(matches(name, pattern) for name in lora.layers):
            example = next(iter(lora.layers))
            raise SettingsError(f"pattern {pattern!r} fits no layer of the LoRA; names look like {example!r}")


def _nothing_matches(lora: Lora, source: Checkpoint, target: Target) -> str:
    missing_in: Target = target if not any(f"{name}.weight" in target for name in lora.layers) else source
    family = missing_in.model.family if isinstance(missing_in, Accelerated) else missing_in.family
    return nothing_fits(lora, missing_in.where, missing_in.layers, family)


def _warnings(lora: Lora, source: Checkpoint, target: Target) -> list[str]:
    found = list(lora.notes)
    if set(source.paths) == set(target.paths) and source.part == target.part:
        found.append(NO_DRIFT)
    models: tuple[Target, ...] = (source, target)
    for model in models:
        if model.extra:
            found.append(f"{model.where} has tensors outside its family's table, left alone: {_some(model.extra)}")
        if model.quantized:
            found.append(
                f"{model.where} is stored as {', '.join(model.quantized)}: what such rounding alone would make of the "
                "drift is compared with it, layer by layer"
            )
    known = {*source, *source.absent}
    if gates := [layer for layer in target.layers if f"{layer}.weight" not in known]:
        found.append(f"{target.where} has layers that the source lacks, left alone: {_some(gates)}")
    if isinstance(target, Accelerated):
        found += target.notes(lora.layers, len(lora.layers))
    found += _kinds(lora)
    return found


def _kinds(lora: Lora) -> list[str]:
    """What the output is where the input is no plain LoRA."""
    counts = Counter(kind_of(update) for update in lora.layers.values())
    others = ", ".join(f"{count} layers are {kind}" for kind, count in sorted(counts.items()) if kind != "LoRA")
    dora = ", of a DoRA what --dora says: all that it adds to the source's weights, or its factors"
    return [f"{others}: a plain LoRA is written{dora if counts['DoRA'] else ''}"] if others else []


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _times(shape: tuple[int, ...]) -> str:
    return " × ".join(map(str, shape))
