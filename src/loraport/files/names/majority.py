"""The dialect of a whole file, out of those of its keys: how most are spelled, and whose tables have most of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from loraport.files.names.dialects import Dialect, LoraKey
from loraport.files.names.evidence import NO_EVIDENCE, Evidence, Sight, likeliest, scored
from loraport.files.names.families import FAMILIES, Family, Naming
from loraport.files.names.lookup import spellings


def majority_dialect(keys: Iterable[LoraKey], evidence: Evidence = NO_EVIDENCE) -> Dialect:
    """Return the dialect of most of the given factors, and the table and naming that have most of them.

    Of several tables that have as many, the one that the rest of the file speaks for (`names.evidence`).
    """
    keys = list(keys)
    shapes = Counter(replace(_of_network(key), naming=None, family=None) for key in keys)
    found = likeliest(_families_of(keys), evidence, _sights(keys, evidence))
    family, naming = (found[0][0].name, found[0][1]) if found else (None, None)
    twin = FAMILIES[family].twins.get(naming) if family and naming else None
    if any(key.dialect.naming == twin for key in keys if twin):
        naming = twin
    return replace(max(shapes, key=lambda dialect: shapes[dialect]), naming=naming, family=family)


def rival_families(keys: Iterable[LoraKey], evidence: Evidence) -> list[str]:
    """Return the families for which as much speaks as for the one that was taken, that one first; [] if there is one.

    None either where the layers are as wide as those of no published model: nobody can mean another one.
    """
    keys = [key for key in keys if not key.text_encoder]
    scores = scored(_families_of(keys), evidence, _sights(keys, evidence))
    best = [name for name, score in scores.items() if score == max(scores.values()) and score.known]
    return best if len(best) > 1 else []


def _sights(keys: Iterable[LoraKey], evidence: Evidence) -> list[Sight]:
    return [Sight(key.module, key.dialect.flat, key.part, evidence.shapes.get(key.key, ())) for key in keys]


def _families_of(keys: Iterable[LoraKey]) -> list[tuple[Family, Naming]]:
    """Return the tables and namings that have most of some keys: several, where they call layers alike.

    Of those the families that have most keys in all of their namings together: a file may mix them.
    """
    spelled: Counter[tuple[str, Naming]] = Counter()
    known: Counter[str] = Counter()
    for key in keys:
        if not key.text_encoder:
            found = {(family.name, naming) for family, naming in spellings(key.module, flat=key.dialect.flat)}
            spelled.update(found)
            known.update({name for name, _ in found})
    best = max(spelled.values(), default=0)
    pairs = [
        (family, naming)
        for family in FAMILIES.values()
        for naming in family.namings
        if best and spelled[family.name, naming] == best
    ]
    most = max((known[family.name] for family, _ in pairs), default=0)
    return [(family, naming) for family, naming in pairs if known[family.name] == most]


def _of_network(key: LoraKey) -> Dialect:
    """Return the dialect in which the writer of a text encoder's key writes the network's."""
    if not key.text_encoder:
        return key.dialect
    if key.prefix.startswith("lora_te"):
        return replace(key.dialect, prefix="lora_unet_", flat=True)
    known = {"text_encoder": "unet.", "text_encoder_2": "unet.", "text_encoders": "diffusion_model."}
    return replace(key.dialect, prefix=known.get(key.prefix.partition(".")[0], key.prefix))
