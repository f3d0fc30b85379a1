"""Safetensors files written whole or not at all, one tensor in memory at a time, the same bytes for the same content.

The header is written here: the library orders metadata differently from process to process.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from loraport.errors import OutputError
from loraport.weights.safetensors_files import DTYPES, StoredTensor

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Pending:
    """A tensor that is made when its turn to be written comes."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    make: Callable[[], Tensor]

    @classmethod
    def of(cls, tensor: Tensor) -> Pending:
        """A tensor that is there already."""
        return cls(tensor.dtype, tuple(tensor.shape), lambda: tensor)

    @classmethod
    def copy_of(cls, stored: StoredTensor) -> Pending:
        """A tensor of another file as it is there."""
        return cls(stored.dtype, stored.shape, stored.read)


def save_safetensors(path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file: sorted keys and metadata, no time stamps, complete under its name or absent.

    Raises OutputError where it cannot be written; a file that was there before is then still there.
    """
    with _in_place_of(path) as temporary:
        write_safetensors(temporary, tensors, metadata)


def save_folder(path: Path, write: Callable[[Path], None], owned: frozenset[str]) -> None:
    """Lets `write` fill a folder, which appears when complete; a folder with only `owned` files is replaced.

    The old and the new folder change places in one step, where the system has one.
    Raises OutputError where it cannot be written, or where something else is in the way.
    """
    if path.is_dir():
        foreign = sorted({file.name for file in path.iterdir()} - owned)
        if foreign:
            raise OutputError(f"{path} is a folder with other files ({', '.join(foreign[:3])}); give another name")
    elif path.exists():
        raise OutputError(f"{path} is a file, but this format is a folder; give another name")
    with _in_place_of(path) as temporary:
        temporary.mkdir()
        write(temporary)


def write_safetensors(path: Path, tensors: Mapping[str, Pending], metadata: Mapping[str, str]) -> None:
    """The bytes of a safetensors file, synchronised to the disk. Larger elements come first: all lie aligned."""
    order = sorted(tensors, key=lambda key: (-tensors[key].dtype.itemsize, key))
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))}
    position = 0
    for key in order:
        pending = tensors[key]
        end = position + math.prod(pending.shape) * pending.dtype.itemsize
        header[key] = {
            "dtype": _NAMES[pending.dtype],
            "shape": list(pending.shape),
            "data_offsets": [position, end],
        }
        position = end
    raw = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % 8)
    with path.open("xb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        for key in order:
            file.write(_bytes(key, tensors[key]))
        file.flush()
        os.fsync(file.fileno())


def _bytes(key: str, pending: Pending) -> memoryview:
    tensor = pending.make().detach().cpu()
    if tensor.dtype != pending.dtype or tuple(tensor.shape) != pending.shape:
        raise TypeError(f"{key} was announced as {pending.dtype} {pending.shape}, but is {tensor.dtype} {tensor.shape}")
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


@contextmanager
def _in_place_of(path: Path) -> Iterator[Path]:
    """A free name in the same folder, moved to `path` at the end, or removed on any error; so is a replaced folder."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        yield temporary
        if temporary.is_dir() and path.is_dir():
            _exchange(temporary, path)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; nothing was left behind") from error
    finally:
        _remove(temporary)


def _exchange(new: Path, old: Path) -> None:
    """Two folders change places: at once where the system can, else by three renames, the first undone on failure."""
    if _swapped(new, old):
        return
    aside = new.with_name(f"{new.name}.old")
    os.rename(old, aside)
    try:
        os.rename(new, old)
    except OSError:
        os.rename(aside, old)
        raise
    os.rename(aside, new)


def _swapped(one: Path, other: Path) -> bool:
    """Whether Linux or macOS exchanged two names in one step; not every file system does."""
    system = ctypes.CDLL(None)
    here, exchange = -100, 2  # AT_FDCWD; RENAME_EXCHANGE and RENAME_SWAP
    names = os.fsencode(one), os.fsencode(other)
    if hasattr(system, "renameat2"):
        return bool(system.renameat2(here, names[0], here, names[1], exchange) == 0)
    return hasattr(system, "renamex_np") and bool(system.renamex_np(*names, exchange) == 0)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
