"""Accelerators of a sampled model: factors to run beside its layers, and all else of them in its weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from loraport.files.adapters.product import Product
from loraport.files.additions import Addition, additions
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.families import WAN, Family
from loraport.files.names.lookup import canonical_layer
from loraport.files.whole_weights import as_differences
from loraport.sampling.hooks import add_updates
from loraport.spectral.low_rank import LowRank


@dataclass(frozen=True)
class Acceleration:
    """What accelerators add to one network, by canonical names."""

    updates: Mapping[str, LowRank]
    """Layer -> the factors of all of them, their strengths included."""
    baked: Mapping[str, tuple[Addition, ...]]
    """Parameter -> what is no product of factors: biases, norms, full differences."""
    notes: tuple[str, ...]


def read_accelerators(
    accelerators: Sequence[tuple[str, float]], model: Checkpoint, part: str | None = None
) -> Acceleration:
    """Read accelerators for a network. `part`: which of several LoRAs in each file, for one of two experts.

    Raises InputError for what cannot be read, MismatchError for an accelerator of another model.
    """
    updates: dict[str, LowRank] = {}
    baked: dict[str, tuple[Addition, ...]] = {}
    notes: list[str] = []
    for place, strength in accelerators:
        adds = additions(as_differences(read_lora(place, dense=True, part=part), model), strength, model)
        for name, terms in adds.by_parameter.items():
            for term in terms:
                made = term.make() if name.endswith(".weight") else None
                factors = made.low_rank() if isinstance(made, Product) else made
                if isinstance(factors, LowRank):
                    layer = name.removesuffix(".weight")
                    updates |= add_updates(
                        {k: v for k, v in updates.items() if k == layer}, {layer: factors.scaled(strength)}
                    )
                else:
                    baked[name] = (*baked.get(name, ()), term)
        if adds.keys.dropped:
            key, reason = adds.keys.dropped[0]
            notes.append(
                f"{place}: {len(adds.keys.dropped)} keys have no place in {model.where}: {key}, for one ({reason})"
            )
    return Acceleration(updates, baked, tuple(notes))


@torch.no_grad()
def bake(network: nn.Module, acceleration: Acceleration, family: Family | None) -> None:
    """Add to the weights of a network in memory what is no product of factors."""
    parameters = dict(_by_canonical_name(network, family or WAN))
    for name, terms in acceleration.baked.items():
        own = parameters[name]
        W = own.detach().float().contiguous()
        X = W.clone()
        for term in terms:
            term.add_to(X, W)
        own.copy_(X.to(own.dtype))


def _by_canonical_name(network: nn.Module, family: Family) -> Any:
    parameter: Tensor
    for name, parameter in network.named_parameters():
        layer, _, kind = name.rpartition(".")
        yield (f"{canonical_layer(layer, 'diffusers', family) or layer}.{kind}" if layer else name), parameter
