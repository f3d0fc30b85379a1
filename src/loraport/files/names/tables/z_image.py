"""Z-Image, base and Turbo: 30 layers and two refiners of two. Canonical names are those of diffusers, and its makers'.

ComfyUI's files have q, k and v in one matrix, as Lumina 2 has, whose class it runs Z-Image with.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Row, RowSlice
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_LISTS = ("layers", "noise_refiner", "context_refiner", "siglip_refiner")
"""The last is Omni's."""
_SAME = (
    *(f"feed_forward.w{number}" for number in (1, 2, 3)),
    *(f"{kind}_norm{number}" for kind in ("attention", "ffn") for number in (1, 2)),
)


def _block(block: str) -> tuple[Row, ...]:
    attention, fused = f"{block}.attention", f"{block}.attention.qkv"
    return (
        *(
            (f"{attention}.to_{letter}", RowSlice(fused, part, 3, square=True))
            for part, letter in enumerate("qkv")
        ),
        (f"{attention}.to_out.0", f"{attention}.out"),
        *((f"{attention}.norm_{letter}", f"{attention}.{letter}_norm") for letter in "qk"),
        *((f"{block}.{layer}", f"{block}.{layer}") for layer in _SAME),
        *(((f"{block}.adaLN_modulation.0",) * 2,) if block.startswith(("layers", "noise")) else ()),
    )  # fmt: skip


_RECORD = FamilyRecord(
    title="Z-Image",
    summary="Alibaba's image model of 6.2B: the base, which LoRAs can be trained on, and Turbo, distilled from it to 8 "
    "steps without guidance.",
    sizes=(
        PublishedSize("Z-Image 6.2B, base and Turbo", "ZImageTransformer2DModel", 521, 6_154_908_736),
        PublishedSize("Z-Image-Omni 6.5B", "ZImageTransformer2DModel", 551, 6_513_266_880),
    ),
    trainers=(
        TrainerKey("ai-toolkit", "diffusion_model.layers.0.attention.to_q.lora_A.weight",
                   "no alpha; its LoKr has it in a tensor"),
        TrainerKey("musubi-tuner", "lora_unet_layers_0_attention_to_q.lora_down.weight",
                   "`.alpha` in a tensor; not the modulations and refiners, unless it is told to"),
        TrainerKey("diffusers, OneTrainer", "transformer.layers.0.attention.to_q.lora_A.weight",
                   "alpha in the header, as PEFT's configuration; OneTrainer's in a tensor"),
        TrainerKey("DiffSynth", "layers.0.attention.to_q.lora_A.default.weight", "no alpha"),
        TrainerKey("SimpleTuner's LyCORIS", "lycoris_layers_0_attention_to_q.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey("kohya's scripts for ComfyUI's names, musubi's convert_z_image_lora_to_comfy",
                   "lora_unet_layers_0_attention_qkv.lora_down.weight", "q, k and v in one; `.alpha` in a tensor"),
        TrainerKey("PEFT", "base_model.model.layers.0.attention.to_q.lora_A.weight",
                   "alpha in `adapter_config.json`"),
    ),
    sources=(
        "diffusers' ZImageTransformer2DModel, its `convert_z_image_transformer_checkpoint_to_diffusers` and "
        "`_convert_non_diffusers_z_image_lora_to_diffusers`",
        "ComfyUI's `z_image_to_diffusers` (comfy/utils.py) and comfy/ldm/lumina/model.py",
        "musubi-tuner's networks/lora_zimage.py and networks/convert_z_image_lora_to_comfy.py; LightX2V's "
        "models/networks/z_image; Wan2GP's models/z_image/z_image_transformer2d.py",
    ),
    traps=(
        "ComfyUI's files have q, k and v in one matrix, `attention.qkv`, and `attention.out` for `to_out.0`. Its "
        "loader knows diffusers' names too, behind `diffusion_model.` and others, so `comfy` writes those: ranks stay "
        "as they are, and diffusers, Wan2GP and LightX2V take the same file. Flattened, ComfyUI knows its own names "
        "alone: of musubi-tuner's files it takes the inner layers and not attention.",
        "Lumina 2 has the names of ComfyUI's files, with fewer keys and values than queries: a LoRA of its `qkv` is "
        "refused here, since it does not divide into three square parts.",
        "The inner layers stand apart everywhere: w1 is the gate, w3 beside it, w2 the way back.",
    ),
    unverified=(
        "any published file: names and shapes are those of the public code",
        "`norm_final`, which diffusers drops from single files: whether Comfy-Org's have it",
    ),
)  # fmt: skip

_FINAL = "all_final_layer.2-1"

Z_IMAGE = Family(
    name="z-image",
    namings=("diffusers", "comfy"),
    layers=(
        *(row for name in _LISTS for row in _block(f"{name}.{{}}")),
        ("all_x_embedder.2-1", "x_embedder"),
        (f"{_FINAL}.linear", "final_layer.linear"),
        (f"{_FINAL}.adaLN_modulation.1", "final_layer.adaLN_modulation.1"),
        *((name, name) for name in ("t_embedder.mlp.0", "t_embedder.mlp.2", "cap_embedder.0", "cap_embedder.1")),
        *((name, name) for name in ("siglip_embedder.0", "siglip_embedder.1")),
        ("norm_final", "norm_final"),  # of Lumina 2: nothing uses it
    ),
    parameters=tuple((f"{name}_pad_token", f"{name}_pad_token") for name in ("x", "cap", "siglip")),
    written=dict.fromkeys(("comfy", "diffusers", "peft", "kohya"), "diffusers"),
    probe="layers.{}.attention.to_q",
    sizes={(3840, 30): "Z-Image 6.2B"},
    depths={3840: {"layers": 30} | dict.fromkeys(_LISTS[1:], 2)},
    marks=r"z[-_. ]?image",
    fused=tuple(
        ("diffusers", f"{name}.{{}}.attention.to_{letter}", RowSlice(f"{name}.{{}}.attention.to_qkv", part, 3))
        for name in _LISTS
        for part, letter in enumerate("qkv")
    ),
    record=_RECORD,
)
