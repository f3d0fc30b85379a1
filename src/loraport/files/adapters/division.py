"""Divide what a file holds for a module among the layers in it: each its own rows, read when they are asked for.

Inside the program every layer stands alone: a singular basis of a fused matrix is not those of its parts. So modules
are divided when a file is read, and joined by `fused` when one is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from loraport.errors import MismatchError
from loraport.files.formats.safetensors_read import ByteReader, Quantization, StoredTensor
from loraport.files.names.families import Piece, RowSlice

if TYPE_CHECKING:
    from torch import Tensor

Value = TypeVar("Value")


def layer_rows(stored: StoredTensor, rows: RowSlice) -> StoredTensor:
    """Return one layer's rows of a stored tensor, read when they are asked for."""
    if rows.whole:
        return stored
    shape = rows.shape(stored.shape)
    codes = stored.quantization
    codes = None if codes is None else replace(codes, read=partial(_read_rows, codes, rows))
    if isinstance(stored.read, ByteReader) and rows.of > 1 and not rows.group:  # no byte of the other layers
        height = stored.shape[0] // rows.of
        return replace(stored, shape=shape, read=stored.read.rows(rows.part * height, shape[0]), quantization=codes)
    return replace(stored, shape=shape, read=lambda: rows.take(stored.read()).contiguous(), quantization=codes)


def _read_rows(stored: Quantization, rows: RowSlice) -> tuple[Tensor, Tensor]:
    values, step = stored.read()
    return rows.take(values).contiguous(), rows.take(step.expand_as(values)).contiguous()


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
