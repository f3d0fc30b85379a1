"""Updates on a network that is in memory: put on for a while through hooks, added up, and told apart by content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from loraport.errors import MismatchError
from loraport.files.names.lookup import canonical_layer, layer_in
from loraport.sampling.pair import Updates
from loraport.spectral.low_rank import LowRank
from loraport.spectral.projections import side_by_side


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Canonical name -> the network's linear layers; names outside the table stay as they are."""
    return {
        canonical_layer(name, "diffusers") or name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }


def module_name(layer: str) -> str:
    """A canonical layer as diffusers' networks name it."""
    return layer_in(layer, "diffusers") or layer


@contextmanager
def adapted(network: nn.Module, updates: Updates) -> Iterator[None]:
    """The network with x·Aᵀ·Bᵀ added to the outputs of its layers; no weight is touched, so nothing is rounded.

    Raises MismatchError for a layer that is not there, is not linear, or has another shape.
    """
    layers = linear_layers(network) if updates else {}
    hooks = []
    try:
        for name, update in updates.items():
            if name not in layers:
                raise MismatchError(f"the network has no linear layer {name!r}; was the adapter made for it?")
            module = layers[name]
            if (module.out_features, module.in_features) != update.shape:
                raise MismatchError(
                    f"layer {name!r} is {module.out_features} × {module.in_features}, its update "
                    f"{update.shape[0]} × {update.shape[1]}; was the adapter made for this model?"
                )
            A, B = (factor.to(module.weight.device, module.weight.dtype) for factor in (update.A, update.B))
            hooks.append(module.register_forward_hook(_Added(A, B)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Added:
    def __init__(self, A: Tensor, B: Tensor) -> None:
        self.A, self.B = A, B

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        given = args[0]
        A, B = self.A.to(given.device), self.B.to(given.device)
        return output + (given.to(A.dtype) @ A.mT) @ B.mT


def added(*updates: Updates) -> dict[str, LowRank]:
    """Return the sum of updates: exact, ranks add up; a layer that only one of them has keeps its factors."""
    names = dict.fromkeys(name for each in updates for name in each)
    terms = {name: [each[name] for each in updates if name in each] for name in names}
    return {name: each[0] if len(each) == 1 else side_by_side(*each) for name, each in terms.items()}


def scaled(updates: Updates, factor: float) -> dict[str, LowRank]:
    """All updates times a number."""
    return {name: update.scaled(factor) for name, update in updates.items()}


def fingerprint(updates: Updates) -> str:
    """A hash of the updates' numbers: the same wherever they come from."""
    digest = hashlib.sha256()
    for name in sorted(updates):
        for factor in (updates[name].B, updates[name].A):
            flat = factor.detach().cpu().float().contiguous()
            digest.update(f"{name} {tuple(flat.shape)}\n".encode())
            digest.update(flat.numpy().data)
    return digest.hexdigest()
