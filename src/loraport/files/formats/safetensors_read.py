"""Safetensors files: what the header says, checked entry by entry, and the bytes of one tensor on demand.

A file is eight bytes of length, a header in JSON, and data that the header's offsets cover without gap or overlap. Data
is read with plain reads into fresh memory.

Why not by the library's `safe_open`: it maps the file and tells no offsets. One handle keeps what was read in memory
(136 MB of a file of 154 MB, here 2), a handle per tensor parses the header again (1.8 s for 1000 tensors, here 0.06),
and a file that becomes shorter meanwhile ends the process, where a read reports that it was replaced. Its messages name
neither the key nor the remedy. It opens a file of 1000 tensors in 1.3 ms, this module in 8.5.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from io import BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loraport.errors import FileFormatError, UnreadableError
from loraport.files.disk.identity import FileIdentity
from loraport.files.disk.user_paths import open_regular_file

if TYPE_CHECKING:
    import torch
    from torch import Tensor

NOT_READ = (
    "of quantised checkpoints fp8, GGUF and the int8 of quanto and TurboDiffusion are read, nothing else: use the "
    "bf16, fp16 or fp32 file of the same model"
)

LONGEST_HEADER = 100_000_000
"""Bytes; the limit that the safetensors library sets too."""

LONGEST_NAME = 1000
"""Characters of a tensor's name; those of real files have under 200."""
MOST_DIMENSIONS = 64
"""PyTorch's own limit."""

KINDS = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
    "C64": "complex64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The dtypes of the format -> PyTorch's names of them. Headers are read without PyTorch, slow to load."""
AT_ONCE = 1 << 22
"""Bytes that are read at a time: what is done with them finds them in the processor's cache."""
_BYTES = {"bool": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}
"""Of the kinds whose names do not end in their bits."""

_IMPOSTORS = {
    b"GGUF": "is a GGUF file; rename it to .gguf",
    b"PK\x03\x04": "is a zip archive, most likely a PyTorch pickle; rename it to .pt",
    b"version https://git-lfs": "is a git-lfs pointer, not the weights; fetch them with `git lfs pull`",
    b"<": "looks like a web page, not the weights; download the file itself",
}


@dataclass(frozen=True)
class Quantization:
    """How a quantised tensor is read: its float32 values, and the step of the grid that each of them was rounded to."""

    format: str
    """For people, such as `fp8_e4m3fn` or `GGUF Q4_K`."""
    read: Callable[[], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class StoredTensor:
    """One tensor of a file: what its header says, and how to read it into a fresh CPU tensor of this kind."""

    key: str
    path: Path
    kind: str
    """The dtype by PyTorch's name, such as `bfloat16`."""
    shape: tuple[int, ...]
    read: Callable[[], Tensor]
    quantization: Quantization | None = None
    """Where the file holds codes and not values: `kind` is then float32, and `read` gives the values."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype itself, for who computes with it."""
        return dtype_of(self.kind)

    @property
    def is_real(self) -> bool:
        """Whether it holds floating-point numbers, and not integers or complex ones."""
        return "float" in self.kind

    @property
    def nbytes(self) -> int:
        """Bytes that the values take, read as this kind."""
        return math.prod(self.shape) * bytes_of(self.kind)


def dtype_of(kind: str) -> torch.dtype:
    """Return PyTorch's dtype of this name."""
    import torch

    dtype: torch.dtype = getattr(torch, kind)
    return dtype


def kind_of(dtype: torch.dtype) -> str:
    """Return PyTorch's name of a dtype."""
    return str(dtype).removeprefix("torch.")


def bytes_of(kind: str) -> int:
    """Return the bytes of one number of this kind."""
    return _BYTES.get(kind) or int(kind.lstrip("abcdefghijklmnopqrstuvwxyz")) // 8


@dataclass(frozen=True)
class SafetensorsFile:
    """What the header of one file says; `digest` is the SHA-256 of the header and the file's size."""

    path: Path
    tensors: dict[str, StoredTensor]
    metadata: dict[str, str]
    digest: str


def read_safetensors(path: Path) -> SafetensorsFile:
    """Return what the header of a safetensors file says, checked against the file's size; no tensor data is read.

    Raises FileFormatError for what is not a safetensors file, a truncated or overlong one, contradicting entries, and
    dtypes that are not read.
    """
    with open_regular_file(path) as file:
        return _described(path, file)


def read_all(path: Path, *, pinned: bool = False) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of a small file and its metadata, through one opening: it may be replaced meanwhile.

    `pinned`: in memory that a card copies from.

    Raises as `read_safetensors`, and UnreadableError as the reading of a tensor does.
    """
    with open_regular_file(path) as file:
        described = _described(path, file)
        readers = {key: stored.read for key, stored in described.tensors.items()}
        tensors = {key: read.of(file, pinned) for key, read in readers.items() if isinstance(read, ByteReader)}
        return tensors, described.metadata


def tensors_in(raw: bytes, where: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return all tensors of a small file's bytes and its metadata; they share the memory of a copy of the bytes.

    `where` is what messages call it. Raises FileFormatError as `read_safetensors`.
    """
    import torch

    path = Path(where)
    header = _raw_header(path, BufferedReader(BytesIO(raw)), len(raw))
    metadata, entries = _checked(path, _parsed(path, header))
    start = 8 + len(header)
    if _check_cover(path, entries, len(raw) - start) < len(raw) - start:
        raise FileFormatError(f"{where} has bytes that its header does not describe; remove it")
    data = torch.frombuffer(bytearray(raw[start:]) or bytearray(1), dtype=torch.uint8)
    return {
        key: data[begin:end].clone().view(dtype_of(kind)).view(shape)
        for key, (kind, shape, begin, end) in entries.items()
    }, metadata


def described_header(path: Path, header: dict[str, Any], size: int) -> SafetensorsFile:
    """Return what a header says of a file that is elsewhere, checked in the same way; its tensors cannot be read.

    `path` is what messages call the file, `size` how many bytes it has.
    """
    metadata, entries = _checked(path, dict(header))
    _check_cover(path, entries, size)

    def unread() -> Tensor:
        raise UnreadableError(f"{path} is not here, its header alone is known; fetch it first")

    tensors = {key: StoredTensor(key, path, kind, shape, unread) for key, (kind, shape, _, _) in entries.items()}
    lines = (f"{key} {entry}" for key, entry in sorted(entries.items()))
    digest = hashlib.sha256("\n".join([str(size), *lines]).encode()).hexdigest()
    return SafetensorsFile(path, tensors, metadata, digest)


def _described(path: Path, file: BufferedReader) -> SafetensorsFile:
    identity = FileIdentity.of(file)
    raw, size = _raw_header(path, file, identity.size), identity.size
    metadata, entries = _checked(path, _parsed(path, raw))
    start = 8 + len(raw)
    room = size - start
    end = _check_cover(path, entries, room)
    if end < room:
        raise FileFormatError(f"{path} has {room - end} bytes that its header does not describe; download it again")
    tensors = {
        key: StoredTensor(key, path, kind, shape, ByteReader(path, start + begin, end - begin, kind, shape, identity))
        for key, (kind, shape, begin, end) in entries.items()
    }
    digest = hashlib.sha256(size.to_bytes(8, "little") + raw).hexdigest()
    return SafetensorsFile(path, tensors, metadata, digest)


def _checked(
    path: Path, header: dict[str, Any]
) -> tuple[dict[str, str], dict[str, tuple[str, tuple[int, ...], int, int]]]:
    """Return a header's metadata and its entries, each checked."""
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise FileFormatError(f"{path}: the header's __metadata__ is not a table of strings; download the file again")
    return metadata, {key: _entry(path, key, entry) for key, entry in header.items()}


@dataclass(frozen=True)
class ByteReader:
    """Reads the bytes of one tensor with plain reads into fresh memory."""

    path: Path
    offset: int
    nbytes: int
    kind: str
    shape: tuple[int, ...]
    identity: FileIdentity
    """Of the file whose header said where the bytes are."""

    def __call__(self) -> Tensor:
        with self.identity.open(self.path, (self.offset, self.offset + self.nbytes)) as file:
            return self.of(file)

    def of(self, file: BufferedReader | FileIO, pinned: bool = False) -> Tensor:
        """Read the same from the open file."""
        return self._tensor(file, None, pinned)

    def watched(self, see: Callable[[memoryview], object], *, pinned: bool) -> Tensor:
        """Read it, and show the bytes on the way, piece by piece as they come in; `pinned`: to be copied to a card."""
        with self.identity.open(self.path, (self.offset, self.offset + self.nbytes)) as file:
            return self._tensor(file, see, pinned)

    def rows(self, first: int, count: int) -> ByteReader:
        """Return what reads some of its rows, and no byte of the others."""
        width = self.nbytes // self.shape[0]
        shape = (count, *self.shape[1:])
        return replace(self, offset=self.offset + first * width, nbytes=count * width, shape=shape)

    def _tensor(
        self, file: BufferedReader | FileIO, see: Callable[[memoryview], object] | None, pinned: bool
    ) -> Tensor:
        import torch

        buffer = torch.empty(self.nbytes, dtype=torch.uint8, pin_memory=pinned)
        view = buffer.numpy().data
        file.seek(self.offset)
        for start in range(0, self.nbytes, AT_ONCE):
            piece = view[start : start + AT_ONCE]
            self._fill(file, piece)
            if see is not None:
                see(piece)
        return buffer.view(dtype_of(self.kind)).view(self.shape)

    def pieces(self, size: int) -> Iterator[memoryview]:
        """Yield its bytes as they stand, so many at a time; each piece is gone when the next one is asked for."""
        buffer = memoryview(bytearray(min(size, self.nbytes)))
        with self.identity.open(self.path, (self.offset, self.offset + self.nbytes)) as file:
            file.seek(self.offset)
            for start in range(0, self.nbytes, size):
                piece = buffer[: min(size, self.nbytes - start)]
                self._fill(file, piece)
                yield piece

    def _fill(self, file: BufferedReader | FileIO, view: memoryview) -> None:
        filled = 0
        while filled < len(view):
            count = file.readinto(view[filled:])
            if not count:
                raise self.identity.replaced(self.path)
            filled += count


def _raw_header(path: Path, file: BufferedReader, size: int) -> bytes:
    """Return the JSON bytes of the header."""
    start = file.read(32)
    length = int.from_bytes(start[:8], "little")
    if start[8:9] not in (b"{", b"") or size < 8:
        answers = (answer for magic, answer in _IMPOSTORS.items() if start.startswith(magic))
        kind = next(answers, "is not a safetensors file; it was renamed, or the download broke off")
        raise FileFormatError(f"{path} {kind}")
    if length > LONGEST_HEADER:
        raise FileFormatError(
            f"{path} announces a header of {length} bytes, more than any real one has; it is damaged or not "
            "a safetensors file: download it again"
        )
    if 8 + length > size:
        raise FileFormatError(
            f"{path} is truncated: {size} bytes, but its header alone has {length}; download it again"
        )
    file.seek(8)
    return file.read(length)


def _parsed(path: Path, raw: bytes) -> dict[str, Any]:
    def without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        table = dict(pairs)
        if len(table) < len(pairs):
            raise ValueError("a key stands twice")
        return table

    try:
        header = json.loads(raw, object_pairs_hook=without_repeats)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{path}: the header cannot be read ({error}); download the file again") from error
    if not isinstance(header, dict):
        raise FileFormatError(f"{path}: the header is not a table of tensors; download the file again")
    for key in header:
        try:
            key.encode()
        except UnicodeEncodeError as error:  # a lone surrogate, which no text and no file of ours can hold
            raise FileFormatError(f"{path}: the key {key!r} is not valid text; download the file again") from error
    return header


def _entry(path: Path, key: str, entry: Any) -> tuple[str, tuple[int, ...], int, int]:
    """Return (kind, shape, first byte, byte after the last) of one tensor, each checked."""
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        raise FileFormatError(
            f"{path}: the header's entry for {key!r} lacks a dtype, shape or offsets; download it again"
        )
    check_name(path, key)
    shape, offsets = entry["shape"], entry["data_offsets"]
    if not (_are_sizes(shape) and _are_sizes(offsets) and len(offsets) == 2 and offsets[0] <= offsets[1]):
        raise FileFormatError(
            f"{path}: {key!r} has an impossible shape or place in the header; download the file again"
        )
    if len(shape) > MOST_DIMENSIONS:
        raise FileFormatError(f"{path}: {key!r} has {len(shape)} dimensions; more than {MOST_DIMENSIONS} are not read")
    kind = KINDS.get(str(entry["dtype"]))
    if kind is None:
        raise FileFormatError(f"{path}: {key!r} is stored as {entry['dtype']}; {NOT_READ}")
    if math.prod(shape) * bytes_of(kind) != offsets[1] - offsets[0]:
        raise FileFormatError(
            f"{path}: {key!r} has {offsets[1] - offsets[0]} bytes, not what {entry['dtype']} of shape {shape} takes; "
            "download the file again"
        )
    return kind, tuple(shape), offsets[0], offsets[1]


def check_name(path: Path, key: str) -> None:
    """Raise FileFormatError for a tensor's name that is longer than any real one."""
    if len(key) > LONGEST_NAME:
        raise FileFormatError(
            f"{path}: the name {key[:40]!r}… has {len(key)} characters; more than {LONGEST_NAME} are not read"
        )


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _check_cover(path: Path, entries: dict[str, tuple[str, tuple[int, ...], int, int]], room: int) -> int:
    """Check that the entries lie end to end and fit into the data section; return where the last one ends."""
    position = 0
    for key, (_, _, begin, end) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if begin != position:
            raise FileFormatError(f"{path}: the data of {key!r} overlaps or leaves a gap; download the file again")
        position = end
    if position > room:
        raise FileFormatError(
            f"{path} is truncated: the header describes {position} bytes of data, {room} are there; download it again"
        )
    return position
