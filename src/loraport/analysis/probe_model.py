"""A probe written as a model: the target with the drift's parts taken or disturbed, in the target's own layout."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport.analysis.inputs import exact_factors
from loraport.analysis.probes import OverActivate, Probe, no_lora
from loraport.analysis.survey import shared_layers
from loraport.compute import layer_generator, weights_device
from loraport.errors import InputError, MismatchError, SettingsError
from loraport.files.lora.provenance import own_header
from loraport.files.lora.read import Lora, read_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.presets import open_model
from loraport.files.models.write import check_output_path, write_model
from loraport.inputs.accelerator import split_target
from loraport.inputs.config import matches
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport.spectral.low_rank import LowRank
from loraport.store.bases import BasisCache
from loraport.store.basis_source import BasisSource
from loraport.transfers.layer_source import LayerSource


@dataclass(frozen=True)
class ProbeConfig:
    """Everything that decides what a probe writes."""

    source: str
    target: str
    output: str
    probe: Probe
    lora: str | None = None
    """Whose predicted rotation makes the clusters, where the probe's `clusters` are the LoRA's."""
    layers: tuple[str, ...] = ()
    seed: int = 0
    source_part: str | None = None
    target_part: str | None = None
    force_drift: bool = False
    """Whether a drift within rounding counts, as in a transfer."""
    device: str = "auto"
    cache: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "output", os.path.expanduser(self.output))
        if self.probe.clusters == "lora" and self.lora is None:
            raise SettingsError("clusters by a LoRA need one; name it with --lora, or take clusters drift or single")
        if self.probe.clusters != "lora" and self.lora is not None:
            raise SettingsError(f"a LoRA plays no part in clusters {self.probe.clusters}; leave it out, or take lora")


@dataclass(frozen=True)
class ProbeResult:
    """A finished probe."""

    output: str
    settings: dict[str, Any]
    layers: int
    """Layers whose weights were made anew; all other tensors are the target's, bit by bit."""
    untouched: int
    """Layers that were looked at and in which the probe changes nothing."""
    changed: float | None
    """Energy of the change over that of the drift, Σ‖ΔW‖² / Σ‖D_fft‖²; None without drift."""
    left_out: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    """Layers of the LoRA that join no directions: they are not probed, or of another shape there."""

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return {**vars(self), "left_out": list(self.left_out), "unused": list(self.unused)}


@dataclass
class _WeightWriter:
    """Makes the weights one after the other, and counts."""

    config: ProbeConfig
    target: Checkpoint
    layers: LayerSource
    lora: Lora | None
    energy: float = 0.0
    drift: float = 0.0
    made: list[str] = field(default_factory=list)
    untouched: list[str] = field(default_factory=list)

    def __call__(self, name: str) -> Tensor:
        """Return the layer's weight as it will be stored; the target's own bits where nothing is added."""
        stored = self.target.tensor(f"{name}.weight")
        weights = self.layers.read(name, keep_weights=True, with_target=True)
        if not weights.drift.any() or weights.W_t is None:
            self.untouched.append(name)
            return stored
        layer = weights.layer(self._lora(name, weights.drift, weights.W_s))
        added = self.config.probe.added(layer, layer_generator(self.config.seed, name)).cpu()
        self.drift += float(layer.drift.double().square().sum())
        self.energy += float(added.double().square().sum())
        if not added.any():
            self.untouched.append(name)
            return stored
        self.made.append(name)
        rounded = (weights.W_t + added).to(stored.dtype).reshape(stored.shape)
        if not torch.isfinite(rounded).all():
            raise InputError(f"{name} does not fit {stored.dtype} after the probe{self._remedy}")
        return rounded

    @property
    def _remedy(self) -> str:
        return "; take a smaller --mean or --var" if isinstance(self.config.probe, OverActivate) else ""

    def _lora(self, name: str, drift: Tensor, W_s: Tensor) -> LowRank:
        update = None if self.lora is None else self.lora.updates.get(name)
        if update is None or update.shape != tuple(drift.shape):
            return no_lora((drift.shape[0], drift.shape[1]), drift)
        return exact_factors(name, update, W_s)


def probe(config: ProbeConfig, *, progress: Progress = NO_PROGRESS) -> ProbeResult:
    """Write the target with its drift's parts taken or disturbed: same names, dtypes, shards and index.

    Raises InputError for what cannot be read or probed, OutputError for what cannot be written.
    """
    if split_target(config.target) is not None:
        raise SettingsError("a probe rewrites a model: merge the accelerator into it first (loraport merge)")
    source = open_model(config.source, part=config.source_part)
    target = open_model(config.target, part=config.target_part)
    if target.quantized:
        raise InputError(
            f"{target.where} is stored as {', '.join(target.quantized)}, in which a probe cannot be written; probe "
            "its bf16, fp16 or fp32 file"
        )
    lora = None if config.lora is None else read_lora(config.lora)
    others = (config.source, *source.paths, config.lora, None if lora is None else lora.path, config.cache)
    check_output_path(Path(config.output), target, others)
    names = _chosen(config.layers, source, target)
    unused = () if lora is None else _unused(lora, names, target)
    bases = BasisSource(BasisCache(config.cache), weights_device(config.device))
    maker = _WeightWriter(config, target, LayerSource(source, target, bases, config.force_drift), lora)
    changed = {f"{name}.weight": partial(maker, name) for name in names}
    settings = {"probe": type(config.probe).__name__, **asdict(config.probe), "seed": config.seed}
    write_model(
        Path(config.output), target, changed, own_header(probe=settings), counter(progress, "probing", target.bytes)
    )
    for note in bases.cache.notes:  # which also waits until the cache is written
        progress.note(note)
    left_out = tuple(name for name in target.layers if name not in set(names))
    share = maker.energy / maker.drift if maker.drift else None
    return ProbeResult(config.output, settings, len(maker.made), len(maker.untouched), share, left_out, unused)


def _unused(lora: Lora, names: Sequence[str], target: Checkpoint) -> tuple[str, ...]:
    """Return the LoRA's layers that do not go with a probed one. Raises MismatchError where none does."""
    shapes = {name: target.shape(f"{name}.weight") for name in names if name in lora.layers}
    fit = {name for name, shape in shapes.items() if lora.updates[name].shape == (shape[0], math.prod(shape[1:]))}
    if not fit:
        raise MismatchError(
            f"no layer of {lora.path} fits one that is probed: its first is {next(iter(lora.layers), 'none')!r}, of "
            f"{target.where} {names[0]!r} is probed; give a LoRA of this model, or other --layers"
        )
    return tuple(name for name in lora.layers if name not in fit)


def _chosen(patterns: Sequence[str], source: Checkpoint, target: Checkpoint) -> tuple[str, ...]:
    """Return the layers that both models have alike and that fit a pattern."""
    names, _ = shared_layers(source, target)
    chosen = tuple(name for name in names if not patterns or any(matches(name, one) for one in patterns))
    if not chosen:
        raise SettingsError(f"no layer of {target.where} fits, or the source has none alike; nothing to probe")
    return chosen
