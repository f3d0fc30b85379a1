"""The two models of the paper's appendix B.2, on one layer: what each adds to the target's weight."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import SettingsError
from loraport.methods.layer import Layer
from loraport.spectral.clusters import singular_clusters
from loraport.spectral.probes import over_activated, removed_by_dominance
from loraport.spectral.routing import to_routing
from loraport.spectral.svd import LowRank, SingularBasis


@dataclass(frozen=True)
class KeepDominant:
    """The partly distilled model: only the dominant rows and columns of the drift stay (Eq. 17–22)."""

    q: float = 0.5
    """Quantile over clusters from which on one dominates; 0 keeps the whole drift, so the target."""
    tau: float = 1.0
    """Predicted rotation that joins two directions, where a LoRA is given to predict one (Eq. 4)."""
    eps: float = 1e-6

    def __post_init__(self) -> None:
        if not 0 <= self.q <= 1:
            raise SettingsError(f"q is {self.q}, but a quantile lies in [0, 1]")

    def added(self, layer: Layer, generator: torch.Generator) -> Float[Tensor, "out in"]:
        """Minus what is removed. Clusters are the LoRA's; without one (rank 0) every direction stands for itself."""
        basis = _basis_of(layer)
        labels = singular_clusters(to_routing(layer.lora, basis), basis.S, tau=self.tau, eps=self.eps)
        if layer.lora.rank == 0:
            labels = torch.arange(len(basis.S), device=basis.S.device)
        return -removed_by_dominance(layer.drift, basis, labels, q=self.q)


@dataclass(frozen=True)
class OverActivate:
    """The disturbed model: the strongest entries of the drift's routing are multiplied by random factors."""

    top: float = 0.05
    """Share of the entries, by size."""
    mean: float = 2.0
    variance: float = 5.0

    def __post_init__(self) -> None:
        if not 0 <= self.top <= 1:
            raise SettingsError(f"top is {self.top}, but a share of the entries lies in [0, 1]")
        if not self.variance >= 0:
            raise SettingsError(f"var is {self.variance}, but a variance is 0 or more")

    def added(self, layer: Layer, generator: torch.Generator) -> Float[Tensor, "out in"]:
        """The disturbance; the LoRA plays no part."""
        return over_activated(
            layer.drift, _basis_of(layer), top=self.top, mean=self.mean, variance=self.variance, generator=generator
        )


Probe = KeepDominant | OverActivate


def no_lora(shape: tuple[int, int], like: Tensor) -> LowRank:
    """A LoRA of rank 0, for a probe of a layer without one."""
    return LowRank(like.new_zeros(shape[0], 0), like.new_zeros(0, shape[1]))


def _basis_of(layer: Layer) -> SingularBasis:
    if layer.basis is None:
        raise SettingsError("a probe needs the singular basis of the source weight; pass decompose(W_s) as Layer.basis")
    return layer.basis
