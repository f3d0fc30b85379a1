"""The tensors of one layer's factors, as a file of some dialect and dtype holds them."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from loraport.files.adapters.casting import cast, fitted
from loraport.files.names.dialects import Dialect
from loraport.spectral.low_rank import LowRank


def padded(update: LowRank, rank: int) -> LowRank:
    """The same update with zeros up to a rank."""
    extra = rank - update.rank
    return replace(update, B=pad(update.B, (0, extra)), A=pad(update.A, (0, 0, 0, extra)))


def layer_tensors(
    layer: str,
    update: LowRank,
    dialect: Dialect,
    kernel: tuple[int, ...],
    dtype: torch.dtype,
    alpha: int | None = None,
) -> dict[str, Tensor]:
    """The keys of one layer. A kernel is unfolded again; kohya's loaders need an alpha, by default the rank: scale 1.

    With another one, B holds what the scale alpha / rank takes away.
    """
    if dialect.flat and alpha is not None and alpha != update.rank:
        update = update.scaled(update.rank / alpha)
    update = fitted(update, dtype)
    A = update.A.reshape(update.rank, -1, *kernel)
    B = update.B.reshape(-1, update.rank, *(1 for _ in kernel))
    down, up = dialect.pair
    tensors = {dialect.key(layer, down): cast(layer, A, dtype), dialect.key(layer, up): cast(layer, B, dtype)}
    if dialect.flat:
        tensors[dialect.key(layer, ".alpha")] = torch.tensor(float(alpha or update.rank))
    return tensors
