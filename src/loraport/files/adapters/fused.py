"""Join layers into the modules that a dialect writes: q, k and v as one matrix, or swapped halves.

The way back from `division`. Only rows move, in B and in dense updates; A belongs to the input.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from loraport.errors import FileFormatError
from loraport.files.formats.safetensors_write import Pending
from loraport.files.names.dialects import Dialect
from loraport.files.names.families import RowSlice, halves_swapped
from loraport.spectral.low_rank import LowRank


def stored_tensor(pieces: Mapping[int, Tensor], rows: RowSlice) -> Tensor:
    """Return a stored tensor made of its layers' rows, by part: the inverse of `layer_rows`."""
    if rows.group:
        heads = [piece.reshape(-1, rows.group, *piece.shape[1:]) for _, piece in sorted(pieces.items())]
        return torch.stack(heads, dim=1).flatten(0, 2)
    joined = torch.cat([piece for _, piece in sorted(pieces.items())]) if rows.of > 1 else pieces[0]
    if rows.transposed:
        return joined.mT.contiguous()
    if rows.folded:
        return joined.flatten()
    return halves_swapped(joined) if rows.swapped else joined


def join_layers(layers: Mapping[str, LowRank], dialect: Dialect) -> dict[str, LowRank]:
    """Return the modules that a dialect writes, each by the name of one of its layers.

    Fused factors are A = [A_q; A_k; A_v] and B = diag(B_q, B_k, B_v), of three times the rank; where all layers have
    the same A, that A and the B's on top of each other. Layers that are not there are rows of zeros.
    """
    modules: dict[str, list[tuple[str, RowSlice]]] = {}
    for name in layers:
        rows = dialect.rows(name)
        modules.setdefault(rows.name, []).append((name, rows))
    return {members[0][0]: _module([(layers[name], rows) for name, rows in members]) for members in modules.values()}


def _module(parts: list[tuple[LowRank, RowSlice]]) -> LowRank:
    first, rows = parts[0]
    if rows.swapped:
        return replace(first, B=halves_swapped(first.B))
    if rows.of == 1:
        return first
    heights = {rows.stored_rows(part.shape[0]) for part, rows in parts}
    if len(heights) > 1 or len({part.shape[1] for part, _ in parts}) > 1:
        raise FileFormatError(f"the layers of {rows.name} have different sizes; this model's family is not known")
    parts = sorted(parts, key=lambda one: one[1].part)
    shared = all(torch.equal(part.A, first.A) for part, _ in parts)  # as when the module itself was trained
    B = first.B.new_zeros(heights.pop(), first.rank if shared else sum(part.rank for part, _ in parts))
    column = 0
    for part, rows in parts:
        rows.put(B[:, column : column + part.rank], part.B)
        column += 0 if shared else part.rank
    return LowRank(B, first.A if shared else torch.cat([part.A for part, _ in parts]))


def join_dense(updates: Mapping[str, Pending], dialect: Dialect) -> dict[str, Pending]:
    """Do the same for dense updates, each made when its turn comes."""
    modules: dict[str, list[tuple[str, RowSlice]]] = {}
    for name in updates:
        rows = dialect.rows(name)
        modules.setdefault(rows.name, []).append((name, rows))
    joined = {}
    for members in modules.values():
        name, rows = members[0]
        first = updates[name]
        if rows.whole:
            joined[name] = first
            continue
        shape = (first.shape[0] if rows.swapped else rows.stored_rows(first.shape[0]), *first.shape[1:])
        parts = [(updates[one], where) for one, where in members]
        joined[name] = Pending(first.dtype, shape, partial(_joined, parts, shape))
    return joined


def _joined(parts: list[tuple[Pending, RowSlice]], shape: tuple[int, ...]) -> Tensor:
    first, rows = parts[0]
    if rows.swapped:
        return halves_swapped(first.make())
    made = [(part.make(), rows) for part, rows in parts]
    joined = made[0][0].new_zeros(shape)
    for tensor, rows in made:
        rows.put(joined, tensor)
    return joined
