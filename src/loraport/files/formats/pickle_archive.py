"""Checks of the zip archive around a PyTorch pickle, made before it is loaded: what is mapped has to be the tensors.

PyTorch maps a member's bytes without asking whether they are compressed, and reads the small members whole, however
large their header says they are. So every member has to be stored as it is, lie where both of its headers say, inside
the file and apart from the others, and what is not a tensor's data has to be small.
"""

from __future__ import annotations

import io
import mmap
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from loraport.errors import FileFormatError

LONGEST_MEMBER = 100_000_000
"""Bytes of the pickle and of every other member that holds no tensor data; they are read into memory whole."""

_MAGIC = b"PK\x03\x04"
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_ENCRYPTED = 1
_PAGE = 4096
_ALLOCATOR = b"bytearray"
"""The one function of weights-only loading that allocates what a number says; no table of tensors needs it."""


def members_of(path: Path) -> dict[int, int] | None:
    """Return first byte -> size of each member with a tensor's data; None where the file is not a zip archive.

    Raises FileFormatError for members that are compressed, encrypted, repeated, overlapping, misplaced or too long.
    """
    with path.open("rb") as file:
        if file.read(len(_MAGIC)) != _MAGIC:
            _check_pickle(path, _mapped(file))
            return None
        try:
            entries = zipfile.ZipFile(file).infolist()
            places = [(_first_byte(path, file, entry), entry) for entry in entries]
        except (zipfile.BadZipFile, ValueError, struct.error, NotImplementedError, OverflowError) as error:
            raise _damaged(path, str(error)) from error
        _check_cover(path, places, path.stat().st_size)
        for first, entry in places:
            if entry.filename.endswith("data.pkl"):
                file.seek(first)
                _check_pickle(path, file.read(entry.file_size))
    return {first: entry.file_size for first, entry in places if _is_data(entry) and entry.file_size}


def check_mapping(path: Path, storages: Mapping[int, int], members: Mapping[int, int]) -> None:
    """Check that mapped storages (address -> bytes) are exactly members of the file that is mapped.

    Raises FileFormatError where they are not: the pickle says another length than the archive, or another place.
    """
    # PyTorch does not tell where it mapped the file. Any member as long as the first storage could be that storage, if
    # it has the same place in a page, since files are mapped by pages: one of these has to explain all the others.
    address, size = next(iter(storages.items()), (0, 0))
    for first in (first for first, length in members.items() if length == size and (address - first) % _PAGE == 0):
        start = address - first
        if all(members.get(at - start) == length for at, length in storages.items()):
            return
    if storages:
        raise _damaged(path, "the sizes of its tensors are not those of the archive's members")


def _first_byte(path: Path, file: BinaryIO, entry: zipfile.ZipInfo) -> int:
    """Return where a member's bytes begin, by its local header, which has to say what the directory says."""
    if entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size:
        raise FileFormatError(
            f"{path} was compressed ({entry.filename} is), and a PyTorch file holds its tensors as they are, to be "
            "read in place; load it with torch.load and save it again with torch.save"
        )
    file.seek(entry.header_offset)
    magic, _, flags, method, *_, name_length, extra_length = _LOCAL.unpack(file.read(_LOCAL.size))
    name = file.read(name_length)
    encoding = "utf-8" if flags & 0x800 else "cp437"
    if magic != _MAGIC or method != zipfile.ZIP_STORED or name.decode(encoding) != entry.orig_filename:
        raise ValueError(f"the two headers of {entry.filename!r} differ")
    if (flags | entry.flag_bits) & _ENCRYPTED:
        raise ValueError(f"{entry.filename!r} is encrypted")
    return entry.header_offset + _LOCAL.size + name_length + extra_length


def _check_cover(path: Path, places: list[tuple[int, zipfile.ZipInfo]], size: int) -> None:
    """Check that names are unique, members lie apart and inside the file, and only tensors' data is long."""
    names: set[str] = set()
    end = 0
    for first, entry in sorted(places, key=lambda pair: pair[0]):
        if entry.filename in names:
            raise _damaged(path, f"{entry.filename!r} stands twice in its archive")
        if entry.header_offset < end or first + entry.file_size > size:
            raise _damaged(path, f"{entry.filename!r} overlaps another member or the file's end")
        if not _is_data(entry) and entry.file_size > LONGEST_MEMBER:
            raise FileFormatError(
                f"{path}: {entry.filename!r} has {entry.file_size} bytes, and at most {LONGEST_MEMBER} are read of a "
                "member that holds no tensor; save the tensors alone as safetensors"
            )
        names.add(entry.filename)
        end = first + entry.file_size


def _mapped(file: BinaryIO) -> mmap.mmap | bytes:
    """Return the bytes of a whole file; an empty one cannot be mapped."""
    return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) if file.seek(0, io.SEEK_END) else b""


def _check_pickle(path: Path, content: mmap.mmap | bytes) -> None:
    if content.find(_ALLOCATOR) >= 0:
        raise FileFormatError(
            f"{path} holds more than tensors (bytearray), which could ask for any amount of memory; in the program "
            "that wrote it, save the tensors alone as safetensors"
        )


def _is_data(entry: zipfile.ZipInfo) -> bool:
    """Return whether a member is the data of a storage: `NAME/data/0`."""
    return entry.filename.partition("/")[2].startswith("data/")


def _damaged(path: Path, reason: str) -> FileFormatError:
    return FileFormatError(
        f"{path} cannot be read as a PyTorch file ({reason}); it is damaged or of another kind: download it again"
    )
