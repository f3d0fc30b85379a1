"""The end error: how far the target's clips with some updates are from showing the adapter's effect on the source."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from loraport.errors import InputError
from loraport.sampling.hooks import adapted, fingerprint
from loraport.sampling.pair import Chain, Clips, Pair, Updates
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.spectral.low_rank import LowRank

NO_UPDATES: dict[str, LowRank] = {}
"""The bare model."""


def require_finite(role: str, latents: Tensor) -> Tensor:
    """Return the latents. Raises InputError for NaN or infinite values, on which no measure means anything."""
    if not torch.isfinite(latents).all():
        raise InputError(
            f"sampling the {role} gave values that are not finite; try it with other adapters, a lower guidance, or on "
            "the CPU, which samples in float32"
        )
    return latents


class EndEffect:
    """What an adapter does to a set of clips: E* = target(z; bare) + source(z; adapter) − source(z; bare).

    The target's own differences from the source stay in E*, so only the adapter's effect is asked for. The end error of
    updates d is mean ‖s(target(z; d)) − s(E*)‖² per clip, where s is the pair's `to_error_space`.
    """

    def __init__(self, pair: Pair, adapter: Updates, clips: Clips, store: SampleStore, counter: PassCounter) -> None:
        """Sample the source without and with the adapter, then the bare target, except for what the store has."""
        self.pair, self.clips, self.store, self.counter = pair, clips, store, counter
        self.batches = tuple(clips.batches(pair.batch))
        self.plain = tuple(self._chain(batch, NO_UPDATES) for batch in self.batches)
        self.styled = tuple(self._chain(batch, adapter) for batch in self.batches)
        self.wanted = tuple(
            self._end(batch, NO_UPDATES) + styled.end - plain.end
            for batch, styled, plain in zip(self.batches, self.styled, self.plain, strict=True)
        )

    def size(self) -> float:
        """Return the mean square of what the adapter does to the source's clips."""
        moved = [(a.end - b.end).square().flatten(1).mean(1) for a, b in zip(self.styled, self.plain, strict=True)]
        return float(torch.cat(moved).double().mean())

    def errors(self, updates: Updates, *, keep: bool = False) -> Tensor:
        """Return the end error of each clip: [n]. `keep` puts the target's samples into the store."""
        errors = [
            end_error(self.pair, self._end(batch, updates) if keep else self.sample(batch, updates), wanted)
            for batch, wanted in zip(self.batches, self.wanted, strict=True)
        ]
        return torch.cat(errors)

    def sample(self, batch: Clips, updates: Updates) -> Tensor:
        """Return the target's latents with these updates."""
        latents = require_finite("target", self.pair.target(batch, updates)).float().cpu()
        self.counter.count("target", target=len(batch) * self.pair.passes.target)
        return latents

    def segments(self) -> Iterator[tuple[Clips, Chain, Chain]]:
        """Yield each batch with its chain with the adapter and the one without."""
        yield from zip(self.batches, self.styled, self.plain, strict=True)

    def _chain(self, batch: Clips, updates: Updates) -> Chain:
        passes, before = len(batch) * self.pair.passes.source, self.store.made

        def make() -> dict[str, Tensor]:
            chain = self.pair.source(batch, updates)
            require_finite("source", chain.states)
            return {"states": chain.states, "velocities": chain.velocities}

        tensors = self.store.recall(f"source {self.pair.source_identity} {fingerprint(updates)} {batch}", make)
        fresh = self.store.made > before
        self.counter.count("source", source=passes * fresh, recalled=passes * (not fresh))
        return Chain(tensors["states"], tensors["velocities"])

    def _end(self, batch: Clips, updates: Updates) -> Tensor:
        passes, before = len(batch) * self.pair.passes.target, self.store.made
        tensors = self.store.recall(
            f"target {self.pair.target_identity} {fingerprint(updates)} {batch}",
            lambda: {"end": require_finite("target", self.pair.target(batch, updates))},
        )
        fresh = self.store.made > before
        self.counter.count("target", target=passes * fresh, recalled=passes * (not fresh))
        return tensors["end"]


def end_error(pair: Pair, latents: Tensor, wanted: Tensor) -> Tensor:
    """Return the mean squared distance of each clip from what is wanted: [n]."""
    return (pair.to_error_space(latents) - pair.to_error_space(wanted)).square().flatten(1).mean(1)


@torch.no_grad()
def bare_velocities(pair: Pair, batch: Clips, plain: Chain, counter: PassCounter) -> tuple[Tensor, ...]:
    """Return the target's velocity without any update at every evaluation: v_t(x_j) at the source's plain states."""
    with adapted(pair.network(), NO_UPDATES):
        velocities = tuple(pair.velocity(evaluation, batch, plain).float().cpu() for evaluation in pair.evaluations)
    counter.count("target", target=len(batch) * pair.passes.evaluations)
    return velocities
