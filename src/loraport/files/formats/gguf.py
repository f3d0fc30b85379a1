"""GGUF files (llama.cpp's format, ComfyUI-GGUF's and city96's for diffusion models), a tensor dequantised on demand.

The header is read by the `gguf` package, the values by its `dequantize`, some blocks at a time. The step of the grid
under each value comes from the same function, so no scale of any type is decoded here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from loraport.digests import text_digest
from loraport.errors import FileFormatError, InputError
from loraport.files.disk.identity import FileIdentity
from loraport.files.formats.safetensors_read import ByteReader, Quantization, StoredTensor

PLAIN = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

CODES = {
    # each type: (first byte of the codes in a block, byte after the last, mask of every code's lowest bit)
    "Q4_0": (2, 18, 0x11),
    "Q4_1": (4, 20, 0x11),
    "Q5_0": (6, 22, 0x11),
    "Q5_1": (8, 24, 0x11),
    "Q8_0": (2, 34, 0x01),
    "Q2_K": (16, 80, 0x55),
    "Q3_K": (32, 96, 0x55),
    "Q4_K": (16, 144, 0x11),
    "Q5_K": (48, 176, 0x11),
    "Q6_K": (0, 128, 0x11),
}
"""The quantised types that are read: where ggml-common.h puts their codes, of which 1, 2 or 4 share a byte.

All have an even grid: within a block (or a part of it) the values are scale · code + offset.
"""

ORIGINAL_SHAPE = "comfy.gguf.orig_shape."
"""ComfyUI-GGUF's note on a tensor that was reshaped to fit the blocks."""
SPLIT = "split.count"
"""llama.cpp's note on how many files a model was split into."""
_AT_ONCE = 1 << 22
"""Values that are dequantised together."""


def read_gguf(path: Path, files: int = 1) -> tuple[dict[str, StoredTensor], str]:
    """Return the tensors of a GGUF file by name, and the digest of its header; no tensor data is read.

    `files` is how many are read together; a part of a larger set than that is refused.
    Raises InputError where the `gguf` package is missing, FileFormatError for damaged files and for types that are not
    read.
    """
    gguf = _library(path)
    identity = FileIdentity.at(path)
    try:
        reader = _checked_reader(gguf)(path)
        shapes = {str(one.name): _shape_of(one) for one in reader.tensors}
        tensors = {str(one.name): _stored(gguf, path, identity, reader, one, shapes) for one in reader.tensors}
        parts = _number(reader, SPLIT)
    except (InputError, OSError, MemoryError):
        raise
    except Exception as error:  # damaged bytes can raise anything inside the package
        raise FileFormatError(
            f"{path} cannot be read as a GGUF file ({str(error)[:200]}); it is damaged or of another kind: download it "
            "again"
        ) from error
    identity.check(path)  # the package opens it by itself
    if parts not in (0, 1, files):
        raise InputError(
            f"{path} says that it is one of {parts} parts of a model, and {files} are here; put all beside each other "
            f"under the names that they were split into, …-00001-of-{parts:05d}.gguf and so on"
        )
    lines = [f"{one.name} {one.tensor_type} {one.shape.tolist()} {one.data_offset}" for one in reader.tensors]
    digest = text_digest(*lines, str(identity.size))
    return tensors, digest


@dataclass(frozen=True)
class _Blocks:
    """Reads one quantised tensor: its values and their steps."""

    raw: ByteReader
    kind: Any
    block: tuple[int, int]
    """Values and bytes of one block."""
    shape: tuple[int, ...]

    def __call__(self) -> tuple[Tensor, Tensor]:
        from gguf.quants import dequantize

        first, last, mask = CODES[self.kind.name]
        size, width = self.block
        blocks = self.raw().numpy().reshape(-1, width)
        values = np.empty((len(blocks), size), np.float32)
        steps = np.empty_like(values)
        count = max(1, _AT_ONCE // size)
        for rows in (slice(start, start + count) for start in range(0, len(blocks), count)):
            # With the lowest bit of every code flipped, each value becomes its neighbour on the grid, above or below:
            # the distance is the step, whatever the scales are, which stand outside of these bytes.
            flipped = blocks[rows].copy()
            flipped[:, first:last] ^= mask
            with np.errstate(all="ignore"):  # infinite values of a damaged scale are refused later
                values[rows] = dequantize(blocks[rows], self.kind)
                steps[rows] = np.abs(dequantize(flipped, self.kind) - values[rows])
        return torch.from_numpy(values).view(self.shape), torch.from_numpy(steps).view(self.shape)


def _shape_of(tensor: Any) -> tuple[int, ...]:
    """Return the shape in the file; GGML counts dimensions from the last."""
    return tuple(int(size) for size in reversed(tensor.shape.tolist()))


def _stored(
    gguf: Any, path: Path, identity: FileIdentity, reader: Any, tensor: Any, shapes: Mapping[str, tuple[int, ...]]
) -> StoredTensor:
    """Return one tensor: a plain one in its dtype, a quantised one as float32; `shapes` are those of all tensors."""
    kind, name = tensor.tensor_type, str(tensor.name)
    shape = shapes[name]
    if kind.name not in PLAIN and kind.name not in CODES:
        known = ", ".join((*PLAIN, *CODES))
        raise FileFormatError(f"{path}: {name!r} is stored as {kind.name}, which is not read; read are {known}")
    size, width = gguf.GGML_QUANT_SIZES[kind]
    original = _original_shape(reader, name) or _unfolded(shape, shapes.get(f"{name.removesuffix('.weight')}.bias"))
    if int(tensor.n_bytes) * size != math.prod(shape) * width or math.prod(original or shape) != math.prod(shape):
        raise FileFormatError(f"{path}: {name!r} has a size that does not fit its shape; download the file again")
    shape = original or shape
    offset, nbytes = int(tensor.data_offset), int(tensor.n_bytes)
    if kind.name in PLAIN:
        plain = PLAIN[kind.name]
        return StoredTensor(name, path, plain, shape, ByteReader(path, offset, nbytes, plain, shape, identity))
    raw = ByteReader(path, offset, nbytes, "uint8", (nbytes,), identity)
    read = _Blocks(raw, kind, (size, width), shape)
    return StoredTensor(name, path, "float32", shape, lambda: read()[0], Quantization(f"GGUF {kind.name}", read))


def _number(reader: Any, name: str) -> int:
    """Return a field that holds one number; 0 where it is not there."""
    field = reader.get_field(name)
    return 0 if field is None else int(field.parts[field.data[0]][0])


def _original_shape(reader: Any, name: str) -> tuple[int, ...] | None:
    field = reader.get_field(ORIGINAL_SHAPE + name)
    return None if field is None else tuple(int(field.parts[index][0]) for index in field.data)


def _unfolded(shape: tuple[int, ...], bias: tuple[int, ...] | None) -> tuple[int, ...] | None:
    """Return the shape of a 3-D convolution whose first two dimensions were written as one of GGUF's four.

    Its bias tells how many outputs there are. None for any other tensor.
    """
    if bias is None or len(shape) != 4 or len(bias) != 1 or bias[0] in (0, shape[0]) or shape[0] % bias[0]:
        return None
    return (bias[0], shape[0] // bias[0], *shape[1:])


def _library(path: Path) -> Any:
    try:
        import gguf
    except ImportError as error:
        raise InputError(f"{path} is a GGUF file; to read it: pip install 'loraport[gguf]'") from error
    return gguf


def _checked_reader(gguf: Any) -> Any:
    """Return the package's reader with a check of bounds.

    It does not look where a file ends: numpy cuts the slice, and a truncated list would keep it busy for ever. `_get`
    is private to the package; tests with truncated files show it where a version no longer calls it.
    """

    class Checked(gguf.GGUFReader):  # type: ignore[misc]
        def _get(self, offset: int, dtype: Any, count: int = 1, override_order: Any = None) -> Any:
            if int(offset) + np.dtype(dtype).itemsize * int(count) > len(self.data):
                raise ValueError("it is truncated, or announces more than it has")
            return super()._get(offset, dtype, count, override_order)

    return Checked
