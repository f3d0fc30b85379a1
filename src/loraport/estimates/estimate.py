"""Estimate what transfers will take: seconds on this machine, memory, bytes of output, of cache and to fetch."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch

from loraport.compute import TORCH_DTYPES, peak_rss_bytes, weights_device
from loraport.estimates.card_memory import WITHOUT_BASIS, bytes_in_work, layers_at_a_time
from loraport.estimates.layer_cost import CARD, PROCESSOR, run_seconds
from loraport.estimates.machine import slowness
from loraport.files.models.hub import Download
from loraport.inputs.open import TransferInputs
from loraport.inputs.plan import LayerJob
from loraport.inputs.rank import common_rank
from loraport.parallel.at_once import readers_for
from loraport.store.basis_source import keeps_routing


@dataclass(frozen=True)
class Estimate:
    """What transfers will take."""

    seconds: float
    """On this machine, with no basis in the cache; without fetching."""
    seconds_again: float
    """The same with all bases in the cache."""
    memory_bytes: int
    """Of main memory, at most at one time."""
    card_bytes: int
    """The same of a card's memory; 0 on a processor."""
    output_bytes: int
    cache_bytes: int
    """What the cache will hold of these layers; 0 without a cache."""
    download_bytes: int

    def __add__(self, other: Estimate) -> Estimate:
        """Return what two passes take, one after the other."""
        return Estimate(
            self.seconds + other.seconds,
            self.seconds_again + other.seconds_again,
            max(self.memory_bytes, other.memory_bytes),
            max(self.card_bytes, other.card_bytes),
            self.output_bytes + other.output_bytes,
            self.cache_bytes + other.cache_bytes,
            self.download_bytes + other.download_bytes,
        )

    def with_downloads(self, downloads: Iterable[Download]) -> Estimate:
        """Return the same with the bytes that would be fetched."""
        return replace(self, download_bytes=sum(one.bytes for one in downloads))

    def as_json(self) -> dict[str, float | int]:
        """Return the numbers by their names."""
        return {
            "seconds": round(self.seconds, 3),
            "seconds_again": round(self.seconds_again, 3),
            "memory_bytes": self.memory_bytes,
            "card_bytes": self.card_bytes,
            "output_bytes": self.output_bytes,
            "cache_bytes": self.cache_bytes,
            "download_bytes": self.download_bytes,
        }


def estimate(batch: Sequence[TransferInputs], downloads: Iterable[Download] = ()) -> Estimate:
    """Return what the runs of one pass will take, as `prepare_many` opened them.

    Seconds are those of a table of measured layers. On a processor they are scaled by a product that is timed here,
    once a process; on a card they are those of the card where layers were measured.
    """
    config = batch[0].config
    device = weights_device(config.device)
    table = CARD if device.type == "cuda" else PROCESSOR
    together = at_a_time(batch, device)
    scale = 1.0 if device.type == "cuda" else slowness() / together
    return Estimate(
        scale * sum(sum(run.values()) for run in run_seconds(batch, table)),
        scale * sum(sum(run.values()) for run in run_seconds(batch, table, again=True)),
        _memory(batch, device, together),
        _memory_of_card(batch, together) if device.type == "cuda" else 0,
        sum(output_bytes(inputs) for inputs in batch),
        0 if config.cache is None else _cache_bytes(batch, device.type),
        sum(one.bytes for one in downloads),
    )


def at_a_time(batch: Sequence[TransferInputs], device: torch.device) -> int:
    """Return how many layers these runs have in work at once."""
    return layers_at_a_time(device, _shapes(batch), basis=_needs_basis(batch))


def _shapes(batch: Sequence[TransferInputs]) -> list[tuple[int, int]]:
    """Return the shape of each layer that is moved."""
    return list({job.name: job.shape for inputs in batch for job in inputs.plan.of("transfer")}.values())


def _needs_basis(batch: Sequence[TransferInputs]) -> bool:
    return any(inputs.config.recipe.needs_basis for inputs in batch)


def _memory(batch: Sequence[TransferInputs], device: torch.device, together: int) -> int:
    """Return the program's own memory now, the largest layers in work at once, and a LoRA that is held.

    For a card main memory holds what was read for the layers in work, and for those that are read before their turn.
    """
    on_card = device.type == "cuda"
    table, count = (CARD, together + readers_for(device, together)) if on_card else (PROCESSOR, together)
    sizes = sorted((table.table(shape).memory.at(shape) for shape in _shapes(batch)), reverse=True)[:count]
    share = 1.0 if on_card or _needs_basis(batch) else WITHOUT_BASIS
    held = 0 if len(batch) > 1 else 4 * sum(job.rank * sum(job.shape) for job in batch[0].plan.jobs)
    return int(peak_rss_bytes() + sum(sizes) * share + held)


def _memory_of_card(batch: Sequence[TransferInputs], together: int) -> int:
    """Return what the largest layers in work at once take of a card."""
    sizes = sorted((bytes_in_work(shape) for shape in _shapes(batch)), reverse=True)[:together]
    return int(sum(sizes) * (1.0 if _needs_basis(batch) else WITHOUT_BASIS))


def output_bytes(inputs: TransferInputs) -> int:
    """Return the size of a run's output; where each layer has a rank of its own, at most."""
    config, width = inputs.config, TORCH_DTYPES[inputs.config.dtype].itemsize
    jobs = [job for job in inputs.plan.jobs if job.action != "drop"]
    if config.as_diff:
        numbers = sum(math.prod(job.shape) for job in jobs)
    else:
        ranks = [_rank(job, inputs) for job in jobs]
        padded = ranks if config.rank.varies else [max(ranks, default=0)] * len(ranks)  # one rank for all layers
        numbers = sum(rank * sum(job.shape) for rank, job in zip(padded, jobs, strict=True))
    extras = sum(math.prod(one.shape) * one.dtype.itemsize for one in inputs.lora.extras.values())
    return numbers * width + extras


def _rank(job: LayerJob, inputs: TransferInputs) -> int:
    """Return the rank that a layer will have, at most: a share of energy may need all directions."""
    config, least = inputs.config, min(job.shape)
    if job.action == "copy":
        return min(job.rank, least)
    if config.rank.varies:
        return min(job.rank, least) if config.recipe.method.low_rank else least
    return min(common_rank(config, inputs.plan), least)


def _cache_bytes(batch: Sequence[TransferInputs], device: str) -> int:
    """Return the bytes of the bases and routings that runs will leave in the cache."""
    sizes: dict[tuple[str, str], float] = {}
    for inputs in batch:
        recipe = inputs.config.recipe
        for job in inputs.plan.of("transfer"):
            m, n = max(job.shape), min(job.shape)
            basis = 4.0 * n * n if n <= 2048 else 3.0 * n * n
            if recipe.needs_basis:
                sizes["source", job.name] = basis
            if recipe.needs_target:
                sizes["target", job.name] = basis
            if recipe.needs_routing and keeps_routing(job.shape, device):
                sizes["routing", job.name] = basis + (1.0 * n * (n + 1) if m != n else 0.0)
    return int(sum(sizes.values()))
