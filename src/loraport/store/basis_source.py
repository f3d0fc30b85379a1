"""Where a layer's singular basis comes from: the cache, else a decomposition on the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from loraport.lazy_property import lazy_property
from loraport.methods.layer import Layer
from loraport.spectral.basis import Basis, half_basis
from loraport.spectral.routing import Routing
from loraport.stopwatch import Stopwatch
from loraport.store.bases import BasisCache, basis_key
from loraport.store.routings import COARSE, packed_routing, routing_contradiction, routing_of


@dataclass(frozen=True)
class Bases:
    """Where bases come from: the store, else a decomposition on the device."""

    cache: BasisCache
    device: torch.device
    not_kept: set[str] = field(default_factory=set)
    """Why bases could not be kept, filled as it happens."""

    @lazy_property
    def watch(self) -> Stopwatch:
        """How long the stages of the run take that asks for these bases."""
        return Stopwatch(self.device)

    def of(self, W: Tensor, fingerprint: str) -> Basis:
        """The basis of a weight with this content hash."""
        with self.watch.stage("basis"):
            fetched = self.cache.get_or_compute(basis_key(fingerprint), W.to(self.device), half_basis)
        if fetched.not_written:
            self.not_kept.add(fetched.not_written)
        return fetched.basis

    def routing(self, key: str, layer: Layer) -> Routing:
        """The routing of a tall or wide layer's drift, as it is stored."""
        tensors, _, not_written = self.cache.fetch(
            key,
            lambda: packed_routing(layer.routing()),
            lambda stored: routing_contradiction(stored, layer, key),
            COARSE,
        )
        if not_written:
            self.not_kept.add(not_written)
        return routing_of(tensors, self.device)
