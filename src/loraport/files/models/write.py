"""Write a checkpoint again with some tensors changed: same names, dtypes, shards and index, one tensor at a time.

A single file becomes a file, a folder a folder: the one with the weights, so of a diffusers pipeline its transformer,
with the `config.json` beside them. What a pickle held is written as safetensors under its keys of the chosen part.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path

from torch import Tensor

from loraport.errors import FileFormatError, InputError, OutputError
from loraport.files.adapters.fused import stored_tensor
from loraport.files.disk.free_space import check_free_space
from loraport.files.disk.protect_inputs import protect_inputs
from loraport.files.formats.safetensors_read import KINDS, StoredTensor, read_safetensors
from loraport.files.formats.safetensors_write import (
    OWN_PREFIX,
    Pending,
    data_bytes,
    save_folder,
    save_safetensors,
    write_safetensors,
)
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.locate import INDEX, indexes_beside, read_index
from loraport.files.models.shards import SAFETENSORS, index_of
from loraport.files.names.families import Piece

CONFIG = "config.json"
VERSION = f"{OWN_PREFIX}version"
"""In the metadata of every file of a result."""
STALE = ("sshs_", "modelspec.hash")
"""Metadata of the input that a changed tensor makes untrue."""


def is_folder(model: Checkpoint) -> bool:
    """Return whether a model was given as a folder or a set of shards, and will be written as a folder."""
    return len(model.paths) > 1 or not model.where.endswith(model.paths[0].name)


def check_output_path(output: Path, model: Checkpoint, others: Iterable[Path | str | None] = ()) -> None:
    """Raise OutputError, before any work, for a path that the model cannot be written to.

    That is, too, where it would replace the model or one of the `others` that the result is made of.
    """
    protect_inputs(
        output, (model.where, *model.paths, *((model.paths[0].parent,) if is_folder(model) else ()), *others)
    )
    if is_folder(model):
        if output.is_file() or output.suffix in SAFETENSORS:
            raise OutputError(f"{model.where} is a folder, and so is the result: name a folder, not {output}")
        if output.is_dir() and {entry.name for entry in output.iterdir()} - _replaceable(output, model):
            raise OutputError(f"{output} is a folder with other files in it; name a new or an empty one")
    elif output.is_dir():
        raise OutputError(f"{output} is a folder, but this result is one file; name a .safetensors file in it")
    elif output.suffix not in SAFETENSORS:
        raise OutputError(f"{output} has no .safetensors ending, and that is what is written; add it")


def write_model(
    output: Path,
    model: Checkpoint,
    changed: Mapping[str, Callable[[], Tensor]],
    metadata: Mapping[str, str],
    written: Callable[[int], None] = lambda size: None,
) -> None:
    """Write the model with some parameters (by canonical name) replaced, one in memory at a time, whole or not at all.

    All others are copied bit by bit. `written` is called with the bytes of each tensor in its turn.
    Raises OutputError where it cannot be written, and whatever the making of a parameter raises.
    """
    files: dict[Path, dict[str, Pending]] = {path: _copied(path, model, written) for path in model.paths}
    for key, (stored, pieces) in model.stored.items():
        if any(name in changed for name, _ in pieces):
            files[stored.path][key] = _pending(stored, partial(_made, model, pieces, changed), written)
    check_free_space({output: sum(map(data_bytes, files.values()))})
    if not is_folder(model):
        [(path, pending)] = files.items()
        save_safetensors(output, pending, _metadata(path, metadata))
        return

    def fill(folder: Path) -> None:
        for path, pending in files.items():
            write_safetensors(folder / _written_name(path.name), pending, _metadata(path, metadata))
        config = model.paths[0].with_name(CONFIG)
        if config.is_file():
            shutil.copyfile(config, folder / CONFIG)
        for index in indexes_beside(model.paths):
            _copy_index(index, folder)

    save_folder(output, fill, _replaceable(output, model))


def _replaceable(output: Path, model: Checkpoint) -> frozenset[str]:
    """Return the files that would be written, if what is in the folder now is an earlier result of ours; else none."""
    found = [entry for entry in output.iterdir() if entry.suffix in SAFETENSORS] if output.is_dir() else []
    try:
        ours = all(VERSION in read_safetensors(entry).metadata for entry in found)
    except InputError:
        ours = False
    indexes = (index_of(index.name) for index in indexes_beside(model.paths))
    names = {CONFIG, *(_written_name(path.name) for path in model.paths)}
    names |= {f"{one.stem}{INDEX}" for one in indexes if one}
    return frozenset(names) if ours and found else frozenset()


def _copied(path: Path, model: Checkpoint, written: Callable[[int], None]) -> dict[str, Pending]:
    """Return every tensor of a file as it stands there: codes with their scales, which `stored` has as the values."""
    if path.suffix.lower() in SAFETENSORS:
        raw = read_safetensors(path).tensors
    else:
        raw = {key: stored for key, (stored, _) in model.stored.items() if stored.path == path}
    return {key: _pending(stored, stored.read, written) for key, stored in raw.items()}


def _written_name(name: str) -> str:
    """Return the name of a file of the model in the result: what is written is safetensors."""
    return name if name.endswith(SAFETENSORS) else f"{Path(name).stem}.safetensors"


def _copy_index(index: Path, folder: Path) -> None:
    """Copy an index of safetensors files; write any other one with the names of what is written."""
    named = index_of(index.name)
    if named is None or named.endings == SAFETENSORS:
        shutil.copyfile(index, folder / index.name)
        return
    content = json.loads(index.read_bytes())
    content["weight_map"] = {key: _written_name(shard) for key, shard in read_index(index).items()}
    (folder / f"{named.stem}{INDEX}").write_bytes((json.dumps(content, indent=2) + "\n").encode())


def _made(model: Checkpoint, pieces: tuple[Piece, ...], changed: Mapping[str, Callable[[], Tensor]]) -> Tensor:
    """Return a stored tensor put together from the parameters that it holds, some of them replaced."""
    made = {rows.part: changed[name]() if name in changed else model.tensor(name) for name, rows in pieces}
    return stored_tensor(made, pieces[0][1])


def _pending(stored: StoredTensor, make: Callable[[], Tensor], written: Callable[[int], None]) -> Pending:
    if stored.kind not in KINDS.values():
        raise FileFormatError(f"{stored.path}: {stored.key} is stored as {stored.dtype}, which safetensors cannot hold")

    def made() -> Tensor:
        tensor = make()
        written(tensor.nbytes)
        return tensor

    return Pending(stored.dtype, stored.shape, made)


def _metadata(path: Path, ours: Mapping[str, str]) -> dict[str, str]:
    """Return what the input's header says and still holds, and our own entries."""
    theirs = read_safetensors(path).metadata if path.suffix.lower() in SAFETENSORS else {}
    return {"format": "pt"} | {key: value for key, value in theirs.items() if not key.startswith(STALE)} | dict(ours)
