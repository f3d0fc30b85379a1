"""What scores and calibration need of a source and a target: samples of both, and single passes of the target.

Noise level σ runs from 1 (noise) to 0 (clip); the velocity is dx/dσ, so that clean = x − σ·velocity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from loraport.errors import SettingsError
from loraport.spectral.low_rank import LowRank

Updates = Mapping[str, LowRank]
"""Canonical layer name -> what an adapter adds to the layer's weight; nothing is the bare model."""


@dataclass(frozen=True)
class Clips:
    """A range of a role's clips: clip number i of a role and seed always has the same noise and prompt.

    Roles separate clips for fitting, for choosing and for judging: no clip serves two of them.
    """

    role: str
    start: int
    stop: int
    seed: int = 0
    prompt_seed: int | None = None
    """Where prompts are drawn, too: the seed of theirs, if it is another, so that a prompt has clips of many seeds."""

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise SettingsError(
                f"empty clip range {self.start} to {self.stop} for {self.role!r}; ask for at least one clip"
            )

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, size: int) -> Iterator[Clips]:
        """Yield the same clips, a few at a time."""
        for start in range(self.start, self.stop, size):
            yield replace(self, start=start, stop=min(start + size, self.stop))

    def generators(self, purpose: str) -> Iterator[torch.Generator]:
        """Yield a generator for each clip, on the CPU, so that the noise does not depend on the device."""
        own = self.prompt_seed if purpose == "prompt" and self.prompt_seed is not None else self.seed
        for number in range(self.start, self.stop):
            digest = hashlib.sha256(f"{own}/{self.role}/{number}/{purpose}".encode()).digest()
            yield torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Chain:
    """The source's trajectory at the target's noise levels: states [n, K + 1, …] and mean velocities [n, K, …].

    `velocities[:, j]` leads from state j to where the target's evaluation j ought to lead: to state j + 1, or, for
    samplers that re-noise, to the clip that is re-noised into it.
    """

    states: Tensor
    velocities: Tensor

    @property
    def end(self) -> Tensor:
        """The clips' latents: [n, …]."""
        return self.states[:, -1]


@dataclass(frozen=True)
class Evaluation:
    """One evaluation of the target's network: at a step and its noise level, for one frame alone where one is given."""

    step: int
    level: float
    weight: float
    """How much the velocity counts in the next state: |σ_{j+1} − σ_j|."""
    head: float
    """Velocity per unit of the network's output: 1, or −1 / σ where the network predicts the clip."""
    frame: int | None = None


@dataclass(frozen=True)
class Passes:
    """Network passes that one clip takes: a chain of the source, a run of the target, all evaluations of one run."""

    source: int
    target: int
    evaluations: int


@dataclass(frozen=True)
class Sampler:
    """How a target is sampled: the noise levels of its network's evaluations, and how one state becomes the next."""

    name: str
    levels: tuple[float, ...]
    """From noise down to the 0 at the end: one more than there are evaluations."""
    times: tuple[float, ...]
    """The timesteps that the network gets for these levels."""
    renoises: bool
    """Whether each evaluation's clip is taken to the next level with fresh noise."""
    reason: str
    """Where the levels come from, in words."""

    def as_json(self) -> dict[str, Any]:
        """Return the `target_sampler` object of the JSON output."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def in_words(self) -> str:
        """Return one line for people."""
        levels = ", ".join(f"{level:.4g}" for level in self.levels[:-1])
        times = ", ".join(f"{time:.6g}" for time in self.times)
        count = f"{len(self.times)} step{'s' if len(self.times) > 1 else ''}"
        noise = ", fresh noise between them" if self.renoises and len(self.times) > 1 else ""
        return f"sampled by {self.name}, {count} at noise levels {levels} (timesteps {times}){noise}: {self.reason}"


class Pair(Protocol):
    """A source and a target, ready to be sampled; the two need not be in memory together."""

    source_identity: str
    """A text that names everything the source's chains depend on: weights, sampler, sizes, precision."""
    target_identity: str
    sampler: Sampler
    """The target's."""
    notes: tuple[str, ...]
    """Where the models are not sampled as their makers sample them."""
    passes: Passes
    evaluations: tuple[Evaluation, ...]
    no_evaluations_reason: str | None
    """Why readout is not possible; None where there are evaluations."""
    batch: int

    def prompts(self, clips: Clips) -> tuple[str, ...]:
        """Return the prompt of each clip, in words."""

    def layers(self) -> Mapping[str, tuple[int, int]]:
        """Return {canonical name: (out, in)} of the target's layers that can carry an update."""

    def source(self, clips: Clips, updates: Updates) -> Chain:
        """Return the source's chains with these updates."""

    def target(self, clips: Clips, updates: Updates) -> Tensor:
        """Return latents of the target's own sampler with these updates: [n, …]."""

    def velocity(self, evaluation: Evaluation, clips: Clips, chain: Chain) -> Tensor:
        """Return the target's velocity at the chain's state of this evaluation: [n, channels, f, h, w]."""

    def network(self) -> nn.Module:
        """Return the target's transformer, in memory."""

    def to_error_space(self, latents: Tensor) -> Tensor:
        """Return the latents in the space where errors are measured: latents themselves, or pixels."""


@runtime_checkable
class ShownPair(Pair, Protocol):
    """A pair whose clips can be looked at."""

    fps: float

    def source_clips(self, clips: Clips, updates: Updates) -> Tensor:
        """Return latents of the source's own sampler with these updates: [n, …]."""

    def pictures(self, latents: Tensor) -> Tensor:
        """Return latents as clips: bytes [n, frames, height, width, 3]."""


def wanted_velocity(evaluation: Evaluation, chain: Chain) -> Tensor:
    """Return the chain's velocity at an evaluation, of its frame or of the whole clip."""
    velocity = chain.velocities[:, evaluation.step]
    return velocity if evaluation.frame is None else velocity[:, :, evaluation.frame : evaluation.frame + 1]


def readout_target(evaluation: Evaluation, styled: Chain, plain: Chain, own: Tensor) -> Tensor:
    """Return T_j = u'_j + v_t(x_j) − u_j: the adapter's effect on the source, added to the target's own velocity.

    `own` is v_t(x_j) without the adapter, at the plain state, as the target was trained on.
    """
    return wanted_velocity(evaluation, styled) + own - wanted_velocity(evaluation, plain)
