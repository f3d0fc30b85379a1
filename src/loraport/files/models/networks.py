"""Which keys of a file are the network's: found by the families' tables, whatever stands before the names.

A file can hold the network behind any prefix, other networks beside it (text encoders, an autoencoder), and the same
network several times: a generator and its moving average. Those are its parts.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from loraport.errors import InputError
from loraport.files.names.entries import PARTS
from loraport.files.names.lookup import (
    OTHER_NETWORKS,
    is_parameter,
    known_start,
    strip_prefixes,
    without_modules,
    without_wrappers,
)

_DEEPEST_START = 12
"""Parts of a key that are tried as its start."""
_WHOLE = 0.6
"""A start with at least this share of the known names that the best one has is a network too, not a piece of one."""


@dataclass(frozen=True)
class Network:
    """The keys of one network in a file."""

    names: dict[str, str]
    """Key -> name, without what stands before it."""
    start: str = ""
    """What stands before most of the names."""
    beside: tuple[str, ...] = ()
    """Keys of other networks, which are not parts: text encoders, autoencoders."""
    part: str | None = None
    """The part that was taken, where there are several or one was asked for."""
    others: tuple[str, ...] = ()
    """The parts that were not."""

    def name(self, key: str) -> str:
        """Return the name of a key, also of one that is made of several."""
        return self.names.get(key) or _known(without_wrappers(key).removeprefix(self.start))


@dataclass
class _Start:
    """Keys behind one start whose rest is in a table."""

    keys: list[str] = field(default_factory=list)
    rests: set[str] = field(default_factory=set)


def find_network(keys: Iterable[str], part: str | None = None) -> Network:
    """Return the network among the keys of a file; `part` names one of several.

    Raises InputError for a part that is not there, and where there are several and none has a usual name; MismatchError
    where two keys would become one.
    """
    bare = {key: without_wrappers(key) for key in keys}
    starts = _starts(bare)
    most = max((len(start.keys) for start in starts.values()), default=0)
    whole = {name: start for name, start in starts.items() if len(start.keys) >= max(_WHOLE * most, 1)}
    if part is not None:
        chosen = _asked(part, whole, bare)
    elif not most:
        return _of_no_family(list(bare))
    else:
        chosen = _preferred(whole)
    taken = starts.get(chosen, _Start())
    rivals = [name for name, start in whole.items() if name != chosen and _again(start, taken)]
    joined = {chosen, *(name for name, start in starts.items() if _belongs(name, start, taken))} - set(rivals)
    names: dict[str, str] = {}
    beside = []
    for key, name in bare.items():
        own = [start for start in joined if name.startswith(start) and (start == chosen or key in starts[start].keys)]
        foreign = not chosen and name.startswith(OTHER_NETWORKS)
        if any(start and name.startswith(start) for start in rivals) or ("" in rivals and key in starts[""].keys):
            continue
        if not own or foreign:
            beside.append(key)
        else:
            names[key] = _known(name.removeprefix(max(own, key=len)))
    labels = _labels([chosen, *rivals])
    several = bool(rivals) or part is not None
    return Network(names, chosen, tuple(beside), labels[0] if several else None, tuple(labels[1:]))


def are_of_network(keys: Iterable[str]) -> bool:
    """Return whether keys are mostly those of a network of a known family."""
    known = [_start_of(without_wrappers(key)) is not None for key in keys]
    return bool(known) and 2 * sum(known) >= len(known)


def _starts(bare: dict[str, str]) -> dict[str, _Start]:
    """Return what stands before names that a table has -> the keys behind it; the shortest that leaves such a name."""
    found: dict[str, _Start] = {}
    for key, name in bare.items():
        if (start := _start_of(name)) is not None:
            group = found.setdefault(start, _Start())
            group.keys.append(key)
            group.rests.add(_known(name[len(start) :]))
    return found


def _start_of(name: str) -> str | None:
    at = 0
    for _ in range(_DEEPEST_START):
        if is_parameter(_known(name[at:])):
            return name[:at]
        at = name.find(".", at) + 1
        if not at:
            break
    return None


def _known(name: str) -> str:
    """Return a name without `module` inside it, where a table has it so."""
    if "module." not in name or is_parameter(name):
        return name
    inner = without_modules(name)
    return inner if is_parameter(inner) else name


def _again(start: _Start, taken: _Start) -> bool:
    """Return whether these are mostly the same names: another copy of the network, not a further piece of it."""
    return 2 * len(start.rests & taken.rests) >= len(start.rests)


def _belongs(name: str, start: _Start, taken: _Start) -> bool:
    """Return whether keys behind a start are a piece of the network: a usual start or none, and names of its own."""
    return known_start(f"{name}x") == name and not (start.rests & taken.rests)


def _preferred(whole: dict[str, _Start]) -> str:
    """Return the network that is meant: the largest, or of several copies the one whose name comes first in PARTS."""
    first = max(whole, key=lambda name: len(whole[name].keys))
    copies = [first, *(name for name in whole if name != first and _again(whole[name], whole[first]))]
    ranks = {name: _rank(name) for name in copies}
    best = [name for name in copies if ranks[name] == min(ranks.values())]
    if len(best) > 1:
        listed = ", ".join(filter(None, _labels(copies)))
        raise InputError(f"it has several parts and none with a usual name; give one of them: {listed}")
    return best[0]


def _rank(start: str) -> tuple[int, ...]:
    """Return where a start's words come in the order of usual names; an empty start comes before unusual ones."""
    if start.startswith(OTHER_NETWORKS):
        return (len(PARTS) + 2,)
    known = sorted(PARTS.index(word) for word in start.split(".") if word in PARTS)
    return tuple(known) or (len(PARTS) + bool(start),)


def _asked(part: str, whole: dict[str, _Start], bare: dict[str, str]) -> str:
    """Return the start of a part by its name. Raises InputError where no keys stand behind it."""
    exact = [start for start in whole if start == f"{part}."]
    fitting = exact or [start for start in whole if f".{part}." in f".{start}"]
    if len(fitting) > 1:
        raise InputError(f"several of its parts are called {part!r}; give one: {', '.join(_labels(fitting))}")
    if fitting:
        return fitting[0]
    if any(name.startswith(f"{part}.") for name in bare.values()):
        return f"{part}."
    known = ", ".join(filter(None, _labels(list(whole)))) or "none"
    raise InputError(f"it has no part {part!r}; its parts: {known}")


def _labels(starts: list[str]) -> list[str]:
    """Return short names of parts: the first word of each start where that tells them apart."""
    first = [start.partition(".")[0] for start in starts]
    return first if len(set(first)) == len(first) else [start.removesuffix(".") for start in starts]


def _of_no_family(keys: list[str]) -> Network:
    """Return a network of all keys but those of known other networks, for a file none of whose names is in a table."""
    beside = tuple(key for key in keys if key.startswith(OTHER_NETWORKS))
    return Network(strip_prefixes([key for key in keys if key not in beside]), beside=beside)
