"""Tell families apart that call layers alike, by what else stands in a LoRA file.

FLUX.1 and HunyuanVideo 1.0 have blocks of the same names, the same width and the same shapes; FLUX.2 and
HunyuanVideo-1.5 share some of them. What tells: the trainer's header, blocks that only one of them has, the shapes of
fused layers, the width, and that a LoRA mostly goes up to the last block.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from loraport.files.names.tables.family import Family, Naming, templates_of

Spelled = tuple[Family, Naming]
FIELDS = (
    "modelspec.architecture",
    "ss_base_model_version",
    "ss_network_module",
    "base_model",
    "base_model_name_or_path",
)
"""The header's fields in which kohya's scripts, musubi-tuner, ai-toolkit and PEFT name the base."""
_BLOCK = re.compile(r"(.+?)\.(\d+)\.")
_ROWS, _COLUMNS = ("B", "hada_w1_a"), ("A", "hada_w1_b")


@dataclass(frozen=True)
class Evidence:
    """What a file says beside the names of its layers."""

    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """By key."""
    words: tuple[str, ...] = ()
    """What its header or configuration calls the base."""


NO_EVIDENCE = Evidence()


def words_of(metadata: Mapping[str, str], *others: str | None) -> tuple[str, ...]:
    """Return what a header, and whatever else is given, calls the base of a LoRA."""
    return tuple(one.lower() for one in (*map(metadata.get, FIELDS), *others) if one)


@dataclass(frozen=True)
class Sight:
    """One key of a file: its module, the part of the module that it holds, and its shape where that is known."""

    module: str
    flat: bool
    part: str
    shape: tuple[int, ...]


class Score(NamedTuple):
    """What speaks for a family, the strongest first; more is better."""

    marked: bool
    """The header names it."""
    known: bool
    """A published model of it is as wide."""
    fitting: int
    """Less one for every layer of another shape, or in a block that it does not have."""
    whole: int
    """Lists of blocks that the file goes to the end of."""


def likeliest(families: Sequence[Spelled], evidence: Evidence, sights: Iterable[Sight]) -> list[Spelled]:
    """Return the families with what speaks for them, the likeliest first; of equal ones the first stays first."""
    scores = scored(families, evidence, sights)
    return sorted(families, key=lambda pair: scores[pair[0].name], reverse=True)


def scored(families: Sequence[Spelled], evidence: Evidence, sights: Iterable[Sight]) -> dict[str, Score]:
    """Return what speaks for each family, by its name; more is better. Of a single one nothing is asked."""
    sights = list(sights) if len({family.name for family, _ in families}) > 1 else []
    widths = {sight.shape[1] for sight in sights if sight.part in _COLUMNS and len(sight.shape) > 1}
    scores: dict[str, Score] = {}
    for family, naming in families:
        score = _score(family, naming, evidence, sights, widths)
        scores[family.name] = max(score, scores.get(family.name, score))
    return scores


def _score(family: Family, naming: Naming, evidence: Evidence, sights: list[Sight], widths: set[int]) -> Score:
    marked = bool(family.marks) and any(re.search(family.marks, word) for word in evidence.words)
    known = any(width in widths for width, _ in family.sizes)
    last: dict[str, int] = {}
    sizes: dict[str, dict[str, tuple[int, ...]]] = {}
    against, canonical_of = 0, dict[str, str]()
    for sight in sights:
        pieces = family.pieces(sight.module, naming, flat=sight.flat)
        if not pieces:
            continue
        canonical = pieces[0][0]
        if sight.shape:
            sizes.setdefault(sight.module, {})[sight.part] = sight.shape
            canonical_of[sight.module] = canonical
        if block := _BLOCK.match(canonical):
            last[block[1]] = max(last.get(block[1], 0), int(block[2]))
    depths = [depth for width, depth in family.depths.items() if width in widths]
    deeper = [sum(number >= depth.get(name, number + 1) for name, number in last.items()) for depth in depths]
    whole = [sum(number + 1 == depth.get(name) for name, number in last.items()) for depth in depths]
    against += sum(_other_shape(family, naming, canonical_of[name], name, parts) for name, parts in sizes.items())
    return Score(marked, known, -against - min(deeper, default=0), max(whole, default=0))


def _other_shape(
    family: Family, naming: Naming, canonical: str, module: str, parts: Mapping[str, tuple[int, ...]]
) -> bool:
    """Return whether a module's rows and columns are in another ratio than the family has them in."""
    ratio = next((family.ratios[name] for name, _ in templates_of(canonical) if name in family.ratios), None)
    rows = next((parts[part][0] for part in _ROWS if part in parts), None)
    columns = next((parts[part][1] for part in _COLUMNS if part in parts and len(parts[part]) > 1), None)
    place = family.rows(canonical, naming)
    if ratio is None or rows is None or columns is None or place is None:
        return False
    return rows * place.span * ratio[1] != columns * place.of * ratio[0]
