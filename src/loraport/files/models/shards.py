"""Sets of files that make one model together, known by their names: numbered shards, a file a block, and their indexes.

A set is its name without the number: what stands before it, the count, and the ending. Two saves of one model into the
same folder are two sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

SAFETENSORS = (".safetensors", ".sft")
PICKLES = (".pt", ".pth", ".ckpt", ".bin")
GGUF = ".gguf"
WEIGHTS = (*SAFETENSORS, *PICKLES, GGUF)

_SHARD = re.compile(
    r"(?P<before>.*?)(?<!\d)(?P<number>\d{1,9})(?P<of>[-_]of[-_])(?P<count>\d{1,5})(?!\d)(?P<after>.*)",
    re.DOTALL | re.IGNORECASE,
)
_BLOCK = re.compile(r"(?:block_(?P<number>\d{1,4})|non_block)(?P<after>\..+)")
"""LightX2V's files by block."""
_INDEX = re.compile(
    rf"(?P<stem>.+?)(?P<kind>{'|'.join(map(re.escape, WEIGHTS))})\.index(?P<variant>\.[^.]+)?\.json", re.DOTALL
)


@dataclass(frozen=True)
class ShardSet:
    """The files that make one model, by their names, and those of them that are there."""

    name: str
    """For people, such as `model-*-of-00002.safetensors`."""
    stem: str
    """What the index of the set is called before its ending, with the variant: `model.fp16`."""
    wanted: tuple[str, ...]
    missing: tuple[str, ...] = ()

    @property
    def several(self) -> bool:
        """Whether it is more than one file that stands for itself."""
        return bool(self.missing) or self.wanted != (self.name,)


@dataclass(frozen=True)
class IndexName:
    """What the name of an index says: which set it is of, and the endings that its shards can have."""

    stem: str
    endings: tuple[str, ...]


def announced_shards(name: str) -> tuple[str, ...]:
    """Return the names of a whole set, where a file's name says that it is one of several; () where it does not."""
    found = _SHARD.fullmatch(name)
    if not found or not name.lower().endswith(WEIGHTS) or int(found["number"]) > int(found["count"]):
        return ()
    return _numbered(found, 0 if int(found["number"]) == 0 else 1)


def _numbered(shard: re.Match[str], first: int) -> tuple[str, ...]:
    """Return all the names of a set whose numbers begin with `first`."""
    width, count = len(shard["number"]), shard["count"]
    numbers = range(first, first + int(count))
    return tuple(f"{shard['before']}{number:0{width}d}{shard['of']}{count}{shard['after']}" for number in numbers)


def set_of(name: str, siblings: Iterable[str]) -> ShardSet:
    """Return the set that a file belongs to among those beside it; a file that is in none is a set of its own."""
    present = {*siblings, name}
    wanted, shown = announced_shards(name), name
    if wanted and (found := _SHARD.fullmatch(name)):
        shown = f"{found['before']}*{found['of']}{found['count']}{found['after']}"
        from_zero = _numbered(found, 0)
        wanted = from_zero if from_zero[0] in present else wanted
    elif block := _BLOCK.fullmatch(name):
        others = [match for other in present if (match := _BLOCK.fullmatch(other)) and match["after"] == block["after"]]
        numbers = [int(match["number"]) for match in others if match["number"]]
        if len(others) > 1 and numbers:
            blocks = (f"block_{number}{block['after']}" for number in range(max(numbers) + 1))
            wanted, shown = (*blocks, f"non_block{block['after']}"), f"block_*{block['after']}"
    missing = tuple(shard for shard in wanted if shard not in present)
    return ShardSet(shown, _stem(name), wanted or (name,), missing)


def sets_among(names: Iterable[str]) -> list[ShardSet]:
    """Return all the sets that files of one folder make."""
    names = list(names)
    return list({found.name: found for found in (set_of(name, names) for name in names)}.values())


def index_of(name: str) -> IndexName | None:
    """Read an index's name, `X.safetensors.index.json` or `X.bin.index.fp16.json`; return None for any other file."""
    found = _INDEX.fullmatch(name)
    if found is None:
        return None
    endings = next(kind for kind in (SAFETENSORS, PICKLES, (GGUF,)) if found["kind"] in kind)
    return IndexName(f"{found['stem']}{found['variant'] or ''}", endings)


def _stem(name: str) -> str:
    """Return a file's name without its ending and, where it is a shard, without the numbers: `model.fp16`."""
    ending = next((ending for ending in WEIGHTS if name.lower().endswith(ending)), "")
    found = _SHARD.fullmatch(name)
    if not found:
        return name[: len(name) - len(ending)]
    return f"{found['before'].rstrip('-_.')}{found['after'][: len(found['after']) - len(ending)]}"
