"""One table of layer names per model family; every direction between its spellings is derived from it.

Canonical names are the original project's: layers `blocks.3.self_attn.q`, parameters `blocks.3.self_attn.q.weight`.
Matching is anchored: a name is in the table as a whole or not at all. What is not in the table keeps its name.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal, get_args

from loraport.errors import MismatchError

Naming = Literal["original", "diffusers", "fastvideo"]
NAMINGS: tuple[Naming, ...] = get_args(Naming)

Row = tuple[str, str, str]
"""One layer in the spellings of NAMINGS, `{}` for the block number."""


@dataclass(frozen=True)
class Family:
    """The layers (with weight, bias and the like) and the bare parameters of one architecture."""

    name: str
    layers: tuple[Row, ...]
    parameters: tuple[Row, ...]


WAN = Family(
    name="wan",
    layers=(
        # original, diffusers, FastVideo while it runs (on disk it uses the names of diffusers)
        ("blocks.{}.self_attn.q", "blocks.{}.attn1.to_q", "blocks.{}.to_q"),
        ("blocks.{}.self_attn.k", "blocks.{}.attn1.to_k", "blocks.{}.to_k"),
        ("blocks.{}.self_attn.v", "blocks.{}.attn1.to_v", "blocks.{}.to_v"),
        ("blocks.{}.self_attn.o", "blocks.{}.attn1.to_out.0", "blocks.{}.to_out"),
        ("blocks.{}.self_attn.norm_q", "blocks.{}.attn1.norm_q", "blocks.{}.norm_q"),
        ("blocks.{}.self_attn.norm_k", "blocks.{}.attn1.norm_k", "blocks.{}.norm_k"),
        ("blocks.{}.cross_attn.q", "blocks.{}.attn2.to_q", "blocks.{}.attn2.to_q"),
        ("blocks.{}.cross_attn.k", "blocks.{}.attn2.to_k", "blocks.{}.attn2.to_k"),
        ("blocks.{}.cross_attn.v", "blocks.{}.attn2.to_v", "blocks.{}.attn2.to_v"),
        ("blocks.{}.cross_attn.o", "blocks.{}.attn2.to_out.0", "blocks.{}.attn2.to_out"),
        ("blocks.{}.cross_attn.norm_q", "blocks.{}.attn2.norm_q", "blocks.{}.attn2.norm_q"),
        ("blocks.{}.cross_attn.norm_k", "blocks.{}.attn2.norm_k", "blocks.{}.attn2.norm_k"),
        # image-to-video of Wan 2.1 only
        ("blocks.{}.cross_attn.k_img", "blocks.{}.attn2.add_k_proj", "blocks.{}.attn2.add_k_proj"),
        ("blocks.{}.cross_attn.v_img", "blocks.{}.attn2.add_v_proj", "blocks.{}.attn2.add_v_proj"),
        ("blocks.{}.cross_attn.norm_k_img", "blocks.{}.attn2.norm_added_k", "blocks.{}.attn2.norm_added_k"),
        # norm3 is norm2 elsewhere: diffusers counts in the order of use; the other two norms have no parameters
        ("blocks.{}.norm3", "blocks.{}.norm2", "blocks.{}.self_attn_residual_norm.norm"),
        ("blocks.{}.ffn.0", "blocks.{}.ffn.net.0.proj", "blocks.{}.ffn.fc_in"),
        ("blocks.{}.ffn.2", "blocks.{}.ffn.net.2", "blocks.{}.ffn.fc_out"),
        # the gate of video sparse attention (FastWan only): one spelling
        ("blocks.{}.to_gate_compress", "blocks.{}.to_gate_compress", "blocks.{}.to_gate_compress"),
        ("patch_embedding", "patch_embedding", "patch_embedding.proj"),
        (
            "text_embedding.0",
            "condition_embedder.text_embedder.linear_1",
            "condition_embedder.text_embedder.fc_in",
        ),
        (
            "text_embedding.2",
            "condition_embedder.text_embedder.linear_2",
            "condition_embedder.text_embedder.fc_out",
        ),
        (
            "time_embedding.0",
            "condition_embedder.time_embedder.linear_1",
            "condition_embedder.time_embedder.mlp.fc_in",
        ),
        (
            "time_embedding.2",
            "condition_embedder.time_embedder.linear_2",
            "condition_embedder.time_embedder.mlp.fc_out",
        ),
        ("time_projection.1", "condition_embedder.time_proj", "condition_embedder.time_modulation.linear"),
        ("head.head", "proj_out", "proj_out"),
        # image-to-video of Wan 2.1 only
        ("img_emb.proj.0", "condition_embedder.image_embedder.norm1", "condition_embedder.image_embedder.norm1"),
        (
            "img_emb.proj.1",
            "condition_embedder.image_embedder.ff.net.0.proj",
            "condition_embedder.image_embedder.ff.fc_in",
        ),
        (
            "img_emb.proj.3",
            "condition_embedder.image_embedder.ff.net.2",
            "condition_embedder.image_embedder.ff.fc_out",
        ),
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2", "condition_embedder.image_embedder.norm2"),
    ),
    parameters=(
        ("blocks.{}.modulation", "blocks.{}.scale_shift_table", "blocks.{}.scale_shift_table"),
        ("head.modulation", "scale_shift_table", "scale_shift_table"),
        (
            "img_emb.emb_pos",
            "condition_embedder.image_embedder.pos_embed",
            "condition_embedder.image_embedder.pos_embed",
        ),
    ),
)

FAMILIES: Mapping[str, Family] = {WAN.name: WAN}

_BLOCK = re.compile(r"([a-z_]*blocks)\.(0|[1-9]\d*)\.(.+)")
_FLAT_BLOCK = re.compile(r"([a-z_]*?blocks)_(0|[1-9]\d*)_(.+)")

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


def canonical_layer(name: str, naming: Naming, family: Family = WAN) -> str | None:
    """The canonical name of a layer spelled in `naming`, or None where the table does not have it."""
    return _translate(name, _table(family.layers, naming, "original"))


def canonical_parameter(name: str, naming: Naming, family: Family = WAN) -> str | None:
    """The canonical name of a parameter (`….q.weight`, `….modulation`), or None where the table does not have it."""
    return _translate_parameter(name, family, naming, "original")


def layer_in(canonical: str, naming: Naming, family: Family = WAN) -> str | None:
    """A canonical layer name spelled in `naming`, or None where the table does not have it."""
    return _translate(canonical, _table(family.layers, "original", naming))


def parameter_in(canonical: str, naming: Naming, family: Family = WAN) -> str | None:
    """A canonical parameter name spelled in `naming`, or None where the table does not have it."""
    return _translate_parameter(canonical, family, "original", naming)


def flattened(name: str) -> str:
    """A layer name as kohya's trainers write it: dots become underscores. The way back is `canonical_from_flat`."""
    return name.replace(".", "_")


def canonical_from_flat(name: str, family: Family = WAN) -> tuple[str, Naming] | None:
    """The canonical layer name behind a flattened one, and the naming that was flattened; None where unknown.

    A look-up among the flattened templates: underscores are ambiguous (`self_attn`, `k_img`) and are never turned back.
    """
    block = _FLAT_BLOCK.fullmatch(name)
    key = f"{block[1]}_{{}}_{block[3]}" if block else name
    for naming in NAMINGS:
        template = _flat_table(family.layers, naming).get(key)
        if template is not None and (block is not None) == ("{}" in template):
            return template.format(block[2] if block else ""), naming
    return None


def detect_naming(names: Iterable[str], family: Family = WAN) -> Naming | None:
    """The spelling that most parameter names are in, prefixes already stripped; None where the table knows none."""
    hits: Counter[Naming] = Counter()
    for name in names:
        hits.update(naming for naming in NAMINGS if canonical_parameter(name, naming, family) is not None)
    best = max(hits.values(), default=0)
    return next((naming for naming in NAMINGS if best and hits[naming] == best), None)


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
def _table(rows: tuple[Row, ...], spelled: Naming, wanted: Naming) -> dict[str, str]:
    return {row[NAMINGS.index(spelled)]: row[NAMINGS.index(wanted)] for row in rows}


@cache
def _flat_table(rows: tuple[Row, ...], naming: Naming) -> dict[str, str]:
    return {flattened(row[NAMINGS.index(naming)]): row[0] for row in rows}


def _translate(name: str, table: dict[str, str]) -> str | None:
    block = _BLOCK.fullmatch(name)
    template = table.get(f"{block[1]}.{{}}.{block[3]}" if block else name)
    if template is None or (block is not None) != ("{}" in template):
        return None
    return template.format(block[2] if block else "")


def _translate_parameter(name: str, family: Family, spelled: Naming, wanted: Naming) -> str | None:
    bare = _translate(name, _table(family.parameters, spelled, wanted))
    if bare is not None:
        return bare
    layer, _, leaf = name.rpartition(".")
    translated = _translate(layer, _table(family.layers, spelled, wanted))
    return None if translated is None else f"{translated}.{leaf}"
