"""HunyuanVideo (1.0): 20 double blocks and 40 single ones. Canonical names are those of diffusers.

Its double blocks and refiners are those of HunyuanVideo-1.5, with q, k and v in one matrix everywhere but in diffusers.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Naming, Row, RowSlice
from loraport.files.names.tables.hunyuan15 import BLOCKS, FUSED, NORM_SCALES, REFINERS
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_MINE, _ORIGINAL, _COMFY = "single_transformer_blocks.{}", "single_blocks.{}", "single_blocks.{}"
_LINEAR1 = f"{_ORIGINAL}.linear1"

SINGLE_BLOCKS: tuple[Row, ...] = (
    *(
        (f"{_MINE}.attn.to_{letter}", RowSlice(_LINEAR1, part, 7), RowSlice(_LINEAR1, part, 7))
        for part, letter in enumerate("qkv")
    ),
    (f"{_MINE}.proj_mlp", RowSlice(_LINEAR1, 3, 7, span=4), RowSlice(_LINEAR1, 3, 7, span=4)),
    (f"{_MINE}.proj_out", f"{_ORIGINAL}.linear2", f"{_COMFY}.linear2"),
    (f"{_MINE}.norm.linear", f"{_ORIGINAL}.modulation.linear", f"{_COMFY}.modulation.lin"),
    # in ComfyUI's files these are `.scale`: see the parameters
    (f"{_MINE}.attn.norm_q", f"{_ORIGINAL}.q_norm", f"{_COMFY}.norm.query_norm"),
    (f"{_MINE}.attn.norm_k", f"{_ORIGINAL}.k_norm", f"{_COMFY}.norm.key_norm"),
)

RATIOS: dict[str, tuple[int, int]] = {
    **{f"transformer_blocks.{{}}.attn.{name}": (1, 1) for name in ("to_q", "add_q_proj", "to_out.0", "to_add_out")},
    **{f"transformer_blocks.{{}}.{name}.net.0.proj": (4, 1) for name in ("ff", "ff_context")},
    **{f"transformer_blocks.{{}}.{name}.net.2": (1, 4) for name in ("ff", "ff_context")},
    f"{_MINE}.attn.to_q": (1, 1),
    f"{_MINE}.proj_mlp": (4, 1),
    f"{_MINE}.proj_out": (1, 5),
}
"""Rows to columns in the blocks."""

_TIME, _TEXT = "time_text_embed.{}_embedder.linear_", "context_embedder.time_text_embed.{}_embedder.linear_"
_OUTSIDE: tuple[Row, ...] = (
    ("x_embedder.proj", "img_in.proj", "img_in.proj"),
    *(
        (f"{_TIME.format(mine)}{number}", f"{theirs}.{original}", f"{theirs}.{comfy}")
        for mine, theirs in (("timestep", "time_in"), ("guidance", "guidance_in"))
        for number, original, comfy in ((1, "mlp.0", "in_layer"), (2, "mlp.2", "out_layer"))
    ),
    (f"{_TIME.format('text')}1", "vector_in.in_layer", "vector_in.in_layer"),
    (f"{_TIME.format('text')}2", "vector_in.out_layer", "vector_in.out_layer"),
    ("context_embedder.proj_in", "txt_in.input_embedder", "txt_in.input_embedder"),
    (f"{_TEXT.format('timestep')}1", "txt_in.t_embedder.mlp.0", "txt_in.t_embedder.in_layer"),
    (f"{_TEXT.format('timestep')}2", "txt_in.t_embedder.mlp.2", "txt_in.t_embedder.out_layer"),
    (f"{_TEXT.format('text')}1", "txt_in.c_embedder.linear_1", "txt_in.c_embedder.in_layer"),
    (f"{_TEXT.format('text')}2", "txt_in.c_embedder.linear_2", "txt_in.c_embedder.out_layer"),
    ("proj_out", "final_layer.linear", "final_layer.linear"),
)

_SWAPPED = RowSlice("final_layer.adaLN_modulation.1", swapped=True)

_QKV = "double_blocks.0.img_attn_qkv"
_RECORD = FamilyRecord(
    title="HunyuanVideo 1.0",
    summary="Tencent's video model of 13B. It is read and written; no distilled model of it has a name here.",
    sizes=(PublishedSize("HunyuanVideo 13B", "HunyuanVideoTransformer3DModel", 1264, 12_821_012_544),),
    trainers=(
        TrainerKey("ComfyUI", "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "q, k and v in one"),
        TrainerKey("diffusion-pipe", f"transformer.{_QKV}.lora_A.weight", "q, k and v in one"),
        TrainerKey("musubi-tuner", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey("diffusers", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "alpha in the header"),
        TrainerKey("PEFT", "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
                   "alpha in `adapter_config.json`"),
    ),
    sources=(
        "hyvideo/modules/models.py of github.com/Tencent-Hunyuan/HunyuanVideo (original, and in musubi-tuner's LoRAs)",
        "diffusers' HunyuanVideoTransformer3DModel and its `convert_hunyuan_video_transformer_to_diffusers`",
        "ComfyUI's comfy/ldm/hunyuan_video/model.py, its `process_unet_state_dict`, and its `model_lora_keys_unet` for "
        "diffusion-pipe's names",
    ),
    traps=(
        "`linear1` of a single block holds q, k, v and an inner layer of four times the width: seven equal blocks of "
        "rows, of which the inner layer has four.",
        "Where only names are known, the width of the layers tells it from HunyuanVideo-1.5: 3072 against 2048.",
    ),
    unverified=("a published LoRA or checkpoint of it: none was at hand",),
)  # fmt: skip

SINGLE_FUSED: tuple[tuple[Naming, str, RowSlice], ...] = tuple(
    ("diffusers", f"{_MINE}.attn.to_{letter}", RowSlice(f"{_MINE}.attn.to_qkv", part, 3))
    for part, letter in enumerate("qkv")
)
"""What diffusers' `fuse_qkv_projections` makes of a single block."""

HUNYUAN = Family(
    name="hunyuanvideo",
    namings=("diffusers", "original", "comfy", "diffusion-pipe"),
    layers=(
        *((canonical, fused, comfy, fused) for canonical, _, comfy, fused, _ in (*BLOCKS, *REFINERS)),
        *((canonical, original, comfy, original) for canonical, original, comfy in SINGLE_BLOCKS),
        *((canonical, original, comfy, comfy) for canonical, original, comfy in _OUTSIDE),
        ("norm_out.linear", _SWAPPED, _SWAPPED, _SWAPPED),
    ),
    parameters=(
        *(
            (
                f"transformer_blocks.{{}}.attn.{canonical}.weight",
                None,
                f"double_blocks.{{}}.{stream}_attn.norm.{comfy}.scale",
                None,
            )
            for canonical, stream, comfy in NORM_SCALES
        ),
        *(
            (f"{_MINE}.attn.norm_{letter}.weight", None, f"{_COMFY}.norm.{comfy}.scale", None)
            for letter, comfy in (("q", "query_norm"), ("k", "key_norm"))
        ),
    ),
    written={"comfy": "comfy", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=".attn.add_q_proj",
    sizes={(3072, 20): "HunyuanVideo 13B"},
    depths={3072: {"transformer_blocks": 20, "single_transformer_blocks": 40}},
    ratios=RATIOS,
    marks=r"hunyuan(?!.*1[-_.]?5)|framepack",
    kernels=(("x_embedder.proj", (1, 2, 2)),),
    fused=(
        *FUSED,
        *SINGLE_FUSED,
    ),
    record=_RECORD,
)
