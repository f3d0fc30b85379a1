"""Look-ups of names in the tables of all families: which layer a key means, and what stands before it in a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache

from loraport.errors import MismatchError
from loraport.files.names.families import FAMILIES, WAN, Family, Naming, Piece
from loraport.files.names.tables.family import templates_of

_KNOWN_START = re.compile(
    r"(?:base_model\.model|model\.diffusion_model|diffusion_model|transformer_2|transformer_ref|transformer|unet|generator|model|module"
    r"|net|dit2|dit|pipe)\."
)
"""What programs put before a layer's name: diffusers' and ComfyUI's components, PEFT's model, trainers' attributes."""
WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
"""Names that PyTorch's and Accelerate's wrappers put wherever they stand: none is a part of a model."""
FEW_KEYS = 5
"""A prefix is stripped where more keys than this share it (ComfyUI's rule), or all of them do."""
OTHER_NETWORKS = ("first_stage_model.", "cond_stage_model.", "conditioner.", "model_ema.", "vae.", "text_encoders.")
"""What lies beside the network in single files: autoencoder, text encoders. It belongs to no family."""
_OTHER_PARTS = re.compile(r"(?:^|[._])(?:encoder|decoder|vae|first_stage_model|text_encoder|clip|control\w*)[._]")
"""Starts of other networks whose layers are called like those of a table: an autoencoder's blocks, a control net's."""
_DEEPEST_START = 12
"""Parts of a name that are tried as a start."""


@dataclass(frozen=True)
class NameMatch:
    """A stored layer found in a table, and the layers that it holds."""

    family: Family
    naming: Naming
    pieces: tuple[Piece, ...]


def find_layer(name: str, *, flat: bool = False, prefer: str | None = None) -> NameMatch | None:
    """Find a stored layer in the first table that has it, dotted or flattened by kohya's trainers; else None.

    `prefer` is the family to look in first: `proj_out` is a layer of several.
    Flattened names are looked up among the flattened templates: underscores are ambiguous (`self_attn`, `k_img`) and
    are never turned back.
    """
    matches = sorted(spellings(name, flat=flat), key=lambda pair: pair[0].name != prefer)
    if not matches:
        return None
    family, naming = matches[0]
    return NameMatch(family, naming, family.pieces(name, naming, flat=flat))


def find_parameter(name: str, *, prefer: str | None = None) -> NameMatch | None:
    """Find a stored parameter (`blocks.0.modulation`, `….query_norm.scale`, `….q.bias`) in the first table with it."""
    for family in sorted(FAMILIES.values(), key=lambda family: family.name != prefer):
        for naming in family.namings:
            if pieces := family.parameter_pieces(name, naming):
                return NameMatch(family, naming, pieces)
    return None


def spellings(name: str, *, flat: bool = False) -> Iterator[tuple[Family, Naming]]:
    """Yield every table and naming that has a stored layer of this name."""
    if "{}" in name:  # a literal `{}` would match a template
        return
    found = {pair for template, _ in templates_of(name, flat=flat) for pair in _index(flat).get(template, ())}
    for family in FAMILIES.values() if found else ():
        yield from ((family, naming) for naming in family.namings if (family.name, naming) in found)


def is_known(canonical: str) -> bool:
    """Return whether a layer name is the canonical one of some family."""
    return any(family.rows(canonical, family.namings[0]) for family in FAMILIES.values())


def canonical_layer(name: str, naming: Naming, family: Family = WAN) -> str | None:
    """Return the canonical name of a layer spelled in `naming`; None where the table has none, or several in it."""
    pieces = family.pieces(name, naming)
    return pieces[0][0] if len(pieces) == 1 else None


def layer_in(canonical: str, naming: Naming, family: Family = WAN) -> str | None:
    """Return the stored layer of a naming in which a canonical one stands, or None."""
    rows = family.rows(canonical, naming)
    return rows.name if rows else None


def parameter_in(canonical: str, naming: Naming, family: Family = WAN) -> str | None:
    """Return the stored parameter of a naming in which a canonical one stands, or None."""
    rows = family.parameter_rows(canonical, naming)
    return rows.name if rows else None


def detect_naming(names: Iterable[str]) -> tuple[Family, Naming] | None:
    """Return the family and naming of most parameter names, whose prefixes are stripped; None where none is known."""
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


def is_parameter(name: str) -> bool:
    """Return whether some table has a parameter of this name."""
    return next(spellings(name.rpartition(".")[0]), None) is not None or any(
        template in _bare_index() for template, _ in templates_of(name)
    )


def strip_prefixes(keys: Iterable[str]) -> dict[str, str]:
    """Return each key of a base checkpoint -> its name without what wrappers and containers put before or inside it.

    Known prefixes go from the front, repeatedly, where more than a few keys share them; wrapper names go wherever they
    stand; then an unknown start goes where `find_start` finds one.
    Raises MismatchError where two keys would become one.
    """
    names = {key: without_wrappers(key) for key in keys}
    chains = {key: _chain(name) for key, name in names.items()}
    shared = _shared(Counter(chains.values()))
    names = {key: name[sum(map(len, chains[key][: shared[chains[key]]])) :] for key, name in names.items()}
    if start := find_start(names.values(), is_parameter):
        names = {key: name.removeprefix(start) for key, name in names.items()}
    inner = {key: without_modules(name) for key, name in names.items() if "module." in name}
    names |= {key: name for key, name in inner.items() if is_parameter(name)}
    taken: dict[str, str] = {}
    for key, name in names.items():
        if name in taken:
            raise MismatchError(f"{taken[name]!r} and {key!r} both name {name!r}; give the part of the file to use")
        taken[name] = key
    return names


def known_start(name: str) -> str:
    """Return all the known prefixes that a name begins with."""
    return "".join(_chain(name))


def without_wrappers(name: str) -> str:
    """Return a dotted name without the parts that are wrappers' names, or a flattened one likewise."""
    if not any(wrapper in name for wrapper in WRAPPERS):
        return name
    if "." in name:
        return ".".join(part for part in name.split(".") if part not in WRAPPERS)
    for wrapper in WRAPPERS:
        name = name.replace(f"{wrapper}_", "")
    return name


def without_modules(name: str) -> str:
    """Return a dotted name without `module`, an attribute of wrappers; only right where a table has the rest."""
    return ".".join(part for part in name.split(".") if part != "module")


def find_start(names: Iterable[str], known: Callable[[str], bool], separator: str = ".") -> str:
    """Return the unlisted start whose removal puts most names into a table; "" where more are in one as they stand.

    `known` says whether a name is in a table. There is none where two starts that exclude each other do nearly as well
    (two networks in one file), nor before another network's layers.
    """
    names = list(names)
    unknown = [name for name in names if not known(name)]
    counts: Counter[str] = Counter()
    for name in unknown:
        end = -1
        for _ in range(_DEEPEST_START):
            end = name.find(separator, end + 1)
            if end < 0:
                break
            if known(name[end + 1 :]):
                counts[name[: end + 1]] += 1
    if not counts:
        return ""
    best = max(counts, key=lambda start: (counts[start], -len(start)))
    rivals = [start for start in counts if not start.startswith(best) and not best.startswith(start)]
    many = counts[best] > FEW_KEYS or 2 * counts[best] > len(names)
    if not many or counts[best] <= len(names) - len(unknown) or _OTHER_PARTS.search(best):
        return ""
    return "" if any(2 * counts[rival] >= counts[best] for rival in rivals) else best


def _chain(name: str) -> tuple[str, ...]:
    """Return the known prefixes that a name begins with, one behind the other."""
    found: list[str] = []
    at = 0
    while match := _KNOWN_START.match(name, at):
        found.append(match[0])
        at = match.end()
    return tuple(found)


def _shared(chains: Counter[tuple[str, ...]]) -> dict[tuple[str, ...], int]:
    """Return chain of known prefixes -> how many of them are shared by more than a few keys, or by all."""
    total = sum(chains.values())
    stripped = dict.fromkeys(chains, 0)
    while True:
        following: Counter[str] = Counter()
        for chain, depth in stripped.items():
            following.update(dict.fromkeys(chain[depth : depth + 1], chains[chain]))
        shared = {prefix for prefix, count in following.items() if count > FEW_KEYS or count == total}
        if not shared:
            return stripped
        for chain, depth in stripped.items():
            if shared.issuperset(chain[depth : depth + 1]) and depth < len(chain):
                stripped[chain] = depth + 1


@cache
def _index(flat: bool) -> dict[str, set[tuple[str, Naming]]]:
    """Return template of a stored layer -> the families and namings that have it."""
    index: dict[str, set[tuple[str, Naming]]] = {}
    for family in FAMILIES.values():
        for naming in family.namings:
            for template in family.templates(naming, flat):
                index.setdefault(template, set()).add((family.name, naming))
    return index


@cache
def _bare_index() -> dict[str, set[tuple[str, Naming]]]:
    """Return the same for parameters that belong to no layer."""
    index: dict[str, set[tuple[str, Naming]]] = {}
    for family in FAMILIES.values():
        for naming in family.namings:
            for template in family.bare_templates(naming):
                index.setdefault(template, set()).add((family.name, naming))
    return index
