"""Updates on a network in memory: added through hooks for a while; sums, multiples and hashes of updates."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from loraport.errors import MismatchError
from loraport.files.names.lookup import canonical_layer
from loraport.sampling.pair import Updates
from loraport.spectral.low_rank import LowRank
from loraport.spectral.projections import side_by_side


def linear_layers(network: nn.Module) -> dict[str, nn.Linear]:
    """Return {canonical name: linear layer} of the network; names outside the table stay as they are."""
    return {
        canonical_layer(name, "diffusers") or name: module
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear)
    }


@contextmanager
def adapted(network: nn.Module, updates: Updates) -> Iterator[None]:
    """Add x·Aᵀ·Bᵀ to the outputs of the network's layers inside the block; weights are not touched, so not rounded.

    Raises MismatchError for a layer that is missing, is not linear, or has another shape.
    """
    layers = linear_layers(network) if updates else {}
    pairs: list[tuple[nn.Module, LowRank]] = []
    for name, update in updates.items():
        if name not in layers:
            raise MismatchError(f"the network has no linear layer {name!r}; was the adapter made for it?")
        module = layers[name]
        if (module.out_features, module.in_features) != update.shape:
            raise MismatchError(
                f"layer {name!r} is {module.out_features} × {module.in_features}, its update "
                f"{update.shape[0]} × {update.shape[1]}; was the adapter made for this model?"
            )
        pairs.append((module, update))
    with added(pairs):
        yield


@contextmanager
def added(pairs: Iterable[tuple[nn.Module, LowRank]]) -> Iterator[None]:
    """Add updates to the outputs of these linear layers inside the block."""
    hooks = []
    try:
        for module, update in pairs:
            weight: Tensor = module.weight  # type: ignore[assignment]
            A, B = (factor.to(weight.device, weight.dtype) for factor in (update.A, update.B))
            hooks.append(module.register_forward_hook(_Added(A, B)))
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Added:
    def __init__(self, A: Tensor, B: Tensor) -> None:
        self.A, self.B = A, B

    def __call__(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        x = args[0]
        # under offload the layer moves between devices after the hook was made
        A, B = self.A.to(x.device), self.B.to(x.device)
        return output + (x.to(A.dtype) @ A.mT) @ B.mT


def add_updates(*updates: Updates) -> dict[str, LowRank]:
    """Return the sum of updates: exact, ranks add up; a layer that only one of them has keeps its factors."""
    names = dict.fromkeys(name for each in updates for name in each)
    terms = {name: [each[name] for each in updates if name in each] for name in names}
    return {name: each[0] if len(each) == 1 else side_by_side(*each) for name, each in terms.items()}


def scale_updates(updates: Updates, factor: float) -> dict[str, LowRank]:
    """Return all updates times a number."""
    return {name: update.scaled(factor) for name, update in updates.items()}


def fingerprint(updates: Updates) -> str:
    """Return a hash of the updates' numbers: the same for equal numbers, whatever file they come from."""
    digest = hashlib.sha256()
    for name in sorted(updates):
        for factor in (updates[name].B, updates[name].A):
            flat = factor.detach().cpu().float().contiguous()
            digest.update(f"{name} {tuple(flat.shape)}\n".encode())
            digest.update(flat.numpy().data)
    return digest.hexdigest()
