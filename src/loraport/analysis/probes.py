"""The two models of the paper's appendix B.2, on one layer: what each adds to the target's weight.

The defaults are the appendix's experiments; our variants of them are chosen by `directions`, `noise` and `clusters`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.analysis.measures.drift_parts import (
    block_noise,
    dominant_drift,
    leading_routing,
    multiplied_entries,
    removed_by_dominance,
)
from loraport.errors import SettingsError, unknown_name
from loraport.methods.layer import Layer
from loraport.spectral.basis import Basis, energy_rank
from loraport.spectral.clusters import singular_clusters
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import to_routing

CLUSTERS = ("drift", "lora", "single")
"""Whose predicted rotation (Eq. 4) joins directions: the drift's own, a LoRA's, or nobody's."""
DIRECTIONS = ("leading", "all")
NOISE = ("printed", "scaled", "factors")


@dataclass(frozen=True)
class KeepDominant:
    """The partly distilled model: only the dominant rows and columns of the drift stay (Eq. 17–22)."""

    q: float = 0.5
    """Quantile over clusters from which on one dominates."""
    directions: str = "leading"
    """The paper's k leading directions, beyond which nothing of the drift stays; or all n, where q = 0 is the target
    (ours)."""
    clusters: str = "drift"
    tau: float = 1.0
    """Predicted rotation above which two directions are connected (Eq. 4)."""
    energy: float = 0.9
    """Share of ΣS² that the leading directions hold (Eq. 3)."""
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise SettingsError(f"q is {self.q}, but a quantile lies in [0, 1]")
        _check_choice("directions", self.directions, DIRECTIONS)
        _check_clustering(self)

    def added(self, layer: Layer, generator: torch.Generator) -> Float[Tensor, "out in"]:
        """Return minus what is removed of the drift."""
        basis = _basis_of(layer)
        k = len(basis.S) if self.directions == "all" else energy_rank(basis.S, self.energy)
        labels = _labels(layer, basis, k, self)
        if self.directions == "all":
            return -removed_by_dominance(layer.drift, basis, labels, q=self.q)
        return dominant_drift(layer.drift, basis, labels, q=self.q) - layer.drift


@dataclass(frozen=True)
class OverActivate:
    """The disturbed model: noise where the drift's routing is densest (B.2.2)."""

    top: float = 0.05
    """Share of the blocks (of the single entries with `factors`) that are disturbed, the densest."""
    mean: float = 2.0
    variance: float = 5.0
    noise: str = "printed"
    """`printed`: N(mean, variance) is added to every entry of the chosen blocks, as the appendix prints it. `scaled`:
    the same in units of the block's RMS entry (ours). `factors`: single entries are multiplied by it (ours)."""
    clusters: str = "drift"
    tau: float = 1.0
    energy: float = 0.9
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.top <= 1:
            raise SettingsError(f"top is {self.top}, but a share lies in [0, 1]")
        if not self.variance >= 0:
            raise SettingsError(f"var is {self.variance}, but a variance is 0 or more")
        _check_choice("noise", self.noise, NOISE)
        _check_clustering(self)

    def added(self, layer: Layer, generator: torch.Generator) -> Float[Tensor, "out in"]:
        """Return the disturbance."""
        basis = _basis_of(layer)
        if self.noise == "factors":
            return multiplied_entries(
                layer.drift, basis, top=self.top, mean=self.mean, variance=self.variance, generator=generator
            )
        labels = _labels(layer, basis, energy_rank(basis.S, self.energy), self)
        return block_noise(
            layer.drift, basis, labels, top=self.top, mean=self.mean, variance=self.variance,
            scaled=self.noise == "scaled", generator=generator,
        )  # fmt: skip


Probe = KeepDominant | OverActivate


def no_lora(shape: tuple[int, int], like: Tensor) -> LowRank:
    """Return a LoRA of rank 0, for a probe of a layer without one."""
    return LowRank(like.new_zeros(shape[0], 0), like.new_zeros(0, shape[1]))


def _labels(layer: Layer, basis: Basis, k: int, settings: Probe) -> Int[Tensor, " k"]:
    """Return the cluster of each of the k leading directions. A LoRA that leaves the layer alone joins none."""
    if settings.clusters == "single" or (settings.clusters == "lora" and layer.lora.rank == 0):
        return torch.arange(k, device=basis.S.device)
    if settings.clusters == "lora":
        C = to_routing(layer.lora, basis)[:k, :k]
    else:
        C = leading_routing(layer.drift, basis, k)
    return singular_clusters(C, basis.S[:k], tau=settings.tau, eps=settings.eps)


def _check_clustering(settings: Probe) -> None:
    _check_choice("clusters", settings.clusters, CLUSTERS)
    if not 0 < settings.energy <= 1:
        raise SettingsError(f"energy is {settings.energy}, but a share of energy lies in (0, 1]")
    if not settings.tau >= 0:
        raise SettingsError(f"tau is {settings.tau}, but it must be 0 or more")


def _check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise unknown_name(name, value, choices)


def _basis_of(layer: Layer) -> Basis:
    if layer.basis is None:
        raise SettingsError("a probe needs the singular basis of the source weight; pass decompose(W_s) as Layer.basis")
    return layer.basis
