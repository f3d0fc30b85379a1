"""Names looked up in the tables of all families: which layer a key means, and what stands before it in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from loraport.errors import MismatchError
from loraport.weights.families import FAMILIES, WAN, Family, Naming, Piece
from loraport.weights.families.table import templates_of

CHECKPOINT_PREFIXES = (
    "model.diffusion_model.",
    "diffusion_model.",
    "generator.",
    "model.",
    "module.",
    "net.",
    "transformer.",
)
WRAPPER_INFIXES = ("_fsdp_wrapped_module.", "_orig_mod.", "_checkpoint_wrapped_module.")
FEW_KEYS = 5
"""A prefix is stripped where more keys than this share it (ComfyUI's rule), or all of them do."""
OTHER_NETWORKS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "model_ema.", "vae.", "text_encoders.")
"""What lies beside the network in single files: autoencoder, text encoders. It belongs to no family."""


@dataclass(frozen=True)
class Located:
    """A stored layer found in a table, and the layers that it holds."""

    family: Family
    naming: Naming
    pieces: tuple[Piece, ...]


def locate(name: str, *, flat: bool = False, prefer: str | None = None) -> Located | None:
    """A stored layer in the first table that has it, dotted or flattened by kohya's trainers; None where none has.

    `prefer` is the family to look in first: `proj_out` is a layer of several.
    Flattened names are looked up among the flattened templates: underscores are ambiguous (`self_attn`, `k_img`) and
    are never turned back.
    """
    found = sorted(spellings(name, flat=flat), key=lambda pair: pair[0].name != prefer)
    for family, naming in found[:1]:
        return Located(family, naming, family.pieces(name, naming, flat=flat))
    return None


def spellings(name: str, *, flat: bool = False) -> Iterator[tuple[Family, Naming]]:
    """Every table and naming that has a stored layer of this name."""
    if "{}" in name:
        return
    found = {pair for template, _ in templates_of(name, flat=flat) for pair in _index(flat).get(template, ())}
    for family in FAMILIES.values():
        yield from ((family, naming) for naming in family.namings if (family.name, naming) in found)


def is_known(canonical: str) -> bool:
    """Whether a layer name is the canonical one of some family."""
    return any(family.place(canonical, family.namings[0]) for family in FAMILIES.values())


def canonical_layer(name: str, naming: Naming, family: Family = WAN) -> str | None:
    """The canonical name of a layer spelled in `naming`; None where the table does not have it, or has more in it."""
    pieces = family.pieces(name, naming)
    return pieces[0][0] if len(pieces) == 1 else None


def canonical_parameter(name: str, naming: Naming, family: Family = WAN) -> str | None:
    """The canonical name of a parameter (`….q.weight`, `….modulation`), or None likewise."""
    pieces = family.parameter_pieces(name, naming)
    return pieces[0][0] if len(pieces) == 1 else None


def layer_in(canonical: str, naming: Naming, family: Family = WAN) -> str | None:
    """The stored layer of a naming in which a canonical one stands; None where the table does not have it."""
    place = family.place(canonical, naming)
    return place.name if place else None


def parameter_in(canonical: str, naming: Naming, family: Family = WAN) -> str | None:
    """The stored parameter of a naming in which a canonical one stands; None where the table does not have it."""
    place = family.parameter_place(canonical, naming)
    return place.name if place else None


def detect_naming(names: Iterable[str]) -> tuple[Family, Naming] | None:
    """The family and spelling that most parameter names are in, prefixes already stripped; None where none is known."""
    hits: Counter[tuple[str, Naming]] = Counter()
    for name in names:
        layer = name.rpartition(".")[0]
        found = {(family.name, naming) for family, naming in spellings(layer)}
        hits.update(found | {pair for template, _ in templates_of(name) for pair in _bare_index().get(template, ())})
    best = max(hits.values(), default=0)
    for family in FAMILIES.values():
        for naming in family.namings:
            if best and hits[family.name, naming] == best:
                return family, naming
    return None


def strip_prefixes(keys: Iterable[str]) -> dict[str, str]:
    """Each key of a base checkpoint -> its name without what wrappers and containers put before or inside it.

    Prefixes go from the front, repeatedly, where more than a few keys share them; wrapper names go wherever they stand.
    Raises MismatchError where two keys would become one.
    """
    names = {key: _without_wrappers(key) for key in keys}
    while prefix := _shared_prefix(names.values()):
        names = {key: name.removeprefix(prefix) for key, name in names.items()}
    taken: dict[str, str] = {}
    for key, name in names.items():
        if name in taken:
            raise MismatchError(f"{taken[name]!r} and {key!r} both name {name!r}; give the part of the file to use")
        taken[name] = key
    return names


def _shared_prefix(names: Iterable[str]) -> str | None:
    names = list(names)
    for prefix in CHECKPOINT_PREFIXES:
        sharing = sum(name.startswith(prefix) for name in names)
        if sharing > FEW_KEYS or (names and sharing == len(names)):
            return prefix
    return None


def _without_wrappers(key: str) -> str:
    for infix in WRAPPER_INFIXES:
        key = key.replace(infix, "")
    return key


@cache
def _index(flat: bool) -> dict[str, set[tuple[str, Naming]]]:
    """Template of a stored layer -> the families and namings that have it."""
    index: dict[str, set[tuple[str, Naming]]] = {}
    for family in FAMILIES.values():
        for naming in family.namings:
            for template in family.templates(naming, flat):
                index.setdefault(template, set()).add((family.name, naming))
    return index


@cache
def _bare_index() -> dict[str, set[tuple[str, Naming]]]:
    """The same for parameters that belong to no layer."""
    index: dict[str, set[tuple[str, Naming]]] = {}
    for family in FAMILIES.values():
        for naming in family.namings:
            for template in family.bare_templates(naming):
                index.setdefault(template, set()).add((family.name, naming))
    return index
