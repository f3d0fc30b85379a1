"""Get a layer's singular basis and routing from the cache, or compute them on the device."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from loraport.methods.layer import Layer
from loraport.spectral.basis import Basis, half_basis
from loraport.spectral.routing import Routing
from loraport.stopwatch import Stopwatch
from loraport.store.bases import NOTHING_FETCHED, BasisCache, Fetched, entry_key
from loraport.store.routings import checked_routing, pack_routing, unpack_routing


def keeps_routing(shape: tuple[int, ...], device: str) -> bool:
    """Return whether the routing of a layer's drift is kept: where making it takes longer than reading it.

    That of a tall or wide layer has most of a layer's products. Of a square one there are three, which take a card less
    time than its bytes take from a disk.
    """
    return shape[0] != shape[1] or device == "cpu"


@dataclass(frozen=True)
class BasisSource:
    """Gets a basis from the cache, or computes it on the device."""

    cache: BasisCache
    device: torch.device

    stopwatch: Stopwatch = field(init=False, repr=False, compare=False)
    """How long each stage takes of the run that uses these bases; there before several threads use it."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "stopwatch", Stopwatch(self.device))

    def fetch(self, *keys: str) -> Fetched:
        """Read entries of the cache before they are needed; several threads may."""
        return {key: self.cache.fetch(key, pinned=self.device.type == "cuda") for key in keys}

    def basis(self, W: Tensor, fingerprint: str, fetched: Fetched = NOTHING_FETCHED) -> Basis:
        """Return the basis of a weight, which has this fingerprint."""
        with self.stopwatch.stage("basis"):
            W, key = W.to(self.device), entry_key(fingerprint)
            return self.cache.get_or_compute(key, W, half_basis, fetched).basis

    def routing(self, key: str, layer: Layer, fetched: Fetched = NOTHING_FETCHED) -> Routing:
        """Return the routing of a layer's drift, as it reads back from the cache where it is kept."""
        if not keeps_routing(layer.drift.shape, self.device.type):
            return layer.routing()
        routing, _ = self.cache.get_or_make(
            key,
            lambda: pack_routing(layer.routing()),
            lambda made: unpack_routing(made, self.device),
            lambda stored: checked_routing(stored, layer, key),
            fetched,
        )
        return routing
