"""The text encoders of Stable Diffusion: CLIP-L, and OpenCLIP H and G, which transformers gives the same names.

A canonical name is the encoder's in a diffusers pipeline and the layer's in transformers:
`text_encoder_2.text_model.encoder.layers.0.mlp.fc1`. Original files of OpenCLIP fuse q, k and v and hold the projection
as its transpose. Sources: `convert_open_clip_checkpoint` of diffusers, `model_lora_keys_clip` of ComfyUI
(comfy/lora.py), OneTrainer's modules/util/convert/lora, networks/lora.py of sd-scripts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from loraport.files.names.tables.family import Family, Naming, Piece, Row, RowSlice

FIRST, SECOND = "text_encoder", "text_encoder_2"
"""What diffusers calls a pipeline's encoders: SDXL has CLIP-L and OpenCLIP-G, Stable Diffusion 1.5 and 2 have one."""

_BLOCK = "text_model.encoder.layers.{}"
_RESBLOCK = "transformer.resblocks.{}"
_LAYERS: tuple[Row, ...] = (
    # transformers, OpenCLIP
    *((f"{_BLOCK}.self_attn.{letter}_proj", None) for letter in "qkv"),
    (f"{_BLOCK}.self_attn.out_proj", f"{_RESBLOCK}.attn.out_proj"),
    (f"{_BLOCK}.mlp.fc1", f"{_RESBLOCK}.mlp.c_fc"),
    (f"{_BLOCK}.mlp.fc2", f"{_RESBLOCK}.mlp.c_proj"),
    (f"{_BLOCK}.layer_norm1", f"{_RESBLOCK}.ln_1"),
    (f"{_BLOCK}.layer_norm2", f"{_RESBLOCK}.ln_2"),
    ("text_model.final_layer_norm", "ln_final"),
    ("text_model.embeddings.token_embedding", "token_embedding"),
    ("text_model.embeddings.position_embedding", None),
    ("text_projection", None),
)
_PARAMETERS: tuple[Row, ...] = (
    *(
        (f"{_BLOCK}.self_attn.{letter}_proj.{leaf}", RowSlice(f"{_RESBLOCK}.attn.in_proj_{leaf}", part, 3))
        for leaf in ("weight", "bias")
        for part, letter in enumerate("qkv")
    ),
    ("text_model.embeddings.position_embedding.weight", "positional_embedding"),
    ("text_projection.weight", RowSlice("text_projection", transposed=True)),
)

CLIP = Family("clip", ("diffusers", "original"), _LAYERS, _PARAMETERS)
"""It is in no list of families: a LoRA's family is that of its network."""

_PREFIXES: Mapping[str, str] = {
    "lora_te_": FIRST,
    "lora_te1_": FIRST,
    "lora_te2_": SECOND,
    "text_encoder.": FIRST,
    "text_encoder_2.": SECOND,
    "text_encoders.clip_l.transformer.": FIRST,
    "text_encoders.clip_h.transformer.": FIRST,
    "text_encoders.clip_g.transformer.": SECOND,
    "clip_l.": FIRST,
    "clip_g.": SECOND,
    "te.": FIRST,
    "te1.": FIRST,
    "te2.": SECOND,
    "cond_stage_model.transformer.": FIRST,
    "conditioner.embedders.0.transformer.": FIRST,
}
"""What stands before a layer in LoRA files -> the encoder: kohya's, diffusers', ComfyUI's, OneTrainer's, a model's."""
_ANY_PREFIX = re.compile(r"lora_te\d?_|text_encoders?(?:_\d)?\.|[^.]*[._](?=text_model[._]encoder[._]layers[._]\d)")
"""The keys of any text encoder, CLIP or not, and those whose names are CLIP's behind a start in no list."""
_PREFIX = re.compile("|".join(map(re.escape, sorted(_PREFIXES, key=len, reverse=True))))
_MATRIX = re.compile(r"\.layers\.\d+\.(?:self_attn|mlp)\.")
_OLD_ATTENTION = re.compile(r"\.self_attn\.to_(q|k|v|out)$")
"""What diffusers called them before PEFT."""

_HOMES: Mapping[str, tuple[str, Naming]] = {
    "cond_stage_model.transformer.": (FIRST, "diffusers"),
    "cond_stage_model.model.": (FIRST, "original"),
    "conditioner.embedders.0.transformer.": (FIRST, "diffusers"),
    "conditioner.embedders.0.model.": (SECOND, "original"),  # the refiner, which has no first one
    "conditioner.embedders.1.model.": (SECOND, "original"),
    "text_encoders.clip_l.transformer.": (FIRST, "diffusers"),
    "text_encoders.clip_h.transformer.": (FIRST, "diffusers"),
    "text_encoders.clip_g.transformer.": (SECOND, "diffusers"),
}
"""Where single files hold an encoder: prefix -> (the encoder, whose names follow)."""


def encoder_prefix(name: str, *, in_peft: bool = False) -> str | None:
    """Return what stands before the layer in a LoRA's key of any text encoder; None for keys of the network.

    It may be nothing at all, where an adapter is of the first encoder alone: a model by itself, as in PEFT.
    """
    found = _PREFIX.match(name) or _ANY_PREFIX.match(name)
    if found:
        return found[0]
    return "" if name.startswith("text_model.") or (in_peft and name.startswith("encoder.layers.")) else None


def encoder_layer(prefix: str, module: str) -> str | None:
    """Return the canonical name of a LoRA's module behind such a prefix; None where it is not a layer of CLIP."""
    encoder = _PREFIXES.get(prefix) if prefix else FIRST
    if encoder is None:
        return None
    flat = prefix.endswith("_")
    name = module if flat else _OLD_ATTENTION.sub(r".self_attn.\1_proj", module)
    pieces = CLIP.pieces(_full(name, "text_model_" if flat else "text_model."), "diffusers", flat=flat)
    return f"{encoder}.{pieces[0][0]}" if pieces else None


def is_named(prefix: str) -> bool:
    """Return whether a prefix says which encoder it is of; that of PEFT's adapter of one encoder does not."""
    return any(one in prefix for one in _PREFIXES)


def encoder_of(layer: str) -> str:
    """Return the encoder of a canonical layer."""
    return layer.partition(".")[0]


def spelled_encoder(layer: str, flat: bool, numbered: bool, comfy: bool) -> tuple[str, str]:
    """Return (prefix, module) of a canonical layer in LoRA files of kohya's kind (`flat`), else diffusers'.

    `numbered`: kohya's prefix counts the encoders, as for SDXL. ComfyUI reads the matrices of the blocks by diffusers'
    names, and all others by its own alone.
    """
    encoder, _, module = layer.partition(".")
    if flat:
        return {FIRST: "lora_te1_" if numbered else "lora_te_", SECOND: "lora_te2_"}[encoder], module
    if comfy and not _MATRIX.search(module):
        return f"text_encoders.clip_{'l' if encoder == FIRST else 'g'}.transformer.", module
    return f"{encoder}.", module


def encoder_parameters(key: str) -> tuple[Piece, ...]:
    """Return the canonical parameters in a key of a single file, and their rows; () for other networks' keys."""
    for prefix, (encoder, naming) in _HOMES.items():
        if key.startswith(prefix):
            name = key.removeprefix(prefix)
            pieces = CLIP.parameter_pieces(_full(name, "text_model.") if naming == "diffusers" else name, naming)
            return tuple((f"{encoder}.{canonical}", rows.named(key)) for canonical, rows in pieces)
    return ()


def own_parameters(name: str, encoder: str) -> tuple[Piece, ...]:
    """Return the same for a file that holds nothing but one encoder, in transformers' names."""
    pieces = CLIP.parameter_pieces(_full(name, "text_model."), "diffusers")
    return tuple((f"{encoder}.{canonical}", rows.named(name)) for canonical, rows in pieces)


def _full(name: str, start: str) -> str:
    """Return a name with `text_model` in front: transformers has none since version 5, nor have some single files."""
    return name if name.startswith((start, "text_projection")) else f"{start}{name}"
