"""How the rows of fused q, k and v lie in a model whose names do not tell: by its files, by another model, or as asked.

MiniMax's own shards of MiniMax-H3 have them head by head, every single file stacked. Between two models the right
layouts are those in which they differ little: with a wrong one the rows of different heads are compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import get_args

from loraport.errors import SettingsError, unknown_name
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.names.families import Layout, Naming

NEAR = 0.5
"""‖W_t − W_s‖ / ‖W_s‖ of the same layer of two models of one family is far below; of different rows it is √2."""


def parse_layouts(texts: Sequence[str], roles: tuple[str, ...]) -> dict[str, Layout]:
    """Return role -> layout of `interleaved`, for all of the roles, or `source=stacked` and the like.

    Raises SettingsError for other words.
    """
    found: dict[str, Layout] = {}
    for text in texts:
        role, equals, word = text.rpartition("=")
        if word not in get_args(Layout):
            raise unknown_name("layout of q, k and v", word, get_args(Layout))
        if equals and role not in roles:
            raise unknown_name("role of a file", role, roles)
        layout: Layout = "interleaved" if word == "interleaved" else "stacked"
        for one in (role,) if equals else roles:
            if found.get(one, layout) != layout:
                raise SettingsError(f"--qkv says both stacked and interleaved of the {one}; say one")
            found[one] = layout
    return found


def layout_of(model: Checkpoint) -> Layout | None:
    """Return how the fused rows of a model are taken; None where nothing is fused, or the names tell."""
    family = model.family
    if family is None or not any(len(pieces) > 1 for _, pieces in model.stored.values()):
        return None
    if model.naming in family.twins.values():
        return "interleaved"
    return "stacked" if model.naming in family.twins else None


def in_layout(model: Checkpoint, layout: Layout, why: str = "") -> Checkpoint:
    """Return the model with its fused rows taken so, and a note that says why; unchanged where names tell."""
    if layout_of(model) is None or model.family is None:
        return model
    notes = (*model.notes, why) if why else model.notes
    if layout_of(model) == layout:
        return replace(model, notes=notes)
    family = model.family
    others = family.twins if layout == "interleaved" else {other: one for one, other in family.twins.items()}
    naming = next(other for one, other in others.items() if one == model.naming)
    return replace(_divided(model, naming), naming=naming, notes=notes)


def _divided(model: Checkpoint, naming: Naming) -> Checkpoint:
    parts = {}
    for key, (stored, pieces) in model.stored.items():
        if len(pieces) > 1 and model.family is not None:
            other = model.family.parameter_pieces(pieces[0][1].name, naming)
            if all(rows.fits(stored.shape) for _, rows in other):
                parts[key] = other
    return model.divided(parts)


def assumed_layout(model: Checkpoint, asked: Layout | None, role: str) -> Checkpoint:
    """Return a model with its fused rows as asked, else as files of its kind have them, which a note says."""
    if asked is not None or layout_of(model) is None:
        return model if asked is None else in_layout(model, asked)
    if len(model.paths) > 1 or model.absent:
        return in_layout(
            model, "interleaved",
            f"{model.where} is in several files under the original names, so the rows of its fused q, k and v are "
            f"taken head by head (interleaved), as in MiniMax's own; --qkv {role}=stacked says otherwise",
        )  # fmt: skip
    return in_layout(
        model, "stacked",
        f"{model.where} is one file under the original names, so the rows of its fused q, k and v are taken as "
        f"stacked, as in every published one; --qkv {role}=interleaved says otherwise",
    )  # fmt: skip


def settled_layouts(
    source: Checkpoint, target: Checkpoint, asked: Mapping[str, Layout], layers: Collection[str]
) -> tuple[Checkpoint, Checkpoint]:
    """Return both models with their fused rows as asked, or as they differ little in one of the `layers`.

    Layouts that differ tell themselves; of equal ones nothing but the kind of the files tells which they are. Raises
    SettingsError where these contradict each other.
    """
    before = {"source": source, "target": target}
    models = {role: assumed_layout(model, asked.get(role), role) for role, model in before.items()}
    unsure = [role for role, model in before.items() if role not in asked and layout_of(model) is not None]
    layer = _common(source, target, layers) if unsure and source.is_here and target.is_here else None
    if layer is None:
        return models["source"], models["target"]
    near = []
    for layouts in itertools.product(("stacked", "interleaved"), repeat=len(unsure)):
        tried = models | {role: in_layout(models[role], layout) for role, layout in zip(unsure, layouts, strict=True)}  # type: ignore[arg-type]
        if _apart(tried["source"], tried["target"], layer) < NEAR:
            near.append(dict(zip(unsure, layouts, strict=True)))
    assumed = {role: layout_of(models[role]) for role in unsure}
    if not near or assumed in near:
        return models["source"], models["target"]
    if len(near) > 1:
        raise SettingsError(
            f"{source.where} and {target.where} have the rows of their fused q, k and v in one order, though one is a "
            "single file, which are published stacked, and one in shards, which MiniMax published interleaved; say "
            "which order it is: --qkv stacked or --qkv interleaved"
        )
    for role, layout in near[0].items():
        if layout != assumed[role]:
            other = models["target" if role == "source" else "source"].where
            why = (
                f"the rows of q, k and v of {before[role].where} are taken as {layout}, since only so its {layer} is "
                f"near that of {other}; --qkv {role}=… says otherwise"
            )
            models[role] = in_layout(before[role], layout, why)  # type: ignore[arg-type]
    return models["source"], models["target"]


def _common(source: Checkpoint, target: Checkpoint, layers: Collection[str]) -> str | None:
    """Return a layer that is fused with others in one of the models, and is in both in one shape."""
    fused = {
        name
        for model in (source, target)
        for _, pieces in model.stored.values()
        for name, _ in pieces
        if len(pieces) > 1 and layout_of(model) is not None
    }
    for layer in sorted(layers):
        name = f"{layer}.weight"
        if name in fused and name in source and name in target and source.shape(name) == target.shape(name):
            return layer
    return None


def _apart(source: Checkpoint, target: Checkpoint, layer: str) -> float:
    one, other = (model.tensor(f"{layer}.weight").float() for model in (source, target))
    return float((other - one).norm() / one.norm().clamp(min=1e-30))
