"""Which files a model's place means: a file, a set of shards, or a folder with a transformer inside.

The choice is made on names alone, so that it is the same for a folder on disk and for a listing of the Hub.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from loraport.errors import FileFormatError, InputError

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
GGUF = ".gguf"
INDEX = ".safetensors.index.json"
INNER_FOLDERS = ("transformer", "unet", "transformer_2", "high_noise_model", "low_noise_model")
"""Where diffusers and the makers of Wan put the network; several at once are experts, and one has to be named."""

_EXPERTS = ({"transformer", "transformer_2"}, {"high_noise_model", "low_noise_model"})

Needed = Callable[[Mapping[str, str]], set[str]]
"""From an index (tensor name -> shard) to the shards that are needed."""

_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
_LONGEST_INDEX = 64_000_000


@dataclass(frozen=True)
class Place:
    """The files of one model: a folder relative to where it was looked for, names in it, and the index if any."""

    folder: str
    names: tuple[str, ...]
    index: str | None = None


def files_of(where: Path, inner: str | None = None, needed: Needed | None = None) -> tuple[Path, ...]:
    """The files that hold the model at an existing path; `inner` names a folder inside it.

    Of shards with an index only those that are `needed` count, where that is given.

    Raises FileFormatError or InputError for missing shards, folders without weights, and more than one candidate.
    """
    if where.is_file():
        if where.name.endswith(INDEX):
            return _indexed(where, needed)
        siblings = [entry.name for entry in where.parent.iterdir()] if _SHARD.fullmatch(where.name) else [where.name]
        return tuple(where.parent / name for name in shard_set(where.name, siblings, str(where.parent)))
    root = where / inner if inner is not None else where
    if not root.is_dir():
        raise InputError(f"{where} has no folder {inner!r}; name one that exists")
    listing = [entry.name for entry in root.iterdir()]
    for folder in INNER_FOLDERS:
        if folder in listing and (root / folder).is_dir():
            listing += [f"{folder}/{entry.name}" for entry in (root / folder).iterdir()]
    try:
        place = choose(listing, str(root))
    except FileFormatError as error:
        deeper = sorted({path.parent for path in root.glob("*/*/*") if path.name.endswith(SAFETENSORS)})
        if not deeper:
            raise
        listed = ", ".join(map(str, deeper[:5])) + (", …" if len(deeper) > 5 else "")
        raise InputError(f"{root} holds its weights deeper down; name one of: {listed}") from error
    if place.index is not None:
        return _indexed(root / place.folder / place.index, needed)
    return tuple(root / place.folder / name for name in place.names)


def choose(listing: Iterable[str], where: str, join: str = "/") -> Place:
    """The one model among the files of a folder, given as names relative to it.

    Weights in the folder itself count, or those of one inner folder such as `transformer/`; in a diffusers pipeline
    (a folder with `model_index.json`) only the inner ones do. `join` stands between the place and a folder in messages.
    """
    names = sorted(listing)
    inner = [folder for folder in INNER_FOLDERS if _weights(names, folder)]
    top = [] if "model_index.json" in names and inner else _weights(names, "")
    single = [name for kind in ((GGUF,), PICKLES) for name in names if "/" not in name and name.lower().endswith(kind)]
    if not top and not inner and single:
        if len(single) > 1:
            raise InputError(f"{where} holds several models: {', '.join(single)}; name one of these files")
        return Place("", tuple(single))
    candidates = ([""] if top else []) + inner
    if not candidates:
        raise FileFormatError(
            f"{where} has no weights: no .safetensors, .gguf or .pt file, no transformer/ or unet/ with any"
        )
    if len(candidates) > 1:
        listed = ", ".join(f"{where}{join}{folder or top[0]}" for folder in candidates)
        both = "; transfer --experts takes both experts" if set(candidates) in _EXPERTS else ""
        raise InputError(f"{where} holds several models; name one of: {listed}{both}")
    folder = candidates[0]
    return _one_set(_weights(names, folder), folder, f"{where}/{folder}" if folder else where)


def _weights(names: Iterable[str], folder: str) -> list[str]:
    start = f"{folder}/" if folder else ""
    inside = [name.removeprefix(start) for name in names if name.startswith(start)]
    return [name for name in inside if "/" not in name and name.endswith((*SAFETENSORS, INDEX))]


def _one_set(names: list[str], folder: str, where: str) -> Place:
    """The single file, the complete set of shards or the index among the weights of one folder."""
    indexes = [name for name in names if name.endswith(INDEX)]
    files = [name for name in names if not name.endswith(INDEX)]
    stems = {match["stem"] if (match := _SHARD.fullmatch(name)) else name for name in files}
    if len(indexes) == 1 and stems <= {indexes[0].removesuffix(INDEX)}:
        return Place(folder, tuple(files), indexes[0])
    if len(stems) != 1 or len(indexes) > 1:
        if len(indexes) == 1 and not any(_SHARD.fullmatch(name) for name in files):
            return Place(folder, tuple(files), indexes[0])
        raise InputError(f"{where} holds several models: {', '.join(indexes + sorted(stems))}; name one of these files")
    return Place(folder, shard_set(files[0], files, where))


def shard_set(name: str, siblings: Iterable[str], where: str) -> tuple[str, ...]:
    """All the shards of the set that one shard's name announces, in order; any other name stands for itself."""
    match = _SHARD.fullmatch(name)
    if match is None:
        return (name,)
    present = set(siblings)
    count = int(match["count"])
    wanted = [f"{match['stem']}-{number:05d}-of-{match['count']}.safetensors" for number in range(1, count + 1)]
    if missing := [shard for shard in wanted if shard not in present]:
        shown = ", ".join(missing[:5]) + (f" and {len(missing) - 5} more" if len(missing) > 5 else "")
        raise FileFormatError(f"{where} lacks {len(missing)} of {count} shards: {shown}; download them")
    return tuple(wanted)


def read_index(path: Path) -> Mapping[str, str]:
    """Tensor name -> shard of an index file. Shards are plain file names beside the index; nothing else is followed."""
    try:
        if path.stat().st_size > _LONGEST_INDEX:
            raise ValueError("it is too long for an index")
        weight_map = json.loads(path.read_bytes())["weight_map"]
        if not weight_map or not all(isinstance(shard, str) for shard in weight_map.values()):
            raise ValueError("its weight_map is empty or holds no file names")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path} is not an index of shards ({error}); download it again") from error
    for shard in sorted(set(weight_map.values())):
        if Path(shard).name != shard or "\\" in shard or "\0" in shard or not shard.endswith(SAFETENSORS):
            raise FileFormatError(
                f"{path} names {shard!r}, which is no safetensors file in the same folder; nothing else is followed: "
                "mend the index"
            )
    return dict(weight_map)


def indexes_beside(paths: tuple[Path, ...], *, partly: bool = False) -> list[Path]:
    """The indexes that describe this very set of shards, or a larger one that holds it."""
    indexes = sorted(path for path in paths[0].parent.iterdir() if path.name.endswith(INDEX))
    names = {path.name for path in paths}
    listed = {index: set(read_index(index).values()) for index in indexes}
    return [index for index in indexes if listed[index] == names or (partly and listed[index] > names)]


def _indexed(index: Path, needed: Needed | None) -> tuple[Path, ...]:
    table = read_index(index)
    shards = sorted(set(table.values()) if needed is None else needed(table))
    if missing := [shard for shard in shards if not (index.parent / shard).is_file()]:
        raise FileFormatError(f"{index} names shards that are not there: {', '.join(missing[:5])}; download them")
    return tuple(index.parent / shard for shard in shards)
