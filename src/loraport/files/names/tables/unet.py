"""The U-Nets of Stable Diffusion 1.5 and XL, and SSD-1B. Canonical names are those of diffusers.

The original numbers its blocks through: with two layers a level, level b's layer i is input block 1 + 3b + i on the way
down, output block 3b + i on the way up. Both spell the inside of a transformer alike.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from loraport.files.names.tables.family import Family, Naming, Row, RowSlice
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)
_OUTER = ("norm", "proj_in", "proj_out")
_INNER = (
    *(f"{attention}.{layer}" for attention in ("attn1", "attn2") for layer in ("to_q", "to_k", "to_v", "to_out.0")),
    "ff.net.0.proj",
    "ff.net.2",
    "norm1",
    "norm2",
    "norm3",
)
_ENDS = (
    ("conv_in", "input_blocks.0.0"),
    ("conv_norm_out", "out.0"),
    ("conv_out", "out.2"),
    ("time_embedding.linear_1", "time_embed.0"),
    ("time_embedding.linear_2", "time_embed.2"),
)
_SIZE_AND_POOLED_TEXT = (("add_embedding.linear_1", "label_emb.0.0"), ("add_embedding.linear_2", "label_emb.0.2"))


def _resnet(diffusers: str, original: str) -> tuple[Row, ...]:
    return tuple((f"{diffusers}.{mine}", f"{original}.{theirs}") for mine, theirs in _RESNET)


def _attention(diffusers: str, original: str, blocks: str) -> tuple[Row, ...]:
    """Return one spatial transformer; `blocks` is `{}` for any number of blocks inside, or 0 for one."""
    inner = (f"transformer_blocks.{blocks}.{layer}" for layer in _INNER)
    return tuple((f"{diffusers}.{layer}", f"{original}.{layer}") for layer in (*_OUTER, *inner))


def _fused(rows: Iterable[Row]) -> Iterator[tuple[Naming, str, RowSlice]]:
    """Yield what diffusers' `fuse_qkv_projections` makes of the attention layers of a table."""
    for mine, _ in rows:
        block, _, layer = str(mine).rpartition(".to_")
        letters, module = ("qkv", "to_qkv") if block.endswith(".attn1") else ("kv", "to_kv")
        if layer and layer in letters:
            yield "diffusers", str(mine), RowSlice(f"{block}.{module}", letters.index(layer), len(letters))


def _rows(levels: int, down: Container[int], up: Container[int], blocks: str) -> tuple[Row, ...]:
    """Return a U-Net with attention on the given levels of either way."""
    rows: list[Row] = [*_ENDS]
    for level in range(levels):
        for layer in range(2):
            there, block = f"down_blocks.{level}", f"input_blocks.{1 + 3 * level + layer}"
            rows += _resnet(f"{there}.resnets.{layer}", f"{block}.0")
            rows += _attention(f"{there}.attentions.{layer}", f"{block}.1", blocks) if level in down else ()
        for layer in range(3):
            there, block = f"up_blocks.{level}", f"output_blocks.{3 * level + layer}"
            rows += _resnet(f"{there}.resnets.{layer}", f"{block}.0")
            rows += _attention(f"{there}.attentions.{layer}", f"{block}.1", blocks) if level in up else ()
        if level < levels - 1:
            behind = 2 if level in up else 1
            rows += [
                (f"down_blocks.{level}.downsamplers.0.conv", f"input_blocks.{3 * level + 3}.0.op"),
                (f"up_blocks.{level}.upsamplers.0.conv", f"output_blocks.{3 * level + 2}.{behind}.conv"),
            ]
    rows += [*_resnet("mid_block.resnets.0", "middle_block.0"), *_resnet("mid_block.resnets.1", "middle_block.2")]
    return (*rows, *_attention("mid_block.attentions.0", "middle_block.1", blocks))


PROJECTIONS = (".proj_in", ".proj_out")
LINEAR_PROJECTIONS = 1024
"""The text width of Stable Diffusion 2.x, whose projections are linear, but 1×1 convolutions in kohya's scripts."""
_CONVOLUTIONS: tuple[tuple[str, tuple[int, ...]], ...] = (
    *((name, (3, 3)) for name in ("conv_in", "conv_out", "conv1", "conv2", "downsamplers.0.conv", "upsamplers.0.conv")),
    ("conv_shortcut", (1, 1)),
)
_SD15 = _rows(4, down=range(3), up=range(1, 4), blocks="0")
_SDXL = (*_SIZE_AND_POOLED_TEXT, *_rows(3, down=range(1, 3), up=range(2), blocks="{}"))

_CLASS = "UNet2DConditionModel"
_DOTTED = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
_SOURCES = (
    "`unet_to_diffusers` of ComfyUI (comfy/utils.py)",
    "`convert_ldm_unet_checkpoint` of diffusers",
    "networks/lora.py of kohya-ss/sd-scripts for the flattened names",
)
_TRAPS = (
    "Inside the program a kernel is a matrix out × (in · height · width). kohya's scripts flatten diffusers' names for "
    "SD 1.5 and original ones for SDXL; both are read, and the usual one is written. ComfyUI reads original names "
    "behind `diffusion_model.` and both of kohya's, not diffusers' dotted keys. An autoencoder in the same file is "
    "left alone, and so are text encoders, except by `merge`.",
    "The shape of a convolution's kernel comes from the target or from `--source`, else from what its name tells; if "
    "nothing tells it, `convert` refuses LoHa and LoKr. A 1 × 1 kernel and none are the same matrix.",
)


def _trainers(flat: str, original: str) -> tuple[TrainerKey, ...]:
    """Return how LoRAs of a U-Net are spelled, of which one layer has these names, flattened and original."""
    return (
        TrainerKey("kohya's sd-scripts", f"lora_unet_{flat}.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey(
            "LyCORIS in diffusers", f"lycoris_{_DOTTED.replace('.', '_')}.lora_down.weight", "`.alpha` in a tensor"
        ),
        TrainerKey("diffusers", f"unet.{_DOTTED}.lora_A.weight", "alpha in the header, as PEFT's configuration"),
        TrainerKey(
            "diffusers before PEFT",
            "unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight",
            "no alpha",
        ),
        TrainerKey("ComfyUI", f"diffusion_model.{original}.lora_A.weight", ""),
        TrainerKey("PEFT", f"base_model.model.{_DOTTED}.lora_A.weight", "alpha in `adapter_config.json`"),
    )


_ORIGINAL = "input_blocks.4.1.transformer_blocks.0.attn1.to_q"
_RECORD_15 = FamilyRecord(
    title="Stable Diffusion 1.5",
    summary="The U-Net of Stable Diffusion 1.x, which LCM, Hyper-SD and others have accelerator LoRAs for.",
    sizes=(PublishedSize("Stable Diffusion 1.5", _CLASS, 686, 859_520_964),),
    trainers=_trainers(_DOTTED.replace(".", "_"), _ORIGINAL),
    sources=_SOURCES,
    traps=_TRAPS,
    unverified=("the listing of the repository: a mirror of one that was withdrawn",),
)
_RECORD_XL = FamilyRecord(
    title="Stable Diffusion XL and SSD-1B",
    summary="The U-Net of SDXL, which Lightning, Turbo, DMD2, LCM and Hyper-SD have checkpoints and accelerator LoRAs "
    "for; and SSD-1B, a smaller one distilled from it.",
    sizes=(
        PublishedSize("Stable Diffusion XL", _CLASS, 1680, 2_567_463_684),
        PublishedSize("SSD-1B", _CLASS, 944, 1_331_334_404),
    ),
    trainers=_trainers(_ORIGINAL.replace(".", "_"), _ORIGINAL),
    sources=(*_SOURCES, "`SSD_1B` in ComfyUI's comfy/model_detection.py for SSD-1B's blocks"),
    traps=(
        *_TRAPS,
        "SSD-1B stands in ComfyUI's table of models with 12 transformer blocks on the way down, 22 on the way up and "
        "none in the middle: 34. With that, diffusers' class has 1,331,334,404 parameters, the published 1.3B. (The 40 "
        "blocks that notes on ProLoRA give do not fit: by a write-up of its release, 40 were taken out.) Its block i "
        "need not be SDXL's block i: [layers are paired by "
        "similarity](../models.md#models-of-different-depth).",
    ),
    unverified=(
        "the listing of SDXL's repository, and its dtype",
        "SSD-1B's `unet/`, whose configuration was put together from ComfyUI's table and the number of parameters",
    ),
)  # fmt: skip

SD15 = Family(
    name="sd1.5",
    namings=("diffusers", "original"),
    layers=_SD15,
    parameters=(),
    component="unet",
    # kohya's scripts flatten diffusers' names for SD 1.5, and the original ones for SDXL; every loader reads both
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "diffusers"},
    probe=".attn2.to_k",
    sizes={(768, 16): "Stable Diffusion 1.5", (1024, 16): "Stable Diffusion 2.1"},
    fused=tuple(_fused(_SD15)),
    kernels=(*_CONVOLUTIONS, *((name.removeprefix("."), (1, 1)) for name in PROJECTIONS)),
    record=_RECORD_15,
)

SDXL = Family(
    name="sdxl",
    namings=("diffusers", "original"),
    layers=_SDXL,
    parameters=(),
    component="unet",
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=".attn2.to_k",
    sizes={(2048, 70): "Stable Diffusion XL", (2048, 34): "SSD-1B"},
    fused=tuple(_fused(_SDXL)),
    kernels=_CONVOLUTIONS,
    record=_RECORD_XL,
)
