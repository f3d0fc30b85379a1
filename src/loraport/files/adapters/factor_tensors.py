"""Factors as the tensors of a file: the keys of a dialect, in the dtype that is asked for."""

from __future__ import annotations

import torch
from torch import Tensor

from loraport.files.adapters.casting import balanced, cast
from loraport.files.names.dialects import Dialect
from loraport.spectral.low_rank import LowRank


def factor_tensors(
    layer: str,
    update: LowRank,
    dialect: Dialect,
    kernel: tuple[int, ...],
    dtype: torch.dtype,
    alpha: int | None = None,
) -> dict[str, Tensor]:
    """Return the tensors of one layer by key. A kernel is unfolded again.

    kohya's loaders need an alpha: by default the rank, which means scale 1; with another one, B holds what the scale
    alpha / rank takes away.
    """
    if dialect.flat and alpha is not None and alpha != update.rank:
        update = update.scaled(update.rank / alpha)
    update = balanced(update, dtype)
    A = update.A.reshape(update.rank, -1, *kernel)
    B = update.B.reshape(-1, update.rank, *(1 for _ in kernel))
    down, up = dialect.pair
    tensors = {dialect.key(layer, down): cast(layer, A, dtype), dialect.key(layer, up): cast(layer, B, dtype)}
    if dialect.flat:
        tensors[dialect.key(layer, ".alpha")] = torch.tensor(float(alpha or update.rank))
    return tensors
