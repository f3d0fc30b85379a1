"""Which layers write into a network's residual stream, behind which gate, and what reads it at the end.

A table of families: what is not in it has no readout. The Wan blocks add attn1·gate, attn2 and ffn·gate; the head is a
norm, a modulation and one linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraport.errors import MismatchError
from loraport.sampling.hooks import linear_layers


@dataclass(frozen=True)
class Writers:
    """A family's table: module names in diffusers' spelling."""

    network: str
    blocks: str
    layers: Mapping[str, int | None]
    """Canonical name inside a block, last first -> the row of the block's modulation that gates it, None for 1."""


WAN = Writers(
    network="WanTransformer3DModel",
    blocks="blocks",
    layers={"ffn.2": 5, "cross_attn.o": None, "self_attn.o": 2},
)
FAMILIES = {WAN.network: WAN}


def find_writers(network: nn.Module) -> Writers:
    """The table of a network's family. Raises MismatchError for a family without one."""
    name = type(network).__name__
    if name not in FAMILIES:
        raise MismatchError(
            f"readout knows which layers write the residual stream of {', '.join(FAMILIES)} only, not of {name}; "
            "gains work there (--no-readout)"
        )
    return FAMILIES[name]


def writing_layers(network: nn.Module, last: int | None = None) -> tuple[str, ...]:
    """The writers' canonical names, last block first, of the last so many blocks; without `last` of all."""
    table = find_writers(network)
    count = len(getattr(network, table.blocks))
    first = 0 if last is None else max(0, count - last)
    return tuple(f"{table.blocks}.{block}.{inner}" for block in reversed(range(first, count)) for inner in table.layers)


@dataclass
class Seen:
    """What one pass showed: the layer's inputs and the final norm's scale per token, gate and head as they stood."""

    inputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[n, tokens, in]"""
    deviation: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[n, tokens, 1]: the standard deviation that the final norm divides by."""
    modulation: Tensor = field(default_factory=lambda: torch.zeros(0))
    time: Tensor = field(default_factory=lambda: torch.zeros(0))


@contextmanager
def watched(network: nn.Module, layer: str) -> Iterator[Seen]:
    """Watches one writer through the passes inside; `Seen` holds the latest."""
    seen = Seen()
    block, _ = _block(network, layer)
    norm: Any = network.norm_out

    def final(module: nn.Module, args: tuple[Any, ...]) -> None:
        variance = args[0].float().var(-1, keepdim=True, unbiased=False)
        seen.deviation = (variance + norm.eps).sqrt()

    def inside(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.inputs = args[0].float()

    def gated(module: nn.Module, args: tuple[Any, ...]) -> None:
        seen.modulation = args[2].float()

    def timed(module: nn.Module, args: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        seen.time = output[0].float()

    embedder: Any = network.condition_embedder
    hooks = [
        linear_layers(network)[layer].register_forward_pre_hook(inside),
        norm.register_forward_pre_hook(final),
        block.register_forward_pre_hook(gated),
        embedder.register_forward_hook(timed),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def to_output(network: nn.Module, layer: str, seen: Seen, token: int) -> Float[Tensor, "p out"]:
    """M = W_head · diag(1 + scale) · (I − 1·1ᵀ/d) · diag(gate), at the level of one token of the first clip.

    What is added to the layer's output reaches the network's as M·Δ / std, everything in between taken as identity and
    the final norm's statistics as they are.
    """
    block, row = _block(network, layer)
    anything: Any = network
    W = anything.proj_out.weight.double()
    scale = (anything.scale_shift_table[0, 1].float() + _of_token(seen.time, 1, token)).double()
    M = W * (1 + scale)
    M = M - M.mean(1, keepdim=True)
    if row is None:
        return M
    gate = block.scale_shift_table[0, row].float() + _of_token(seen.modulation, 2, token)[row]
    return M * gate.double()


def _of_token(values: Tensor, own: int, token: int) -> Tensor:
    """The first clip's values, of one token where there is a level for each: [n, …] or [n, tokens, …]."""
    return values[0, token] if values.ndim == own + 2 else values[0]


def patched(latents: Tensor, patch: Sequence[int]) -> Float[Tensor, "n tokens p"]:
    """Latents as the tokens that the head writes: the inverse of Wan's unpatchify."""
    n, c, f, h, w = latents.shape
    t, y, x = patch
    folded = latents.reshape(n, c, f // t, t, h // y, y, w // x, x).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return folded.reshape(n, (f // t) * (h // y) * (w // x), t * y * x * c)


def _block(network: nn.Module, layer: str) -> tuple[Any, int | None]:
    """The block that a writer is in, and the row of its gate."""
    table = find_writers(network)
    _, number, inner = layer.split(".", 2)
    return getattr(network, table.blocks)[int(number)], table.layers[inner]
