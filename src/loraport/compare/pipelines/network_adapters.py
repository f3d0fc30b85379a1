"""Adapters on a network in memory, loaded once under names and switched by them, as PEFT does it for any pipeline."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from loraport.errors import MismatchError
from loraport.files.names.families import WAN, Family
from loraport.files.names.lookup import canonical_layer
from loraport.sampling.network import aligned
from loraport.spectral.low_rank import LowRank

_PREFIX = "network"


class NetworkAdapters:
    """The adapters of one network."""

    def __init__(self, network: Any, family: Family | None) -> None:
        self.network = network
        self.names: set[str] = set()
        self.layers: dict[str, tuple[str, nn.Module]] = {
            canonical_layer(name, "diffusers", family or WAN) or name: (name, module)
            for name, module in network.named_modules()
            if isinstance(module, nn.Linear | nn.Conv2d | nn.Conv3d)
        }

    def load(self, name: str, updates: Mapping[str, LowRank], place: str) -> None:
        """Load an adapter under a name. Raises MismatchError for a layer that is missing, or has another shape."""
        state: dict[str, Tensor] = {}
        for layer, update in updates.items():
            if layer not in self.layers:
                raise MismatchError(
                    f"{place}: the network has no layer {layer} that an adapter can be on; leave it out"
                )
            state |= _factors(*self.layers[layer], update, place)
        dtype = self.network.dtype
        self.network.load_lora_adapter(
            {key: value.to(dtype) for key, value in state.items()}, prefix=_PREFIX, adapter_name=name
        )
        aligned(self.network)
        self.names.add(name)

    def use(self, wanted: Sequence[tuple[str, float]]) -> None:
        """Switch to these adapters with their strengths, those of them that this network has; none is the bare one."""
        own = [(name, strength) for name, strength in wanted if name in self.names]
        if not self.names:
            return
        if not own:
            self.network.disable_lora()
            return
        self.network.enable_lora()
        self.network.set_adapters([name for name, _ in own], [strength for _, strength in own])


def _factors(own: str, module: nn.Module, update: LowRank, place: str) -> dict[str, Tensor]:
    """Return the tensors of one layer under the keys that diffusers loads."""
    weight: Tensor = module.weight  # type: ignore[assignment]
    rows, columns = weight.shape[0], math.prod(weight.shape[1:])
    if update.shape != (rows, columns):
        raise MismatchError(
            f"{place}: its layer {own} is {update.shape[0]} × {update.shape[1]}, the network's {rows} × {columns}; was "
            "it made for this model?"
        )
    rank = update.A.shape[0]
    ones = (1,) * (weight.ndim - 2)
    A, B = update.A.reshape(rank, *weight.shape[1:]), update.B.reshape(rows, rank, *ones)
    return {f"{_PREFIX}.{own}.lora_A.weight": A.contiguous(), f"{_PREFIX}.{own}.lora_B.weight": B.contiguous()}
