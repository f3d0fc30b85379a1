"""HunyuanVideo-1.5: 54 double blocks. Canonical names are those of diffusers, where every projection stands alone.

Two traps. The original fuses q, k and v in the two token refiners only, ComfyUI and FastVideo everywhere. The last
modulation is (shift, scale) in the original and in ComfyUI, (scale, shift) in diffusers and in FastVideo.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Naming, Row, RowSlice
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey


def _part(name: str, part: int) -> RowSlice:
    return RowSlice(name, part, 3)


def _attention(canonical: tuple[str, str, str], stream: str) -> tuple[Row, ...]:
    """Return q, k and v of one stream: apart in the original, one matrix elsewhere."""
    block = "double_blocks.{}"
    return tuple(
        (
            f"transformer_blocks.{{}}.attn.{name}",
            f"{block}.{stream}_attn_{letter}",
            _part(f"{block}.{stream}_attn.qkv", part),
            _part(f"{block}.{stream}_attn_qkv", part),
            _part(f"{block}.{stream}_attn_qkv", part),
        )
        for part, (letter, name) in enumerate(zip("qkv", canonical, strict=True))
    )


_REFINER = "txt_in.individual_token_refiner.blocks.{}"
_REFINER_CANONICAL = "context_embedder.token_refiner.refiner_blocks.{}"
_REFINER_FASTVIDEO = "txt_in.refiner_blocks.{}"

BLOCKS: tuple[Row, ...] = (
    # diffusers, original, ComfyUI, diffusion-pipe, FastVideo
    *_attention(("to_q", "to_k", "to_v"), "img"),
    *_attention(("add_q_proj", "add_k_proj", "add_v_proj"), "txt"),
    *(
        (
            f"transformer_blocks.{{}}.{canonical}",
            f"double_blocks.{{}}.{original}",
            f"double_blocks.{{}}.{comfy}",
            f"double_blocks.{{}}.{original}",
            f"double_blocks.{{}}.{fastvideo}",
        )
        for canonical, original, comfy, fastvideo in (
            ("norm1.linear", "img_mod.linear", "img_mod.lin", "img_mod.linear"),
            ("norm1_context.linear", "txt_mod.linear", "txt_mod.lin", "txt_mod.linear"),
            ("attn.to_out.0", "img_attn_proj", "img_attn.proj", "img_attn_proj"),
            ("attn.to_add_out", "txt_attn_proj", "txt_attn.proj", "txt_attn_proj"),
            ("ff.net.0.proj", "img_mlp.fc1", "img_mlp.0", "img_mlp.fc_in"),
            ("ff.net.2", "img_mlp.fc2", "img_mlp.2", "img_mlp.fc_out"),
            ("ff_context.net.0.proj", "txt_mlp.fc1", "txt_mlp.0", "txt_mlp.fc_in"),
            ("ff_context.net.2", "txt_mlp.fc2", "txt_mlp.2", "txt_mlp.fc_out"),
            # in ComfyUI's files these are `.scale`: see the parameters
            ("attn.norm_q", "img_attn_q_norm", "img_attn.norm.query_norm", "img_attn_q_norm"),
            ("attn.norm_k", "img_attn_k_norm", "img_attn.norm.key_norm", "img_attn_k_norm"),
            ("attn.norm_added_q", "txt_attn_q_norm", "txt_attn.norm.query_norm", "txt_attn_q_norm"),
            ("attn.norm_added_k", "txt_attn_k_norm", "txt_attn.norm.key_norm", "txt_attn_k_norm"),
        )
    ),
)

REFINERS: tuple[Row, ...] = (
    *(
        (
            f"{_REFINER_CANONICAL}.attn.to_{letter}",
            _part(f"{_REFINER}.self_attn_qkv", part),
            _part(f"{_REFINER}.self_attn.qkv", part),
            _part(f"{_REFINER}.self_attn_qkv", part),
            _part(f"{_REFINER_FASTVIDEO}.self_attn_qkv", part),
        )
        for part, letter in enumerate("qkv")
    ),
    *(
        (
            f"{_REFINER_CANONICAL}.{canonical}",
            f"{_REFINER}.{original}",
            f"{_REFINER}.{comfy}",
            f"{_REFINER}.{original}",
            f"{_REFINER_FASTVIDEO}.{fastvideo}",
        )
        for canonical, original, comfy, fastvideo in (
            ("attn.to_out.0", "self_attn_proj", "self_attn.proj", "self_attn_proj"),
            ("ff.net.0.proj", "mlp.fc1", "mlp.0", "mlp.fc_in"),
            ("ff.net.2", "mlp.fc2", "mlp.2", "mlp.fc_out"),
            ("norm_out.linear", "adaLN_modulation.1", "adaLN_modulation.1", "adaLN_modulation.linear"),
            ("norm1", "norm1", "norm1", "norm1"),
            ("norm2", "norm2", "norm2", "norm2"),
        )
    ),
)

FUSED: tuple[tuple[Naming, str, RowSlice], ...] = tuple(
    ("diffusers", f"{block}.attn.{name}", _part(f"{block}.attn.{module}", part))
    for block, module, names in (
        ("transformer_blocks.{}", "to_qkv", ("to_q", "to_k", "to_v")),
        ("transformer_blocks.{}", "to_added_qkv", ("add_q_proj", "add_k_proj", "add_v_proj")),
        (_REFINER_CANONICAL, "to_qkv", ("to_q", "to_k", "to_v")),
    )
    for part, name in enumerate(names)
)
"""What diffusers' `fuse_qkv_projections` makes of a block and of a refiner."""

NORM_SCALES: tuple[tuple[str, str, str], ...] = (
    ("norm_q", "img", "query_norm"),
    ("norm_k", "img", "key_norm"),
    ("norm_added_q", "txt", "query_norm"),
    ("norm_added_k", "txt", "key_norm"),
)
"""The norms of a block whose weight ComfyUI calls `scale`: canonical, stream, ComfyUI's."""

_OUTSIDE: tuple[Row, ...] = tuple(
    (canonical, original, comfy, comfy, fastvideo)
    for canonical, original, comfy, fastvideo in (
        ("x_embedder.proj", "img_in.proj", "img_in.proj", "img_in.proj"),
        (
            "time_embed.timestep_embedder.linear_1",
            "time_in.mlp.0",
            "time_in.in_layer",
            "time_in.timestep_embedder.mlp.fc_in",
        ),
        (
            "time_embed.timestep_embedder.linear_2",
            "time_in.mlp.2",
            "time_in.out_layer",
            "time_in.timestep_embedder.mlp.fc_out",
        ),
        # the second time of mean flow: only in models that were distilled with it
        (
            "time_embed.timestep_embedder_r.linear_1",
            "time_r_in.mlp.0",
            "time_r_in.in_layer",
            "time_in.timestep_embedder_r.mlp.fc_in",
        ),
        (
            "time_embed.timestep_embedder_r.linear_2",
            "time_r_in.mlp.2",
            "time_r_in.out_layer",
            "time_in.timestep_embedder_r.mlp.fc_out",
        ),
        ("context_embedder.proj_in", "txt_in.input_embedder", "txt_in.input_embedder", "txt_in.input_embedder"),
        (
            "context_embedder.time_text_embed.timestep_embedder.linear_1",
            "txt_in.t_embedder.mlp.0",
            "txt_in.t_embedder.in_layer",
            "txt_in.t_embedder.mlp.fc_in",
        ),
        (
            "context_embedder.time_text_embed.timestep_embedder.linear_2",
            "txt_in.t_embedder.mlp.2",
            "txt_in.t_embedder.out_layer",
            "txt_in.t_embedder.mlp.fc_out",
        ),
        (
            "context_embedder.time_text_embed.text_embedder.linear_1",
            "txt_in.c_embedder.linear_1",
            "txt_in.c_embedder.in_layer",
            "txt_in.c_embedder.fc_in",
        ),
        (
            "context_embedder.time_text_embed.text_embedder.linear_2",
            "txt_in.c_embedder.linear_2",
            "txt_in.c_embedder.out_layer",
            "txt_in.c_embedder.fc_out",
        ),
        ("context_embedder_2.norm", "byt5_in.layernorm", "byt5_in.layernorm", "txt_in_2.norm"),
        ("context_embedder_2.linear_1", "byt5_in.fc1", "byt5_in.fc1", "txt_in_2.linear_1"),
        ("context_embedder_2.linear_2", "byt5_in.fc2", "byt5_in.fc2", "txt_in_2.linear_2"),
        ("context_embedder_2.linear_3", "byt5_in.fc3", "byt5_in.fc3", "txt_in_2.linear_3"),
        ("image_embedder.norm_in", "vision_in.proj.0", "vision_in.proj.0", "image_embedder.norm_in"),
        ("image_embedder.linear_1", "vision_in.proj.1", "vision_in.proj.1", "image_embedder.linear_1"),
        ("image_embedder.linear_2", "vision_in.proj.3", "vision_in.proj.3", "image_embedder.linear_2"),
        ("image_embedder.norm_out", "vision_in.proj.4", "vision_in.proj.4", "image_embedder.norm_out"),
        ("cond_type_embed", "cond_type_embedding", "cond_type_embedding", "cond_type_embed"),
        ("proj_out", "final_layer.linear", "final_layer.linear", "final_layer.linear"),
    )
)

_SWAPPED = RowSlice("final_layer.adaLN_modulation.1", swapped=True)

_CLASS = "HunyuanVideo15Transformer3DModel"
_Q, _QKV = "double_blocks.0.img_attn_q", "double_blocks.0.img_attn_qkv"
_RECORD = FamilyRecord(
    title="HunyuanVideo-1.5",
    summary="Tencent's video model of 8.3B, published with versions distilled to no guidance and to few steps.",
    sizes=(
        PublishedSize("HunyuanVideo-1.5 8.3B", _CLASS, 1801, 8_326_608_160),
        PublishedSize("HunyuanVideo-1.5 8.3B with mean flow", _CLASS, 1805, 8_331_330_848),
    ),
    trainers=(
        TrainerKey("Tencent's train.py", f"{_Q}.lora_A.weight",
                   "no prefix; alpha in the header, as PEFT's configuration, 16 at rank 8 by default"),
        TrainerKey("diffusers", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "alpha in the header"),
        TrainerKey("ComfyUI", "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight", "q, k and v in one"),
        TrainerKey("diffusion-pipe", f"transformer.{_QKV}.lora_A.weight", "q, k and v in one"),
        TrainerKey("musubi-tuner", "lora_unet_double_blocks_0_img_attn_q.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey("PEFT", "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
                   "alpha in `adapter_config.json`"),
        TrainerKey("FastVideo", f"{_QKV}.lora_A.weight", "q, k and v in one; `.lora_alpha` in a tensor"),
    ),
    sources=(
        "hyvideo/models/transformers/hunyuanvideo_1_5_transformer.py of github.com/Tencent-Hunyuan/HunyuanVideo-1.5 "
        "(original)",
        "diffusers' scripts/convert_hunyuan_video1_5_to_diffusers.py for the way to its names",
        "ComfyUI's `process_unet_state_dict` and `model_lora_keys_unet` for its own names and those of "
        "diffusion-pipe's LoRAs, which it reads",
        "FastVideo's configs/models/dits/hunyuanvideo15.py for the names that it uses while it runs",
    ),
    traps=(
        "The original fuses q, k and v in the two token refiners only; ComfyUI, diffusion-pipe and FastVideo fuse them "
        "in every block. A LoRA of a fused module is read as three with the same A and each its rows of B. Put "
        "together again, A is stacked and B lies block by block, at three times the rank; if all three have the same "
        "A, it is shared. A LoRA on one of the three has rows of zeros for the others.",
        "The last modulation is (shift, scale) in the original and in ComfyUI, (scale, shift) in diffusers and "
        "FastVideo: rows of B change places, A does not.",
        "ComfyUI's norms are called `.scale`.",
        "Models with mean flow have a second time embedding, `time_r_in`. It has no counterpart in a base without it: "
        "left alone and named.",
    ),
    unverified=(
        "the listing of the repository, and its dtype beyond its size; which of the models have mean flow",
        "the diffusers repository of the 480p text-to-video model, distilled",
        "what LightX2V does with LoRAs of it",
    ),
)  # fmt: skip

HUNYUAN_15 = Family(
    name="hunyuanvideo-1.5",
    namings=("diffusers", "original", "comfy", "diffusion-pipe", "fastvideo"),
    layers=(
        *BLOCKS,
        *REFINERS,
        *_OUTSIDE,
        ("norm_out.linear", _SWAPPED, _SWAPPED, _SWAPPED, "final_layer.adaLN_modulation.linear"),
    ),
    parameters=tuple(
        (
            f"transformer_blocks.{{}}.attn.{canonical}.weight",
            None,
            f"double_blocks.{{}}.{stream}_attn.norm.{comfy}.scale",
            None,
            None,
        )
        for canonical, stream, comfy in NORM_SCALES
    ),
    written={
        "comfy": "comfy",
        "diffusers": "diffusers",
        "peft": "diffusers",
        "kohya": "original",
        "tencent": "original",
    },
    probe=".attn.add_q_proj",
    sizes={(2048, 54): "HunyuanVideo-1.5 8.3B"},
    depths={2048: {"transformer_blocks": 54}},
    marks=r"hunyuan.*1[-_.]?5|hv_1_5",
    kernels=(("x_embedder.proj", (1, 1, 1)),),
    fused=FUSED,
    record=_RECORD,
)
