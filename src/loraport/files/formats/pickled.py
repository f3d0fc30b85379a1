"""PyTorch pickles (`.pt`, `.pth`, `.ckpt`, `.bin`), weights only and memory-mapped; code inside a file is never run."""

from __future__ import annotations

import math
import pickle
import re
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from loraport.errors import FileFormatError, InputError
from loraport.files.disk.identity import FileIdentity
from loraport.files.formats.pickle_archive import check_mapping, members_of
from loraport.files.formats.safetensors_read import StoredTensor, check_name, kind_of
from loraport.files.names.entries import PARTS

_NO_PARTS = ("optim", "scheduler", "lr_scheduler", "scaler", "rng")
"""Starts of entries that hold a trainer's state, not a network."""
_DEEPEST_PART = 3
_LONGEST_FIELD = 1000


class _LeftAside:
    """What takes the place of an object of a class that is not known to be safe: it takes everything, does nothing."""

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def __setstate__(self, _state: object) -> None:
        pass


def read_pickle(
    path: Path,
    part: str | None,
    wanted: Callable[[Iterable[str]], bool] | None = None,
    objects_aside: bool = False,
) -> tuple[dict[str, StoredTensor], str | None, tuple[str, ...], dict[str, str]]:
    """Return the tensors of one part of a pickle, its name (None for the file itself), the parts left, and fields.

    The fields are the numbers and texts that stand in the file beside all tensors, by the names on the way to them.

    `part` names the entry to take (`model.state_dict` one inside another); otherwise the best of PARTS is, or the only
    one. `wanted` tells by the keys which parts are meant, where some are. Data stays in the mapped file until read.
    Raises FileFormatError for what weights-only loading refuses, InputError for a part that is not there.
    """
    identity = FileIdentity.at(path)
    members = members_of(path)
    content = _load(path, members is not None, objects_aside)
    if not isinstance(content, dict):
        raise FileFormatError(
            f"{path} holds a {type(content).__name__}, not a table of tensors; save its state_dict instead"
        )
    table, part, left = _part_of(path, content, part, wanted)
    tensors = {str(key): value for key, value in dict.items(table) if isinstance(value, Tensor)}
    for key, value in tensors.items():
        check_name(path, key)
        _check_plain(path, key, value)
    if members is not None:
        storages = [Tensor.untyped_storage(value) for value in tensors.values()]
        check_mapping(path, {one.data_ptr(): one.nbytes() for one in storages if one.nbytes()}, members)
    identity.check(path)  # it was opened more than once, by PyTorch too
    stored = {
        key: StoredTensor(key, path, kind_of(value.dtype), tuple(value.shape), partial(_fresh, value, path, identity))
        for key, value in tensors.items()
    }
    return stored, part, left, _fields(content)


def _check_plain(path: Path, key: str, value: Tensor) -> None:
    """Raise FileFormatError for a tensor of another class or layout, or one that repeats a few values endlessly.

    A view of stride 0 of four bytes can announce terabytes.
    """
    if type(value) not in (Tensor, torch.nn.Parameter) or value.layout != torch.strided or value.is_meta:
        raise FileFormatError(
            f"{path}: {key!r} is a {type(value).__name__} of layout {value.layout}, not a plain tensor; "
            "gather it and save it again as safetensors"
        )
    size = math.prod(value.shape) * value.dtype.itemsize
    if size > path.stat().st_size:
        raise FileFormatError(
            f"{path}: {key!r} announces {size} bytes, more than the whole file has; save the network's state_dict anew"
        )


def _fresh(mapped: Tensor, path: Path, identity: FileIdentity) -> Tensor:
    # Checked before, since reading pages beyond the end of a file that became shorter ends the process. Methods are
    # taken from the class, since a pickle can give a tensor attributes of any name.
    identity.check(path)
    fresh = torch.clone(Tensor.detach(mapped), memory_format=torch.contiguous_format)
    identity.check(path)
    return fresh


def _load(path: Path, mapped: bool, objects_aside: bool) -> Any:
    """Return what the pickle holds. Before torch 1.6 files were not zip archives, and there is nothing to map."""
    try:
        names = get_unsafe_globals_in_checkpoint(path) if objects_aside and mapped else []
        with safe_globals([(_LeftAside, name) for name in names]):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except pickle.UnpicklingError as error:
        raise FileFormatError(_unsafe(path, str(error))) from error
    except (MemoryError, PermissionError):
        raise
    except Exception as error:  # damaged bytes can raise anything inside the unpickler
        raise FileFormatError(
            f"{path} cannot be read as a PyTorch file ({_first_line(error)}); it is damaged or of another kind: "
            "download it again"
        ) from error


def _unsafe(path: Path, message: str) -> str:
    match = re.search(r"GLOBAL ([\w.]+)", message) or re.search(r"[Cc]lass ([\w.]+)", message)
    if not match:
        return f"{path} cannot be loaded safely as a PyTorch file; it is damaged or of another kind: download it again"
    return (
        f"{path} holds more than tensors ({match[1]}), and loading that could run any code, so it is not done; "
        "in the program that wrote it, save the tensors alone as safetensors"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _part_of(
    path: Path, content: dict[Any, Any], part: str | None, wanted: Callable[[Iterable[str]], bool] | None
) -> tuple[dict[Any, Any], str | None, tuple[str, ...]]:
    tables = _tables(content)
    if part is not None:
        if part not in tables and _is_table(content) and any(f".{part}." in f".{key}" for key in content):
            return content, None, ()  # a part by what stands before the keys
        if part not in tables:
            known = ", ".join(filter(None, tables)) or "none: the file itself is the table of tensors"
            raise InputError(f"{path} has no part {part!r}; its parts: {known}")
        return tables[part], part, ()
    if wanted is not None:
        tables = {name: table for name, table in tables.items() if wanted(map(str, table))} or tables
    names = [name for name in tables if not name.startswith(_NO_PARTS)]
    for usual in PARTS:
        if found := [name for name in names if usual in name.split(".")]:
            return tables[found[0]], found[0], tuple(name for name in names if name != found[0])
    if "" in tables:
        return tables[""], None, tuple(filter(None, names))
    if len(names) == 1:
        return tables[names[0]], names[0], ()
    if names:
        raise InputError(f"{path} has several parts and none with a usual name; give one of them: {', '.join(names)}")
    raise FileFormatError(f"{path} is not a table of tensors; save the network's state_dict instead")


def _tables(content: dict[Any, Any]) -> dict[str, dict[Any, Any]]:
    """Return every table of tensors by the names on the way to it, shallow ones first; "" is the file itself."""
    tables: dict[str, dict[Any, Any]] = {}
    visited: set[int] = set()
    level = {"": content}
    for _ in range(_DEEPEST_PART):
        tables |= {name: table for name, table in level.items() if _is_table(table)}
        visited.update(map(id, level.values()))
        level = {
            f"{name}.{key}".lstrip("."): value
            for name, table in level.items()
            for key, value in dict.items(table)
            if isinstance(value, dict) and id(value) not in visited
        }
    return tables


def _fields(content: dict[Any, Any]) -> dict[str, str]:
    """Return the numbers and texts beside the tensors, without those of a trainer's state or of long lists."""
    fields: dict[str, str] = {}
    visited: set[int] = set()
    level = {"": content}
    for _ in range(_DEEPEST_PART):
        visited.update(map(id, level.values()))
        items = [
            (f"{start}.{key}".lstrip("."), value) for start, table in level.items() for key, value in dict.items(table)
        ]
        fields |= {name: str(value)[:_LONGEST_FIELD] for name, value in items if type(value) in (int, float, str)}
        level = {
            name: value
            for name, value in items
            if isinstance(value, dict) and id(value) not in visited and not name.startswith(_NO_PARTS)
        }
    return fields


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and any(isinstance(item, Tensor) for item in dict.values(value))
