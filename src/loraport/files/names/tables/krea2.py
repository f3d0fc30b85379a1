"""Krea 2, Raw and Turbo: 28 blocks with grouped keys and values. Canonical names are those of diffusers.

Every layer stands alone in every spelling; k and v have a quarter of q's rows. Sources: the model of
github.com/krea-ai/krea-2, which ComfyUI, ai-toolkit and musubi-tuner share (original); diffusers'
Krea2Transformer2DModel and its `convert_krea2_transformer_checkpoint_to_diffusers`; ComfyUI's `krea2_to_diffusers`
(comfy/utils.py), and its comfy/lora_convert.py for the fused `to_qkv` that SimpleTuner writes.

The modulation of a block is one line of six times the width in the original, and a table of six rows in diffusers.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Row, RowSlice

_LAYERS = (
    # diffusers, original
    ("attn.to_q", "attn.wq"),
    ("attn.to_k", "attn.wk"),
    ("attn.to_v", "attn.wv"),
    ("attn.to_gate", "attn.gate"),
    ("attn.to_out.0", "attn.wo"),
    ("ff.gate", "mlp.gate"),
    ("ff.up", "mlp.up"),
    ("ff.down", "mlp.down"),
)
_NORMS = (
    # layers in diffusers, and in the original parameters called `scale`
    ("norm1", "prenorm"),
    ("norm2", "postnorm"),
    ("attn.norm_q", "attn.qknorm.qnorm"),
    ("attn.norm_k", "attn.qknorm.knorm"),
)
_BLOCK = "transformer_blocks.{}"
_BLOCKS = (
    (_BLOCK, "blocks.{}"),
    *(
        (f"text_fusion.{kind}_blocks.{{}}", f"txtfusion.{kind}_blocks.{{}}")
        for kind in ("layerwise", "refiner")
    ),
)  # fmt: skip
_OUTSIDE: tuple[Row, ...] = (
    ("img_in", "first"),
    ("time_embed.linear_1", "tmlp.0"),
    ("time_embed.linear_2", "tmlp.2"),
    ("time_mod_proj", "tproj.1"),
    ("txt_in.linear_1", "txtmlp.1"),
    ("txt_in.linear_2", "txtmlp.3"),
    ("text_fusion.projector", "txtfusion.projector"),
    ("final_layer.linear", "last.linear"),
)
_NORMS_OUTSIDE = (("txt_in.norm", "txtmlp.0"), ("final_layer.norm", "last.norm"))
_ALL_NORMS = (
    *((f"{mine}.{norm}", f"{theirs}.{scale}") for mine, theirs in _BLOCKS for norm, scale in _NORMS),
    *_NORMS_OUTSIDE,
)
_GROUPS = 4
"""Heads of q for one of k and of v, in the blocks of published models; those of the text fusion have one for one."""

KREA_2 = Family(
    name="krea2",
    namings=("diffusers", "original"),
    layers=(
        *((f"{mine}.{layer}", f"{theirs}.{name}") for mine, theirs in _BLOCKS for layer, name in _LAYERS),
        *((norm, None) for norm, _ in _ALL_NORMS),
        *_OUTSIDE,
    ),
    parameters=(
        *((f"{norm}.weight", f"{scale}.scale") for norm, scale in _ALL_NORMS),
        (f"{_BLOCK}.scale_shift_table", RowSlice("blocks.{}.mod.lin", folded=6)),
        ("final_layer.scale_shift_table", "last.modulation.lin"),
    ),
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=f"{_BLOCK}.attn.to_q",
    sizes={(6144, 28): "Krea 2 12.8B"},
    fused=(
        *(
            ("diffusers", f"{_BLOCK}.attn.to_{letter}", RowSlice(f"{_BLOCK}.attn.to_qkv", part, _GROUPS + 2, span=span))
            for letter, part, span in (("q", 0, _GROUPS), ("k", _GROUPS, 1), ("v", _GROUPS + 1, 1))
        ),
        *(
            ("diffusers", f"{block}.attn.to_{letter}", RowSlice(f"{block}.attn.to_qkv", part, 3))
            for block, _ in _BLOCKS[1:]
            for part, letter in enumerate("qkv")
        ),
        # as some tools write it, and ComfyUI reads it
        *(("diffusers", f"{block}.attn.to_out.0", RowSlice(f"{block}.attn.to_out")) for block, _ in _BLOCKS),
    ),
)
