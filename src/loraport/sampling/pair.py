"""What the score and the calibration need of a source and a target: samples from both, and looks inside the target.

Noise level σ runs from 1 (noise) to 0 (clip); the velocity is dx/dσ, so that clean = x − σ·velocity.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from loraport.errors import SettingsError
from loraport.spectral.svd import LowRank

Updates = Mapping[str, LowRank]
"""Canonical layer name -> what an adapter adds to the layer's weight; nothing is the bare model."""


@dataclass(frozen=True)
class Clips:
    """Some of the clips of a role: clip number i of a role and seed has the same noise and prompt wherever it is drawn.

    Roles keep apart what is fitted, what chooses, and what judges: no clip serves two of them.
    """

    role: str
    start: int
    stop: int
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.stop:
            raise SettingsError(f"clips {self.start} to {self.stop} of {self.role!r} are none; ask for at least one")

    def __len__(self) -> int:
        return self.stop - self.start

    def batches(self, size: int) -> Iterator[Clips]:
        """The same clips, a few at a time."""
        for start in range(self.start, self.stop, size):
            yield Clips(self.role, start, min(start + size, self.stop), self.seed)

    def generators(self, purpose: str) -> Iterator[torch.Generator]:
        """A generator for each clip, on the CPU, so that every device draws the same."""
        for number in range(self.start, self.stop):
            digest = hashlib.sha256(f"{self.seed}/{self.role}/{number}/{purpose}".encode()).digest()
            yield torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@dataclass(frozen=True)
class Chain:
    """The source's way through the target's noise levels: states [n, K + 1, …] and mean velocities [n, K, …].

    `velocities[:, j]` leads from state j to where the target's look j ought to lead: to state j + 1, or for samplers
    that re-noise to the clip that is re-noised into it.
    """

    states: Tensor
    velocities: Tensor

    @property
    def end(self) -> Tensor:
        """The clips' latents: [n, …]."""
        return self.states[:, -1]


@dataclass(frozen=True)
class Look:
    """One pass of the target's network: at level `level`, step `step`; where `frame` is given, for that frame alone."""

    step: int
    level: float
    weight: float
    """How much of its velocity reaches the next state: |σ_{j+1} − σ_j|."""
    head: float
    """Velocity per unit of the network's output: 1, or −1 / σ where the network predicts the clip."""
    frame: int | None = None


@dataclass(frozen=True)
class Passes:
    """Passes of one clip through a network: one chain of the source, one run of the target, all looks of one run."""

    source: int
    target: int
    looks: int


@dataclass(frozen=True)
class Sampler:
    """How a target is sampled: at which noise levels its network looks, and how one state becomes the next."""

    name: str
    levels: tuple[float, ...]
    """From noise down to the 0 at the end: one more than looks."""
    times: tuple[float, ...]
    """The looks' levels as the network is told them."""
    renoises: bool
    """Whether each look's clip is taken to the next level with fresh noise."""
    reason: str
    """Where the levels come from, in words."""

    def as_json(self) -> dict[str, Any]:
        """The `target_sampler` object of the JSON output."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}

    def in_words(self) -> str:
        """For people."""
        looks = ", ".join(f"{level:.4g}" for level in self.levels[:-1])
        told = ", ".join(f"{time:.6g}" for time in self.times)
        count = f"{len(self.times)} step{'s' if len(self.times) > 1 else ''}"
        noise = ", fresh noise between them" if self.renoises and len(self.times) > 1 else ""
        return f"sampled by {self.name}, {count} at noise levels {looks} (timesteps {told}){noise}: {self.reason}"


class Pair(Protocol):
    """A source and a target, ready to be sampled; the two need not be in memory together."""

    source_identity: str
    """A text that differs wherever the source's chains differ: weights, sampler, sizes, precision."""
    target_identity: str
    sampler: Sampler
    """The target's."""
    notes: tuple[str, ...]
    """What of the models is not sampled as their makers do."""
    passes: Passes
    looks: tuple[Look, ...]
    no_looks: str | None
    """Why readout cannot be had where there are no looks."""
    batch: int

    def prompts(self, clips: Clips) -> tuple[str, ...]:
        """The prompt of each clip, in words."""

    def layers(self) -> Mapping[str, tuple[int, int]]:
        """Canonical name -> (out, in) of the target's layers that can carry an update."""

    def source(self, clips: Clips, updates: Updates) -> Chain:
        """The source's chains with these updates."""

    def target(self, clips: Clips, updates: Updates) -> Tensor:
        """Latents of the target's own sampler with these updates: [n, …]."""

    def velocity(self, look: Look, clips: Clips, chain: Chain) -> Tensor:
        """The target's velocity at a look into the chain's states, as the target stands: [n, channels, f, h, w]."""

    def network(self) -> nn.Module:
        """The target's transformer, in memory."""

    def seen(self, latents: Tensor) -> Tensor:
        """Latents as errors are measured on them."""


def aim(look: Look, chain: Chain) -> Tensor:
    """The velocity that a look ought to give, of its frame or of the whole clip."""
    velocity = chain.velocities[:, look.step]
    return velocity if look.frame is None else velocity[:, :, look.frame : look.frame + 1]


def segment_targets(look: Look, styled: Chain, plain: Chain, own: Tensor) -> Tensor:
    """T_j = u'_j + v_t(x_j) − u_j: the adapter's effect, and the target's own way of missing the source kept.

    `own` is v_t(x_j) without the adapter, at the plain state, where the target is at home.
    """
    return aim(look, styled) + own - aim(look, plain)
