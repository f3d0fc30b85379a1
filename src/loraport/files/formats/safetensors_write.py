"""Safetensors files written whole or not at all, one tensor in memory at a time, the same bytes for the same content.

The header is written here: the library (0.8.0) orders several entries of metadata differently from process to process,
and wants all tensors in memory at once.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from loraport.errors import OutputError
from loraport.files.disk.atomic import new_file, new_folder
from loraport.files.disk.free_space import check_free_space
from loraport.files.formats.safetensors_read import KINDS, StoredTensor, kind_of

if TYPE_CHECKING:
    import torch
    from torch import Tensor

OWN_PREFIX = "loraport."
"""What the fields begin with that this program writes into a header of its own accord."""

_NAMES = {kind: name for name, kind in KINDS.items()}


@dataclass(frozen=True)
class Pending:
    """A tensor that is made when its turn to be written comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Pending:
        """Return a tensor that is there already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @classmethod
    def copy_of(cls, stored: StoredTensor) -> Pending:
        """Return a tensor of another file as it is there."""
        return cls(stored.dtype, stored.shape, stored.read)


def data_bytes(tensors: Mapping[str, Pending]) -> int:
    """Return the bytes of the tensors' data."""
    return sum(math.prod(one.shape) * one.dtype.itemsize for one in tensors.values())


def save_safetensors(
    path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str], *, private: bool = False
) -> None:
    """Write a safetensors file: sorted keys and metadata, no time stamps, complete under its name or absent.

    `private`: for its owner only. Raises OutputError where it has no room, or cannot be written; a file that was there
    before is then still there.
    """
    check_free_space({path: data_bytes(tensors)})
    with new_file(path, private=private) as file:
        _write(file, tensors, metadata)


def save_folder(path: Path, write: Callable[[Path], None], owned: frozenset[str]) -> None:
    """Let `write` fill a folder, which appears when complete; a folder with only `owned` files is replaced.

    Raises OutputError where it cannot be written, or where something else is in the way.
    """
    if path.is_dir():
        foreign = sorted({file.name for file in path.iterdir()} - owned)
        if foreign:
            raise OutputError(f"{path} is a folder with other files ({', '.join(foreign[:3])}); give another name")
    elif path.exists():
        raise OutputError(f"{path} is a file, but this format is a folder; give another name")
    with new_folder(path) as folder:
        write(folder)


def write_safetensors(path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file inside a folder that is not finished, synchronised to the disk."""
    with path.open("xb") as file:
        _write(file, tensors, metadata)
        file.flush()
        os.fsync(file.fileno())


def safetensors_bytes(tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> bytes:
    """Return the bytes that such a file would have, for who keeps them elsewhere than in a file."""
    file = BytesIO()
    _write(file, tensors, metadata)
    return file.getvalue()


def _write(file: BinaryIO, tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> None:
    """Write the bytes of a safetensors file. Larger elements come first, so that all lie aligned."""
    order = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for key in order:
        pending = tensors[key]
        end = position + math.prod(pending.shape) * pending.dtype.itemsize
        header[key] = {
            "dtype": _NAMES[kind_of(pending.dtype)],
            "shape": list(pending.shape),
            "data_offsets": [position, end],
        }
        position = end
    # A name that is not valid text (a file whose name is not UTF-8) is kept as far as it can be read.
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode(errors="replace")
    raw += b" " * (-len(raw) % 8)
    file.write(len(raw).to_bytes(8, "little") + raw)
    for key in order:
        file.write(_bytes(key, tensors[key]))


def _bytes(key: str, pending: Pending) -> memoryview:
    import torch

    tensor = pending.make().detach().cpu()
    if tensor.dtype != pending.dtype or tuple(tensor.shape) != pending.shape:
        raise TypeError(f"{key} was announced as {pending.dtype} {pending.shape}, but is {tensor.dtype} {tensor.shape}")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
