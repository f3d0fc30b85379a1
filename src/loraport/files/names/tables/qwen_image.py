"""Qwen-Image, of which everybody has the names of diffusers, and Qwen-Image 2.1, another model.

Qwen-Image has 60 blocks of two streams, 3072 wide; 2512, Edit and Layered are trained on from it. 2.1 has 32 blocks of
one stream with a gated inner layer, 4096 wide: no weight of one is a weight of the other.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Naming, Row, RowSlice
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_BLOCK = "transformer_blocks.{}"
_ATTENTION = ("to_q", "to_k", "to_v", "to_out.0", "norm_q", "norm_k")
_ADDED = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out", "norm_added_q", "norm_added_k")
_QKV, _ADDED_QKV = _ATTENTION[:3], _ADDED[:3]
_TIME = tuple(f"time_text_embed.timestep_embedder.linear_{number}" for number in (1, 2))


def _fused(module: str, layers: tuple[str, str, str]) -> tuple[tuple[Naming, str, RowSlice], ...]:
    """Return what diffusers' `fuse_qkv_projections` makes of three layers."""
    return tuple(
        ("diffusers", f"{_BLOCK}.attn.{layer}", RowSlice(f"{_BLOCK}.attn.{module}", part, 3))
        for part, layer in enumerate(layers)
    )


_FLAT = "lora_unet_transformer_blocks_0_attn_to_q.lora_down.weight"
_DOTTED = "transformer_blocks.0.attn.add_k_proj"
_TWO_MODELS = (
    "Qwen-Image 2.1 has one stream of 32 blocks, 4096 wide, with a gated inner layer, and Qwen-Image two streams of 60 "
    "blocks, 3072 wide: they share names of attention layers and no weights"
)
_RECORD = FamilyRecord(
    title="Qwen-Image",
    summary="Alibaba's image model of 20B, with 2512, Edit and Layered trained on from it. Lightning's LoRAs of 4 and "
    "8 steps are its accelerators, and some are published merged into its weights.",
    sizes=(
        PublishedSize("Qwen-Image 20B, 2512, Edit", "QwenImageTransformer2DModel", 1933, 20_430_401_088),
        PublishedSize("Qwen-Image-Layered 20B", "QwenImageTransformer2DModel", 1934, 20_430_407_232),
    ),
    trainers=(
        TrainerKey("Lightning (lightx2v)", f"{_DOTTED}.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey("diffusers, OneTrainer, SimpleTuner", f"transformer.{_DOTTED}.lora_A.weight",
                   "alpha in the header, as PEFT's configuration; OneTrainer's in a tensor"),
        TrainerKey("ai-toolkit", f"diffusion_model.{_DOTTED}.lora_A.weight", "no alpha"),
        TrainerKey("musubi-tuner", _FLAT, "`.alpha` in a tensor; not the modulations, unless it is told to"),
        TrainerKey("DiffSynth", f"{_DOTTED}.lora_A.default.weight", "no alpha"),
        TrainerKey("SimpleTuner's LyCORIS", _FLAT.replace("lora_unet", "lycoris"), "`.alpha` in a tensor"),
        TrainerKey("PEFT", f"base_model.model.{_DOTTED}.lora_A.weight", "alpha in `adapter_config.json`"),
    ),
    sources=(
        "diffusers' QwenImageTransformer2DModel and `_convert_non_diffusers_qwen_lora_to_diffusers`",
        "ComfyUI's comfy/ldm/qwen_image/model.py and `model_lora_keys_unet` (comfy/lora.py)",
        "musubi-tuner's convert_lora.py and networks/lora_qwen_image.py; LightX2V's utils/lora_loader.py; Wan2GP's "
        "models/qwen/transformer_qwenimage.py; DiffSynth's utils/lora/general.py",
    ),
    traps=(
        "Everybody has the same names; what differs is what stands before them and where alpha is. diffusers takes "
        "names without prefix only where an alpha, or `default.`, makes it convert the file, and loses a file with "
        "`transformer.` and an alpha in a tensor.",
        "Its attention layers are called as those of HunyuanVideo, FLUX and Krea 2 are. Which family a LoRA is of is "
        "told by its other layers, its widths and its blocks.",
        f"{_TWO_MODELS}. A pair of one of each is refused.",
    ),
    unverified=(
        "any published file: names and shapes are those of the public code",
        "which of the repositories have all their weights in bf16",
    ),
)  # fmt: skip

QWEN_IMAGE = Family(
    name="qwen-image",
    namings=("diffusers",),
    layers=tuple(
        (name,)
        for name in (
            *(f"{_BLOCK}.attn.{layer}" for layer in (*_ATTENTION, *_ADDED)),
            *(f"{_BLOCK}.{stream}_mod.1" for stream in ("img", "txt")),
            *(f"{_BLOCK}.{stream}_mlp.net.{layer}" for stream in ("img", "txt") for layer in ("0.proj", "2")),
            *("img_in", "txt_in", "txt_norm", "norm_out.linear", "proj_out", *_TIME),
            "time_text_embed.addition_t_embedding",  # Layered's
        )
    ),
    parameters=(),
    written=dict.fromkeys(("comfy", "diffusers", "peft", "kohya"), "diffusers"),
    probe=".attn.add_q_proj",
    sizes={(3072, 60): "Qwen-Image 20B"},
    depths={3072: {"transformer_blocks": 60}},
    marks=r"qwen[-_. ]?image(?![-_. ]?2[._]?1(?!\d))",
    fused=(*_fused("to_qkv", _QKV), *_fused("to_added_qkv", _ADDED_QKV)),
    apart={"qwen-image-2.1": _TWO_MODELS},
    record=_RECORD,
)

_INNER = f"{_BLOCK}.img_mlp"
_LAYERS_21: tuple[Row, ...] = (
    *((name, name) for name in (*(f"{_BLOCK}.attn.{layer}" for layer in _ATTENTION), f"{_INNER}.out")),
    (f"{_INNER}.gate_layer", RowSlice(f"{_INNER}.gate_up", 0, 2)),
    (f"{_INNER}.proj", RowSlice(f"{_INNER}.gate_up", 1, 2)),
    *((name, name) for name in ("img_in", "txt_in.text_norm", "txt_in.in_layer", "txt_in.out_layer", "modulation.1")),
    *((name, name) for name in ("norm_out.linear", "proj_out", *_TIME)),
)
_RECORD_21 = FamilyRecord(
    title="Qwen-Image 2.1",
    summary="Alibaba's image model of 7.1B, another one than Qwen-Image. It is read and written; no distilled model of "
    "it has a name here.",
    sizes=(PublishedSize("Qwen-Image 2.1 7.1B", "QwenImage21Transformer2DModel", 297, 7_115_124_736),),
    trainers=(
        TrainerKey("diffusers", "transformer.transformer_blocks.0.img_mlp.gate_layer.lora_A.weight",
                   "alpha in the header, as PEFT's configuration"),
        TrainerKey("ai-toolkit", "diffusion_model.transformer_blocks.0.img_mlp.proj.lora_A.weight", "no alpha"),
        TrainerKey("musubi-tuner", "lora_unet_transformer_blocks_0_img_mlp_proj.lora_down.weight",
                   "`.alpha` in a tensor"),
        TrainerKey("ComfyUI", "diffusion_model.transformer_blocks.0.img_mlp.gate_up.lora_A.weight",
                   "gate and inner layer in one"),
    ),
    sources=(
        "diffusers' QwenImage21Transformer2DModel and `convert_qwen_image21_transformer_checkpoint_to_diffusers`",
        "ComfyUI's comfy/ldm/qwen_image21/model.py and `model_lora_keys_unet` (comfy/lora.py)",
        "musubi-tuner's networks/lora_qwen_image_21.py",
    ),
    traps=(
        "ComfyUI's files have the gate and the inner layer in one matrix, `img_mlp.gate_up`, the gate's rows first. "
        "Its loader knows the two apart behind `transformer.` and without prefix, not behind `diffusion_model.`.",
        f"{_TWO_MODELS}. A pair of one of each is refused.",
    ),
    unverified=("any published file: names and shapes are those of the public code",),
)  # fmt: skip

QWEN_IMAGE_21 = Family(
    name="qwen-image-2.1",
    namings=("diffusers", "comfy"),
    layers=_LAYERS_21,
    parameters=(),
    written={"comfy": "comfy", "diffusers": "diffusers", "peft": "diffusers", "kohya": "diffusers"},
    probe=".img_mlp.gate_layer",
    sizes={(4096, 32): "Qwen-Image 2.1 7.1B"},
    depths={4096: {"transformer_blocks": 32}},
    marks=r"qwen[-_. ]?image[-_. ]?2[._]?1(?!\d)",
    fused=_fused("to_qkv", _QKV),
    apart={"qwen-image": _TWO_MODELS},
    record=_RECORD_21,
)
