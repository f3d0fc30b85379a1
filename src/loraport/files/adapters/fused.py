"""Split modules that hold several layers (q, k and v as one matrix) or swapped halves, and join them again.

Inside the program every layer stands alone: a singular basis of a fused matrix is not those of its parts. So modules
are split when a file is read and joined when it is written. Only rows move, in B and in dense
updates; A belongs to the input.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from loraport.errors import FileFormatError, MismatchError
from loraport.files.formats.safetensors_read import Quantization, StoredTensor
from loraport.files.formats.safetensors_write import Pending
from loraport.files.names.dialects import Dialect
from loraport.files.names.families import Piece, RowSlice
from loraport.files.names.table import halves_swapped
from loraport.spectral.low_rank import LowRank

Value = TypeVar("Value")


def layer_rows(stored: StoredTensor, rows: RowSlice) -> StoredTensor:
    """Return one layer's rows of a stored tensor, read when they are asked for."""
    if rows.whole:
        return stored
    shape = rows.shape(stored.shape)
    codes = stored.quantization
    codes = None if codes is None else replace(codes, read=partial(_read_rows, codes, rows))
    return replace(stored, shape=shape, read=lambda: rows.take(stored.read()).contiguous(), quantization=codes)


def _read_rows(stored: Quantization, rows: RowSlice) -> tuple[Tensor, Tensor]:
    values, step = stored.read()
    return rows.take(values).contiguous(), rows.take(step.expand_as(values)).contiguous()


def stored_tensor(pieces: Mapping[int, Tensor], rows: RowSlice) -> Tensor:
    """Return a stored tensor made of its layers' rows, by part: the inverse of `layer_rows`."""
    joined = torch.cat([piece for _, piece in sorted(pieces.items())]) if rows.of > 1 else pieces[0]
    if rows.transposed:
        return joined.mT.contiguous()
    return halves_swapped(joined) if rows.swapped else joined


def split_modules(
    table: Mapping[str, Value],
    modules: Mapping[str, tuple[Piece, ...]],
    where: Path,
    share: Callable[[Value, RowSlice], Value] = lambda value, rows: value,
) -> dict[str, Value]:
    """Return a table by layer, made of one by module; `modules` are those that are not one layer as it stands.

    `share` gives a layer its part of a value; without it a value is every layer's. Raises MismatchError where a layer
    is given both alone and inside a module.
    """
    layers = {name: value for name, value in table.items() if name not in modules}
    for module in [name for name in table if name in modules]:
        for name, rows in modules[module]:
            if name in layers:
                raise MismatchError(f"{where}: layer {name!r} is given twice, by itself and inside {rows.name!r}")
            layers[name] = share(table[module], rows)
    return layers


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
        rows.take(B)[:, column : column + part.rank] = part.B
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
        rows.take(joined).copy_(tensor)
    return joined
