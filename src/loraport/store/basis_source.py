"""Get a layer's singular basis and routing from the cache, or compute them on the device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.lazy_property import lazy_property
from loraport.methods.layer import Layer
from loraport.spectral.basis import Basis, half_basis
from loraport.spectral.routing import Routing
from loraport.stopwatch import Stopwatch
from loraport.store.bases import BasisCache, entry_key
from loraport.store.routings import pack_routing, routing_contradiction, unpack_routing


@dataclass(frozen=True)
class BasisSource:
    """Gets a basis from the cache, or computes it on the device."""

    cache: BasisCache
    device: torch.device

    @lazy_property
    def stopwatch(self) -> Stopwatch:
        """How long each stage takes of the run that uses these bases."""
        return Stopwatch(self.device)

    def basis(self, W: Tensor, fingerprint: str) -> Basis:
        """Return the basis of a weight, which has this fingerprint."""
        with self.stopwatch.stage("basis"):
            return self.cache.get_or_compute(entry_key(fingerprint), W.to(self.device), half_basis).basis

    def routing(self, key: str, layer: Layer) -> Routing:
        """Return the routing of a tall or wide layer's drift, as it reads back from the cache."""
        check = lambda stored: routing_contradiction(stored, layer, key)  # noqa: E731
        tensors, _ = self.cache.get_or_make(key, lambda: pack_routing(layer.routing()), check)
        return unpack_routing(tensors, self.device)
