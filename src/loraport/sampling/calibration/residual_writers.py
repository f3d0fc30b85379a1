"""Which layers write into a network's residual stream, behind which gate, and how the head reads it.

A table of families: readout is not possible for others. The Wan blocks add attn1·gate, attn2 and ffn·gate; the head is
a norm, a modulation and one linear layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from loraport.compute import in_double
from loraport.errors import MismatchError
from loraport.sampling.hooks import linear_layers


@dataclass(frozen=True)
class Writers:
    """A family's table: module names in diffusers' spelling."""

    network: str
    blocks: str
    layers: Mapping[str, int | None]
    """{canonical name inside a block: the row of the modulation that gates it, None for no gate}, last first."""


WAN = Writers(
    network="WanTransformer3DModel",
    blocks="blocks",
    layers={"ffn.2": 5, "cross_attn.o": None, "self_attn.o": 2},
)
FAMILIES = {WAN.network: WAN}


def find_writers(network: nn.Module) -> Writers:
    """Return the table of a network's family. Raises MismatchError for a family without one."""
    name = type(network).__name__
    if name not in FAMILIES:
        raise MismatchError(
            f"readout knows which layers write the residual stream of {', '.join(FAMILIES)} only, not of {name}; "
            "gains alone work there (--no-readout)"
        )
    return FAMILIES[name]


def writing_layers(network: nn.Module, last: int | None = None) -> tuple[str, ...]:
    """Return the writers' canonical names, last block first, of the `last` blocks, or of all without it."""
    table = find_writers(network)
    count = len(getattr(network, table.blocks))
    first = 0 if last is None else max(0, count - last)
    return tuple(f"{table.blocks}.{block}.{inner}" for block in reversed(range(first, count)) for inner in table.layers)


@dataclass
class PassRecord:
    """What one pass recorded: the layer's inputs, the final norm's deviations, the modulations of block and head."""

    inputs: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[n, tokens, in]"""
    deviation: Tensor = field(default_factory=lambda: torch.zeros(0))
    """[n, tokens, 1]: the standard deviation that the final norm divides by."""
    modulation: Tensor = field(default_factory=lambda: torch.zeros(0))
    time: Tensor = field(default_factory=lambda: torch.zeros(0))


@contextmanager
def recorded_pass(network: nn.Module, layer: str) -> Iterator[PassRecord]:
    """Record the passes inside the block for one writing layer; the record holds the latest pass."""
    record = PassRecord()
    block, _ = _block(network, layer)
    norm: Any = network.norm_out

    def final(module: nn.Module, args: tuple[Any, ...]) -> None:
        variance = args[0].float().var(-1, keepdim=True, unbiased=False)
        record.deviation = (variance + norm.eps).sqrt()

    def inside(module: nn.Module, args: tuple[Any, ...]) -> None:
        record.inputs = args[0].float()

    def gated(module: nn.Module, args: tuple[Any, ...]) -> None:
        record.modulation = args[2].float()

    def timed(module: nn.Module, args: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        record.time = output[0].float()

    embedder: Any = network.condition_embedder
    hooks = [
        linear_layers(network)[layer].register_forward_pre_hook(inside),
        norm.register_forward_pre_hook(final),
        block.register_forward_pre_hook(gated),
        embedder.register_forward_hook(timed),
    ]
    try:
        yield record
    finally:
        for hook in hooks:
            hook.remove()


def to_output(network: nn.Module, layer: str, record: PassRecord, token: int) -> Float[Tensor, "p out"]:
    """Return M = W_head · diag(1 + scale) · (I − 1·1ᵀ/d) · diag(gate), at the level of one token of the first clip.

    Δ added to the layer's output changes the network's output by M·Δ / std to first order: blocks in between count as
    the identity, and the final norm's standard deviation as constant.
    """
    block, row = _block(network, layer)
    wan: Any = network
    W = in_double(wan.proj_out.weight)
    scale = in_double(wan.scale_shift_table[0, 1].float() + _of_token(record.time, 1, token))
    M = W * (1 + scale)
    M = M - M.mean(1, keepdim=True)  # the final norm subtracts the mean over channels
    if row is None:
        return M
    gate = block.scale_shift_table[0, row].float() + _of_token(record.modulation, 2, token)[row]
    return M * in_double(gate)


def _of_token(values: Tensor, own: int, token: int) -> Tensor:
    """Return the first clip's values, of one token where each has its own: from [n, …] or [n, tokens, …]."""
    return values[0, token] if values.ndim == own + 2 else values[0]


def patched(latents: Tensor, patch: Sequence[int]) -> Float[Tensor, "n tokens p"]:
    """Return latents as the tokens that the head writes: the inverse of Wan's unpatchify."""
    n, c, f, h, w = latents.shape
    t, y, x = patch
    folded = latents.reshape(n, c, f // t, t, h // y, y, w // x, x).permute(0, 2, 4, 6, 3, 5, 7, 1)
    return folded.reshape(n, (f // t) * (h // y) * (w // x), t * y * x * c)


def _block(network: nn.Module, layer: str) -> tuple[Any, int | None]:
    """Return the block that a writing layer is in, and the row of its gate."""
    table = find_writers(network)
    _, number, inner = layer.split(".", 2)
    return getattr(network, table.blocks)[int(number)], table.layers[inner]
