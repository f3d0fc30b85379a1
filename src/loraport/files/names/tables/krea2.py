"""Krea 2, Raw and Turbo: 28 blocks with grouped keys and values. Canonical names are those of diffusers.

Every layer stands alone in every spelling; k and v have a quarter of q's rows. The modulation of a block is one line of
six times the width in the original, and a table of six rows in diffusers.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Row, RowSlice
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

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

_RECORD = FamilyRecord(
    title="Krea 2",
    summary="Krea's image model of 12.8B: Raw, which LoRAs are meant to be trained on, and Turbo, distilled from it to "
    "8 steps without guidance, which they are meant to be used with.",
    sizes=(PublishedSize("Krea 2 12.8B", "Krea2Transformer2DModel", 430, 12_820_073_036),),
    trainers=(
        TrainerKey("Krea's trainer, ai-toolkit, ComfyUI", "diffusion_model.blocks.0.attn.wq.lora_A.weight",
                   "no alpha; ai-toolkit's LoKr has its alpha in a tensor"),
        TrainerKey("older ai-toolkit, PEFT", "base_model.model.blocks.0.attn.wq.lora_A.weight",
                   "in a file, and no alpha"),
        TrainerKey("musubi-tuner", "lora_unet_blocks_0_attn_wq.lora_down.weight",
                   "`.alpha` in a tensor; by default every linear layer, text fusion and embeddings too"),
        TrainerKey("DiffSynth", "blocks.0.attn.wq.lora_A.default.weight", "no alpha"),
        TrainerKey("diffusers, OneTrainer, DiffSynth for others",
                   "transformer.transformer_blocks.0.attn.to_q.lora_A.weight",
                   "alpha in the header, as PEFT's configuration; OneTrainer's in a tensor"),
        TrainerKey("SimpleTuner's LyCORIS", "lycoris_transformer_blocks_0_attn_to_qkv.lora_down.weight",
                   "q, k and v in one; `.alpha` in a tensor"),
    ),
    sources=(
        "the model of github.com/krea-ai/krea-2, which ComfyUI, ai-toolkit, musubi-tuner and Wan2GP share (original)",
        "diffusers' Krea2Transformer2DModel, its `convert_krea2_transformer_checkpoint_to_diffusers` and "
        "`_convert_non_diffusers_krea2_lora_to_diffusers`",
        "ComfyUI's `krea2_to_diffusers` (comfy/utils.py) and comfy/lora_convert.py, for the fused `to_qkv` and for "
        "`to_out` without `.0`",
        "musubi-tuner's networks/lora_krea2.py; DiffSynth's utils/lora/krea2.py; ai-toolkit's models/krea2",
    ),
    traps=(
        "Attention is grouped: 48 heads of q for 12 of k and of v, so k and v have a quarter of q's rows. A fused "
        "`to_qkv` has six equal parts, of which q has four. In the text fusion every head of q has its own k and v, "
        "and `to_qkv` has three parts. It is read, and never written: of diffusers, PEFT and ComfyUI only the last "
        "takes it.",
        "The modulation of a block, no layer, is one line of six times the width in the original and a table of six "
        "rows in diffusers. Norms are called `.scale` in the original.",
        "The original calls the gate of attention and the gate of the inner layer alike: `attn.gate`, `mlp.gate`.",
        "The int8 files with rotated weights (`int8_convrot`) and nvfp4 ones are refused; `fp8_scaled` is read, with "
        "its rounding.",
    ),
    unverified=(
        "any published file: names and shapes are those of the public code; 26.3 GB of Comfy-Org's bf16 file are 0.6 "
        "GB more than bf16 throughout, as if embeddings were fp32",
        "the names inside krea/Krea-2-Raw's `transformer/`, beside `raw.safetensors`",
    ),
)  # fmt: skip

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
    depths={6144: {_BLOCK[:-3]: 28} | {block[:-3]: 2 for block, _ in _BLOCKS[1:]}},
    ratios={f"{_BLOCK}.attn.to_q": (1, 1)} | {f"{_BLOCK}.attn.to_{letter}": (1, _GROUPS) for letter in "kv"},
    marks=r"krea[-_. ]?2",
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
    record=_RECORD,
)
