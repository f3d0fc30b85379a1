"""Which family a LoRA is of: whole files and parts of files, in every naming, dotted and flattened, at published sizes.

Many families call their layers alike; none may be mistaken for another without a word.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from loraport.files.names.dialects import parse_key
from loraport.files.names.evidence import Evidence
from loraport.files.names.families import FAMILIES, Family, Naming, flattened
from loraport.files.names.majority import majority_dialect, rival_families
from tests.files.test_names import PUBLISHED, shapes_of

RANK = 4
MODELS = list({family.name: model for model, (family, *_) in reversed(PUBLISHED.items())}.values())
"""One published model of each family."""
PARTS: dict[str, Callable[[str], bool]] = {
    "all layers": lambda layer: True,
    "attention": lambda layer: "att" in layer,
    "attention of a first block": lambda layer: "att" in layer and ".0." in layer,
}


def keys_of(family: Family, model: str, naming: Naming, part: str, flat: bool) -> dict[str, tuple[int, ...]]:
    """The keys of a LoRA on a part of a model, with the shapes of factors."""
    keys: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes_of(model).items():
        layer = family.parameter_pieces(name, "diffusers")[0][0].removesuffix(".weight")
        if not name.endswith(".weight") or len(shape) != 2 or not PARTS[part](name.removesuffix(".weight")):
            continue
        rows = family.rows(layer, naming)
        if rows is None:
            continue
        stem = f"lora_unet_{flattened(rows.name)}" if flat else f"transformer.{rows.name}"
        keys[f"{stem}.lora_down.weight"] = (RANK, shape[1])
        keys[f"{stem}.lora_up.weight"] = (rows.stored_rows(shape[0]), RANK)
    return keys


CASES = [
    (model, naming, part, part == "attention")
    for model in MODELS
    for naming in PUBLISHED[model][0].namings
    for part in PARTS
    if part != "all layers" or naming == PUBLISHED[model][0].canonical
]


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("model", "naming", "part", "flat"), CASES)
def test_a_family_is_told_from_all_others(model: str, naming: Naming, part: str, flat: bool) -> None:
    """Of a single block, which may be several families', the others are named for which as much speaks."""
    family = PUBLISHED[model][0]
    shapes = keys_of(family, model, naming, part, flat)
    if not shapes:
        pytest.skip("the model has no such layers")
    evidence = Evidence(shapes)
    keys = [parse_key(key) for key in shapes]
    found, rivals = majority_dialect(keys, evidence), rival_families(keys, evidence)
    if part == "attention of a first block" and rivals:
        assert family.name in rivals and found.family == rivals[0]
    else:
        assert found.family == family.name and not rivals


@pytest.mark.parametrize("model", MODELS)
def test_telling_it_is_quick(model: str) -> None:
    family = PUBLISHED[model][0]
    shapes = keys_of(family, model, family.namings[0], "all layers", False)
    keys = [parse_key(key) for key in shapes]
    started = time.process_time()
    assert majority_dialect(keys, Evidence(shapes)).family == family.name
    assert time.process_time() - started < 0.5 + len(keys) / 2000


def test_every_family_is_here() -> None:
    assert {PUBLISHED[model][0].name for model in MODELS} == set(FAMILIES)
