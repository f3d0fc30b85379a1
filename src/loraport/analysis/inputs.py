"""What an analysis works on: its settings, the opened inputs, and the layers that it looks at."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from loraport.compute import layer_generator
from loraport.errors import SettingsError
from loraport.field_types import check_fields
from loraport.files.adapters.updates import LayerUpdate
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.presets import is_local, open_model
from loraport.inputs.accelerator import Target
from loraport.inputs.config import RankRule, TransferConfig
from loraport.inputs.identity import run_identity
from loraport.inputs.layer_sample import sample_layers
from loraport.inputs.open import TransferInputs, prepare
from loraport.inputs.plan import LayerJob
from loraport.lazy_property import lazy_property
from loraport.methods.layer import Layer
from loraport.methods.settings import PAPER, CasaSettings
from loraport.parallel.at_once import read_ahead
from loraport.spectral.low_rank import LowRank
from loraport.store.basis_source import BasisSource
from loraport.transfers.layer_source import LayerSource, LayerWeights
from loraport.transfers.method_input import as_factors


@dataclass(frozen=True)
class AnalyzeConfig:
    """Everything that decides what an analysis shows."""

    lora: str
    source: str
    target: str
    output: str
    """The folder; unfinished work lies beside it."""
    casa: CasaSettings = PAPER
    layers: tuple[str, ...] = ()
    """Patterns of layer names; none takes all."""
    sample: int | None = None
    """At most so many layers, evenly over kinds and depths."""
    detail: int = 3
    """How many of them are drawn in detail."""
    source_part: str | None = None
    target_part: str | None = None
    lora_part: str | None = None
    force_drift: bool = False
    """Whether a drift within rounding counts, as in a transfer."""
    device: str = "auto"
    cache: str | None = None

    def __post_init__(self) -> None:
        for name in ("lora", "source", "target", "output", "cache"):
            if isinstance(given := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(given))
        check_fields(self)
        object.__setattr__(self, "output", os.path.expanduser(self.output))
        if self.sample is not None and self.sample < 1:
            raise SettingsError(f"sample is {self.sample}, but at least 1 layer has to be looked at")
        if self.detail < 0:
            raise SettingsError(f"detail is {self.detail}, but it must be 0 or more")

    def fingerprint(self) -> str:
        """Return the same text for the same work on each layer, whichever layers are looked at."""
        same = replace(self, output="", cache="", layers=(), sample=None, detail=0)
        return json.dumps(asdict(same), sort_keys=True)


@dataclass(frozen=True)
class AnalysisInputs:
    """The opened inputs and the builder of their layers."""

    prepared: TransferInputs
    source: LayerSource

    @classmethod
    def open(cls, config: AnalyzeConfig) -> AnalysisInputs:
        """Open the inputs: headers only, nothing is computed yet. Raises InputError."""
        prepared = prepare(transfer_config(config))
        return cls(prepared, LayerSource.open(prepared))

    @property
    def device(self) -> torch.device:
        """Where layers are looked at."""
        return self.source.bases.device

    @property
    def bases(self) -> BasisSource:
        """Where bases come from."""
        return self.source.bases

    @lazy_property
    def whole(self) -> tuple[Checkpoint, Target]:
        """Both models with all shards that lie here; of a model on the Hub only what was fetched for the LoRA."""
        config, source, target = self.prepared.config, self.prepared.source, self.prepared.target
        if source.absent and is_local(config.source):
            source = open_model(config.source, part=config.source_part)
        if isinstance(target, Checkpoint) and target.absent and is_local(config.target):
            target = open_model(config.target, part=config.target_part)
        return source, target

    def identity(self, config: AnalyzeConfig) -> str:
        """Return what an earlier, interrupted start must share for its finished layers to count."""
        return run_identity(self.prepared, self.device, config.fingerprint(), self.whole)

    def layer(self, job: LayerJob, weights: LayerWeights) -> Layer:
        """Return one layer as a transfer sees it, with the basis of its source and, if W_t was read, of its target."""
        lora = exact_factors(job.name, self.prepared.lora.updates[job.name], weights.W_s)
        return weights.layer(lora, target=weights.W_t is not None)

    def weights(self, jobs: Sequence[LayerJob], *, target: bool = True) -> Iterator[tuple[LayerJob, LayerWeights]]:
        """Yield each job with its weights, while the next ones are read."""

        def read(job: LayerJob) -> LayerWeights:
            return self.source.read(job.name, keep_weights=True, with_target=target)

        return read_ahead(jobs, read)


def exact_factors(name: str, update: LayerUpdate, W_s: Tensor) -> LowRank:
    """Return any adapter as factors of whatever rank it takes; of a DoRA all that it adds to the source's weight."""
    return as_factors(update, W_s, RankRule("full"), 0, layer_generator(0, name))


def transfer_config(config: AnalyzeConfig) -> TransferConfig:
    """Return the transfer that would be made of the same inputs, for its plan."""
    return TransferConfig(
        config.lora, config.source, config.target, config.output, source_part=config.source_part,
        target_part=config.target_part, lora_part=config.lora_part, include=config.layers,
        force_drift=config.force_drift, device=config.device, cache=config.cache,
    )  # fmt: skip


def choose_layers(
    prepared: TransferInputs, config: AnalyzeConfig
) -> tuple[tuple[LayerJob, ...], tuple[tuple[str, str], ...]]:
    """Return the layers to look at, and the LoRA's others with the reason."""
    jobs = prepared.plan.of("transfer")
    if not jobs:
        raise SettingsError("no layer is left to look at; give other patterns, or none")
    names = {job.name for job in jobs}
    if config.sample is not None:
        names = set(sample_layers([job.name for job in jobs], config.sample))
    reasons = {job.name: job.reason or "not in the sample" for job in prepared.plan.jobs if job.name not in names}
    return tuple(job for job in jobs if job.name in names), tuple(reasons.items())
