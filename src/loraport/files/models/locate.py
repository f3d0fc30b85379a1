"""Which files a model's path means: a file, a set of shards, or a folder with a transformer inside.

The choice is made on names alone, so that it is the same for a folder on disk and for a listing of the Hub.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import FileFormatError, InputError
from loraport.files.disk.user_paths import open_regular_file
from loraport.files.models.shards import (
    SAFETENSORS,
    WEIGHTS,
    ShardSet,
    index_of,
    set_of,
    sets_among,
)

INDEX = ".safetensors.index.json"
INNER_FOLDERS = ("transformer", "unet", "transformer_2", "high_noise_model", "low_noise_model")
"""Where diffusers and the makers of Wan put the network; several at once are experts, and one has to be named."""

_EXPERTS = ({"transformer", "transformer_2"}, {"high_noise_model", "low_noise_model"})

ShardFilter = Callable[[Mapping[str, str]], set[str]]
"""From an index (tensor name -> shard) to the shards that are needed."""

_LONGEST_INDEX = 64_000_000
_OF_TRAINING = re.compile(
    r"(optimizer|scheduler|training_args|rng_state|random_states|scaler)([._-].*)?", re.IGNORECASE
)
"""Names of files that trainers leave beside the weights."""
_OF_OTHERS = re.compile(r"(?i)(?<![a-z])(t5|umt5|vae|clip|text_encoder|image_encoder)(?![a-z])")
"""What the names of text encoders and autoencoders have in them; their lying beside a network needs no note."""


@dataclass(frozen=True)
class FileChoice:
    """The files of one model: a folder relative to where it was looked for, names in it, and the index if any."""

    folder: str
    names: tuple[str, ...]
    index: str | None = None
    notes: tuple[str, ...] = ()
    """Notes for people: what was passed over."""


@dataclass(frozen=True)
class ModelPaths:
    """The files that hold a model, and what was passed over in finding them."""

    paths: tuple[Path, ...]
    notes: tuple[str, ...] = ()


def find_files(where: Path, inner: str | None = None, needed: ShardFilter | None = None) -> ModelPaths:
    """Return the files that hold the model at an existing path; `inner` names a folder inside it.

    Of shards with an index only those that are `needed` count, where that is given.

    Raises FileFormatError or InputError for missing shards, folders without weights, and more than one candidate.
    """
    if where.is_file():
        return _files_with(where, needed)
    root = _snapshot(where / inner if inner is not None else where)
    if not root.is_dir():
        raise InputError(f"{where} has no folder {inner!r}; name one that exists")
    listing = [entry.name for entry in root.iterdir()]
    for folder in INNER_FOLDERS:
        if folder in listing and (root / folder).is_dir():
            listing += [f"{folder}/{entry.name}" for entry in (root / folder).iterdir()]
    try:
        choice = choose(listing, str(root))
    except FileFormatError as error:
        paths = (path for path in root.glob("*/*/*") if is_weights(path.name))
        deeper = sorted({path.parent for path in paths})
        if not deeper:
            raise
        listed = ", ".join(map(str, deeper[:5])) + (", …" if len(deeper) > 5 else "")
        raise InputError(f"{root} has its weights in a subfolder; name one of: {listed}") from error
    if choice.index is not None:
        return ModelPaths(_indexed(root / choice.folder / choice.index, needed), choice.notes)
    return ModelPaths(tuple(root / choice.folder / name for name in choice.names), choice.notes)


def choose(listing: Iterable[str], where: str, join: str = "/") -> FileChoice:
    """Return the one model among the files of a folder, given as names relative to it.

    Weights in the folder itself count, or those of one inner folder such as `transformer/`; in a diffusers pipeline
    (a folder with `model_index.json`) only the inner ones do. Safetensors files come before all others. `join` stands
    between the place and a folder in messages.
    """
    names = sorted(listing)
    inner = [folder for folder in INNER_FOLDERS if _weights(names, folder)]
    pipeline = "model_index.json" in names and bool(inner)
    top = [] if pipeline else _weights(names, "")
    if inner and not any(_kind(name) == 0 for name in top):
        top = []  # text encoders and autoencoders as pickles lie beside the network's folder
    candidates = ([""] if top else []) + inner
    if not candidates:
        raise FileFormatError(_without_weights(names, where))
    if len(candidates) > 1:
        listed = ", ".join(f"{where}{join}{folder or top[0]}" for folder in candidates)
        both = "; transfer --experts takes both experts" if set(candidates) in _EXPERTS else ""
        raise InputError(f"{where} holds several models; name one of: {listed}{both}")
    folder = candidates[0]
    return _one_set(_weights(names, folder), folder, f"{where}/{folder}" if folder else where)


def _without_weights(names: list[str], where: str) -> str:
    if any(name.endswith(".distcp") for name in names):
        return (
            f"{where} is a distributed checkpoint (.distcp), which is not read as it is; make one file of it: "
            f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {where} model.pt"
        )
    return f"{where} has no weights: no .safetensors, .gguf or .pt file, no transformer/ or unet/ with any"


def _kind(name: str) -> int:
    """Return 0 for safetensors files and their indexes, which come first; 1 for others."""
    index = index_of(name)
    return int(index.endings != SAFETENSORS) if index else int(not name.lower().endswith(SAFETENSORS))


def is_weights(name: str) -> bool:
    """Return whether a name is that of weights or an index; what macOS leaves beside each file (`._x`) is not."""
    if name.startswith(".") or _OF_TRAINING.fullmatch(name):
        return False
    return name.lower().endswith(WEIGHTS) or index_of(name) is not None


def _weights(names: Iterable[str], folder: str) -> list[str]:
    start = f"{folder}/" if folder else ""
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    return [name for name in inside if "/" not in name and is_weights(name)]


def _one_set(names: list[str], folder: str, where: str) -> FileChoice:
    """Return the single file, the complete set of shards or the index among the weights of one folder."""
    first = [name for name in names if _kind(name) == min(map(_kind, names))]
    indexes = [name for name in first if index_of(name)]
    files = [name for name in first if not index_of(name)]
    sets = sets_among(files)
    others = [name for name in names if name not in first and not index_of(name) and not _OF_OTHERS.search(name)]
    taken = ", ".join(one.name for one in sets) or ", ".join(indexes)
    notes = (f"{where}: {taken} is read, and not {', '.join(others[:5])} beside it",) if others else ()
    if len(indexes) == 1 and (stem := index_of(indexes[0])):
        own = all(one.stem == stem.stem and one.several for one in sets)
        if own or not any(one.several for one in sets):
            return FileChoice(folder, tuple(files), indexes[0], notes)
    if indexes:
        raise _several(where, [*indexes, *(one.name for one in sets)])
    chosen, more = _whole(sets, where)
    return FileChoice(folder, chosen.wanted, None, (*notes, *more))


def _whole(sets: list[ShardSet], where: str) -> tuple[ShardSet, tuple[str, ...]]:
    """Return the one set of which nothing is missing, and a note where another of its name is broken."""
    whole = [one for one in sets if not one.missing]
    broken = [one for one in sets if one.missing]
    if len(whole) == 1 and all(one.stem == whole[0].stem for one in broken):
        lacking = (f"{one.name} lacks {len(one.missing)} of {len(one.wanted)} files" for one in broken)
        return whole[0], tuple(f"{where}: {whole[0].name} is read; {text} and is left alone" for text in lacking)
    if not whole and len(broken) == 1:
        raise _lacking(broken[0], where)
    raise _several(where, [one.name for one in sets])


def _several(where: str, names: list[str]) -> InputError:
    single = [name for name in names if "*" not in name]
    advice = "name one of these files" if single else "leave one of these sets in the folder"
    return InputError(f"{where} holds several models: {', '.join(names)}; {advice}")


def shard_set(name: str, siblings: Iterable[str], where: str) -> tuple[str, ...]:
    """Return all the files of the set that one file's name announces, in order; any other name stands for itself."""
    found = set_of(name, siblings)
    if found.missing:
        raise _lacking(found, where)
    return found.wanted


def _lacking(one: ShardSet, where: str) -> FileFormatError:
    missing = one.missing
    shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
    return FileFormatError(f"{where} lacks {len(missing)} of {len(one.wanted)} shards: {shown}; download them")


def read_index(path: Path) -> Mapping[str, str]:
    """Return tensor name -> shard of an index. Shards are plain file names beside it; nothing else is followed."""
    try:
        if path.stat().st_size > _LONGEST_INDEX:
            raise ValueError("it is too long for an index")
        weight_map = json.loads(_bytes(path))["weight_map"]
        if not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError("its weight_map is empty or holds no file names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not an index of shards ({error}); download it again") from error
    named = index_of(path.name)
    endings = named.endings if named else SAFETENSORS
    plain = {shard: _in_this_folder(shard) for shard in sorted(set(weight_map.values()))}
    for shard, name in plain.items():
        if Path(name).name != name or "\\" in name or "\0" in name or not name.lower().endswith(endings):
            kind = "safetensors" if endings == SAFETENSORS else endings[-1]
            raise FileFormatError(
                f"{path} names {shard!r}, which is not a {kind} file in the same folder; nothing else is followed: "
                "mend the index"
            )
    return {key: plain[shard] for key, shard in weight_map.items()}


def _bytes(index: Path) -> bytes:
    with open_regular_file(index) as file:
        return file.read()


def _in_this_folder(shard: str) -> str:
    """Return a name without `./` before it."""
    return posixpath.normpath(shard) if shard.startswith("./") and ".." not in shard else shard


def indexes_beside(paths: tuple[Path, ...], *, partly: bool = False) -> list[Path]:
    """Return the indexes that describe this very set of shards, or a larger one that holds it."""
    indexes = sorted(path for path in paths[0].parent.iterdir() if is_weights(path.name) and index_of(path.name))
    names = {path.name for path in paths}
    listed = {index: set(read_index(index).values()) for index in indexes}
    return [index for index in indexes if listed[index] == names or (partly and listed[index] > names)]


def _files_with(path: Path, needed: ShardFilter | None) -> ModelPaths:
    """Return what a named file stands for: itself, the set whose part it is, or what it lists."""
    if index_of(path.name):
        return ModelPaths(_indexed(path, needed))
    siblings = [entry.name for entry in path.parent.iterdir() if is_weights(entry.name)]
    names = shard_set(path.name, siblings, str(path.parent))
    if len(names) > 1 or len(siblings) == 1:
        return ModelPaths(tuple(path.with_name(name) for name in names))
    indexes = [path.with_name(name) for name in siblings if index_of(name)]
    known = [index for index in indexes if path.name.encode() in _bytes(index)]  # others may be of any kind
    if larger := [index for index in known if {path.name} < set(read_index(index).values())]:
        return ModelPaths(
            _indexed(larger[0], needed), (f"{path} is one of the shards that {larger[0]} lists: all are read",)
        )
    return ModelPaths((path,))


def _indexed(index: Path, needed: ShardFilter | None) -> tuple[Path, ...]:
    table = read_index(index)
    shards = sorted(set(table.values()) if needed is None else needed(table))
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        stem = index_of(index.name)
        beside = sets_among(entry.name for entry in index.parent.iterdir() if entry.name.lower().endswith(WEIGHTS))
        whole = [one.name for one in beside if not one.missing and stem and one.stem == stem.stem]
        advice = f"{whole[0]} beside it is whole: remove the index, and that is read" if whole else "download them"
        raise FileFormatError(f"{index} names shards that are not there: {', '.join(missing[:5])}; {advice}")
    return tuple(index.parent / shard for shard in shards)


def _snapshot(folder: Path) -> Path:
    """Return the current snapshot of a repository in the Hub's cache, where its top folder is given; else the folder.

    Raises InputError where there are several and none is the current one.
    """
    snapshots = folder / "snapshots"
    if not (snapshots.is_dir() and (folder / "refs").is_dir()):
        return folder
    current = folder / "refs" / "main"
    commit = current.read_text().strip() if current.is_file() and current.stat().st_size < 100 else ""
    if commit and Path(commit).name == commit and (snapshots / commit).is_dir():
        return snapshots / commit
    several = sorted(entry for entry in snapshots.iterdir() if entry.is_dir())
    if len(several) == 1:
        return several[0]
    listed = ", ".join(map(str, several[:5])) or "none"
    raise InputError(f"{folder} is a repository in the Hub's cache; name one of its snapshots: {listed}")
