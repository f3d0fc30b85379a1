"""Find the LoRAs that words on a command line or in a manifest stand for: files, folders, globs, Hub ids."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from loraport.errors import InputError
from loraport.files.disk.user_paths import expand_home
from loraport.files.lora.locate import is_adapter_folder, lora_keys
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.locate import is_weights
from loraport.files.models.shards import PICKLES, SAFETENSORS, WEIGHTS

_MAGIC = re.compile(r"[*?\[]")
_UNFINISHED = (".partial", ".candidates")


@dataclass(frozen=True)
class FoundLora:
    """A LoRA, and what its output can be named after."""

    place: str
    """As `read_lora` takes it."""
    name: str
    """Of its file, without the ending, or of its folder."""
    folder: str = ""
    """Where it lies below the folder that was given; empty for a file that was given itself."""


def find_loras(words: Sequence[str], *, below: Path = Path(), leave: Path | None = None) -> tuple[FoundLora, ...]:
    """Return the LoRAs that words stand for, each once, in the order of the words, sorted within a folder or a glob.

    A folder with one adapter (PEFT's, or a set of shards) is that adapter; any other is searched with all folders
    inside it for files of weights and such adapters. Hidden files, and what unfinished runs left, are passed over, and
    so is all in the folder `leave`, where the results go. A word with `*`, `?` or `[` that is no path is a glob, in
    which `**` stands for folders at any depth. Relative words are taken from the folder `below` where they exist
    there. What would have the same name is told apart by the folders that it lies in.
    Raises InputError for a folder or a glob without any LoRA; all else is said when it is opened.
    """
    found: list[FoundLora] = []
    seen: set[str] = set()
    for word in words:
        place = _below(word, below)
        several = _expanded(place, leave)
        for one in several if several is not None else [FoundLora(place, _name(place))]:
            real = os.path.realpath(expand_home(one.place)) if expand_home(one.place).exists() else one.place
            if real in seen:
                continue
            seen.add(real)
            found.append(one)
    for number, folder in _folders_that_tell_apart(found):
        found[number] = replace(found[number], folder=folder)
    return tuple(found)


def stands_for_several(word: str) -> bool:
    """Return whether a word is a folder of LoRAs or a glob, however many there are in it."""
    path = expand_home(word)
    if path.is_dir():
        return not is_adapter_folder(path)
    return bool(_MAGIC.search(word)) and not path.exists()


def becomes_folder_itself(lora: str, format: str) -> bool:
    """Return whether the result of one LoRA is a folder, PEFT's; of one that cannot be read, no."""
    from loraport.files.lora.write import written_as_folder  # which loads PyTorch

    try:
        return written_as_folder(lora_keys(lora), format)
    except InputError:  # said when it is opened
        return False


def _below(word: str, folder: Path) -> str:
    """Return a word as it is found from a folder; with slashes for backslashes where only that is there."""
    for spelled in dict.fromkeys((word, word.replace("\\", "/"))):
        place = folder / expand_home(spelled)
        if place.exists() or (_MAGIC.search(spelled) and glob.glob(str(place), recursive=True)):
            return str(place) if folder != Path() else spelled
    return word


def _expanded(word: str, leave: Path | None) -> list[FoundLora] | None:
    """Return what is in a folder or matches a glob; None for a word that is one LoRA."""
    if not stands_for_several(word):
        return None
    root = expand_home(word)
    if root.is_dir():
        if leave is not None and _is_same(root, leave):
            raise InputError(f"{word} is the folder of the LoRAs and of the results; name another one for the results")
        found = list(_in_folder(root, root, leave, set()))
    else:
        fixed = Path(*_before_magic(root))
        matches = [Path(match) for match in sorted(glob.glob(str(root), recursive=True))]
        found = []
        for match in matches:
            if match.is_dir() and not is_adapter_folder(match):
                continue  # what it holds matches by itself, or was not asked for
            if match.is_dir() or is_weights(match.name):
                found += _at(match, fixed, leave)
    if not found:
        raise InputError(
            f"{word} holds no LoRA: no .safetensors, .pt or .bin file, and no PEFT folder; name another place"
        )
    return found


def _before_magic(path: Path) -> Iterator[str]:
    for part in path.parts[:-1]:
        if _MAGIC.search(part):
            return
        yield part


def _in_folder(folder: Path, root: Path, leave: Path | None, above: set[str]) -> Iterator[FoundLora]:
    real = os.path.realpath(folder)
    if real in above:
        return  # a link to a folder around it
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}") from error
    for entry in entries:
        path = Path(entry.path)
        if entry.name.startswith(".") or (entry.is_dir() and entry.name.endswith(_UNFINISHED)):
            continue
        if entry.is_dir() and not is_adapter_folder(path):
            if leave is None or not _is_same(path, leave):
                yield from _in_folder(path, root, leave, above | {real})
        elif entry.is_dir() or (entry.name.lower().endswith(WEIGHTS) and is_weights(entry.name)):
            yield from _at(path, root, leave)


def _at(path: Path, root: Path, leave: Path | None) -> Iterator[FoundLora]:
    if leave is None or not any(_is_same(folder, leave) for folder in path.parents):
        folder = path.parent.relative_to(root).as_posix()
        yield FoundLora(str(path), _name(str(path)), "" if folder == "." else folder)


def _is_same(one: Path, other: Path) -> bool:
    return os.path.realpath(one) == os.path.realpath(other)


def _name(place: str) -> str:
    """Return `style` for `loras/style.safetensors`; of a Hub id, its file or repository counts."""
    path = expand_home(place)
    file = path if path.exists() or not looks_like_hub_id(place) else Path(place.rpartition(":")[2].rstrip("/"))
    if file.suffix.lower() in (*SAFETENSORS, *PICKLES):
        return file.stem
    return file.resolve().name if path.exists() else file.name  # `.` and `..` have a name of their own


def _folders_that_tell_apart(found: Iterable[FoundLora]) -> Iterator[tuple[int, str]]:
    """Yield (number, folder) for those that would have one name: the folders from the last one that they share."""
    by_name: dict[tuple[str, str], list[tuple[int, FoundLora]]] = {}
    for number, one in enumerate(found):
        by_name.setdefault((one.folder.casefold(), one.name.casefold()), []).append((number, one))
    for alike in by_name.values():
        if len(alike) == 1:
            continue
        parts = [_folders(one.place) for _, one in alike]
        shared = next(
            (at for at, same in enumerate(zip(*parts, strict=False)) if len({*same}) > 1), min(map(len, parts))
        )
        for own, (number, _) in zip(parts, alike, strict=True):
            yield number, "/".join(part.strip("\\/:") for part in own[shared:])


def _folders(place: str) -> tuple[str, ...]:
    """Return the folders that a LoRA lies in; of a Hub id, its owner."""
    path = expand_home(place)
    if not path.exists() and looks_like_hub_id(place):
        return tuple(place.partition(":")[0].split("/")[:-1])
    return Path(os.path.abspath(path)).parent.parts
