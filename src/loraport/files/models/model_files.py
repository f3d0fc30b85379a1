"""The tensors of all files of one model, by their keys in the files, whatever format the files have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from loraport.digests import text_digest
from loraport.errors import FileFormatError
from loraport.files.disk.user_paths import check_input
from loraport.files.formats.in_memory import InMemory, stored_in_memory
from loraport.files.formats.safetensors_read import StoredTensor, read_safetensors
from loraport.files.models.locate import indexes_beside, read_index
from loraport.files.models.shards import GGUF, PICKLES, SAFETENSORS, WEIGHTS
from loraport.objects.url_path import UrlPath


@dataclass(frozen=True)
class ModelFiles:
    """The tensors of a model's files as their headers describe them."""

    paths: tuple[Path, ...]
    tensors: dict[str, StoredTensor]
    headers: tuple[dict[str, str], ...]
    """The metadata of each file."""
    digest: str
    part: str | None = None
    """The entry of a pickle that was taken."""
    left: tuple[str, ...] = ()
    """The entries that could have been taken instead."""
    absent: tuple[str, ...] = ()
    """Keys that an index lists, in shards that were not asked for."""
    notes: tuple[str, ...] = ()
    fields: dict[str, str] = field(default_factory=dict)
    """Numbers and texts that pickles hold beside tensors."""


def read_files(
    paths: tuple[Path, ...], part: str | None, some: bool, wanted: Callable[[Iterable[str]], bool] | None = None
) -> ModelFiles:
    """Return all tensors of some files; `part` is the entry to take of a pickle, `some` whether shards may be left out.

    `wanted` tells by their keys which entries of a pickle are meant.

    Raises FileFormatError and InputError as the readers do, for kinds that are not read, and for a key in two files.
    """
    kinds = {path: _kind(path) for path in paths}
    if far := next(
        (path for path, kind in kinds.items() if isinstance(path, UrlPath) and kind not in SAFETENSORS), None
    ):
        raise FileFormatError(
            f"{far} is read from a store as a safetensors file only; copy it to a disk, and name that"
        )
    tensors: dict[str, StoredTensor] = {}
    headers, lines, notes = [], [], []
    taken: str | None = None
    left: tuple[str, ...] = ()
    fields: dict[str, str] = {}
    for path, kind in kinds.items():
        if kind in PICKLES:
            from loraport.files.formats.pickled import read_pickle  # PyTorch's own files: it has to be loaded

            found, taken, left, beside = read_pickle(path, part, wanted)
            fields |= beside
            lines += [f"{key} torch.{one.kind} {one.shape}" for key, one in found.items()] + [str(path.stat().st_size)]
        elif kind == GGUF:
            from loraport.files.formats.gguf import read_gguf

            found, digest = read_gguf(path, len(paths))
            lines.append(digest)
        else:
            file = read_safetensors(path)
            found = file.tensors
            headers.append(file.metadata)
            lines.append(file.digest)
        if kind != path.suffix.lower():
            notes.append(f"{path} is a {kind} file by what is in it, and is read as one")
        if twice := tensors.keys() & found.keys():
            key = min(twice)
            raise FileFormatError(f"{key!r} stands both in {tensors[key].path} and in {path}; remove one of them")
        tensors |= found
    absent = _absent(paths, tensors, some) if some or len(paths) > 1 else ()
    digest = lines[0] if len(lines) == 1 and kinds[paths[0]] == GGUF else text_digest(*lines)
    return ModelFiles(paths, tensors, tuple(headers), digest, taken, left, absent, tuple(notes), fields)


def files_in_memory(place: InMemory) -> ModelFiles:
    """Return tensors in memory as a file's. Raises FileFormatError for what is no plain tensor."""
    tensors = stored_in_memory(place)
    lines = [f"{key} {one.kind} {one.shape}" for key, one in tensors.items()]
    return ModelFiles((), tensors, (dict(place.metadata),), text_digest(*lines))


def _kind(path: Path) -> str:
    """Return the ending that a file should have: of a renamed one what its first bytes say, if that is safe to read."""
    check_input(path)
    ending = path.suffix.lower()
    if ending in WEIGHTS and ending not in PICKLES:
        return ending
    with path.open("rb") as file:
        start = file.read(9)
    if start[8:] == b"{" and int.from_bytes(start[:8], "little") < path.stat().st_size:
        return SAFETENSORS[0]
    if ending not in WEIGHTS:
        raise FileFormatError(f"{path} is of a kind that is not read; give one of {', '.join(WEIGHTS)}")
    return GGUF if start.startswith(b"GGUF") else ending


def _absent(paths: tuple[Path, ...], tensors: dict[str, StoredTensor], some: bool) -> tuple[str, ...]:
    """Return the keys that an index lists in shards left out. Raises FileFormatError where it contradicts the files."""
    here = {path.name for path in paths}
    absent: tuple[str, ...] = ()
    for index in indexes_beside(paths, partly=some):
        for key, shard in read_index(index).items():
            if shard not in here:
                absent += (key,)
            elif key not in tensors or tensors[key].path.name != shard:
                raise FileFormatError(f"{index} says that {key!r} is in {shard}, but it is not; download both again")
    return absent
