"""FLUX.1: 19 double blocks and 38 single ones. Canonical names are those of diffusers.

Its blocks are HunyuanVideo's in diffusers' names and in ComfyUI's, which took them from FLUX: one table serves both.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Cell, Family, Row, RowSlice
from loraport.files.names.tables.hunyuan import RATIOS, SINGLE_BLOCKS, SINGLE_FUSED
from loraport.files.names.tables.hunyuan15 import BLOCKS, FUSED, NORM_SCALES
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_XLABS: dict[str, Cell] = {
    **{f"{_DOUBLE}.attn.to_{x}": RowSlice("double_blocks.{}.qkv_lora1", part, 3) for part, x in enumerate("qkv")},
    **{f"{_DOUBLE}.attn.add_{x}_proj": RowSlice("double_blocks.{}.qkv_lora2", part, 3) for part, x in enumerate("qkv")},
    f"{_DOUBLE}.attn.to_out.0": "double_blocks.{}.proj_lora1",
    f"{_DOUBLE}.attn.to_add_out": "double_blocks.{}.proj_lora2",
    **{f"{_SINGLE}.attn.to_{x}": RowSlice("single_blocks.{}.qkv_lora", part, 3) for part, x in enumerate("qkv")},
    f"{_SINGLE}.proj_out": "single_blocks.{}.proj_lora",
}
"""The layers that XLabs' LoRAs adapt, with `processor` left out: `double_blocks.0.processor.qkv_lora1`."""

_EMBEDDERS = (("timestep", "time_in"), ("guidance", "guidance_in"), ("text", "vector_in"))
_OUTSIDE: tuple[Row, ...] = (
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    *(
        (f"time_text_embed.{mine}_embedder.linear_{number}", f"{theirs}.{layer}_layer")
        for mine, theirs in _EMBEDDERS
        for number, layer in ((1, "in"), (2, "out"))
    ),
    ("proj_out", "final_layer.linear"),
    ("norm_out.linear", RowSlice("final_layer.adaLN_modulation.1", swapped=True)),
)
_IN_BLOCKS: tuple[Row, ...] = (
    *((canonical, comfy) for canonical, _, comfy, _, _ in BLOCKS),
    *((canonical, comfy) for canonical, _, comfy in SINGLE_BLOCKS),
)

_CLASS = "FluxTransformer2DModel"
_RECORD = FamilyRecord(
    title="FLUX.1",
    summary="Black Forest Labs' image model of 12B: dev, which takes guidance as an input, and schnell, of one to four "
    "steps. Krea and Kontext have the names and shapes of dev.",
    sizes=(
        PublishedSize("FLUX.1 dev", _CLASS, 1160, 11_901_408_320),
        PublishedSize("FLUX.1 schnell", _CLASS, 1156, 11_891_178_560),
    ),
    trainers=(
        TrainerKey("sd-scripts, musubi-tuner (Kontext)", "lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
                   "q, k and v in one; `.alpha` in a tensor"),
        TrainerKey("ai-toolkit, diffusers, SimpleTuner",
                   "transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight",
                   "alpha in the header, or none where it was baked in"),
        TrainerKey("PEFT", "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight",
                   "alpha in `adapter_config.json`"),
        TrainerKey("fal (Kontext)", "base_model.model.double_blocks.0.img_attn.qkv.lora_A.weight", "q, k and v in one"),
        TrainerKey("ComfyUI", "diffusion_model.single_blocks.0.linear1.lora_A.weight",
                   "q, k, v and the inner layer in one"),
        TrainerKey("OneTrainer", "lora_transformer_transformer_blocks_0_attn_to_q.lora_down.weight",
                   "`.alpha` in a tensor"),
        TrainerKey("LyCORIS in SimpleTuner", "lycoris_transformer_blocks_0_attn_to_q.lora_down.weight",
                   "`.alpha` in a tensor"),
        TrainerKey("DiffSynth", "transformer_blocks.0.attn.to_q.lora_A.default.weight", "no prefix"),
        TrainerKey("XLabs", "double_blocks.0.processor.qkv_lora1.down.weight", "attention alone; no alpha"),
    ),
    sources=(
        "src/flux/model.py and src/flux/modules/layers.py of github.com/black-forest-labs/flux (original; also in "
        "ComfyUI's files)",
        "diffusers' FluxTransformer2DModel, its `convert_flux_transformer_checkpoint_to_diffusers`, and its converters "
        "of LoRAs of kohya's scripts, OneTrainer, XLabs and fal",
        "ComfyUI's `flux_to_diffusers` and `model_lora_keys_unet`",
        "src/flux/modules/layers.py of github.com/XLabs-AI/x-flux for the processors that its LoRAs are made of",
    ),
    traps=(
        "The original has q, k and v of a double block in one layer, and q, k, v and the inner layer of a single block "
        "in `linear1`: seven equal blocks of rows, of which the inner layer has four.",
        "The last modulation is (shift, scale) in the original and (scale, shift) in diffusers: rows of B change "
        "places.",
        "Its blocks are called like HunyuanVideo 1.0's, and are as wide. A LoRA is told from one of that by its header "
        "(`modelspec.architecture`, `ss_base_model_version`), by blocks that only one of them has (19 and 38 against "
        "20 and 40), or by layers outside the blocks; where none of that decides, it is read as one of FLUX.1, and a "
        "note says so. The updates are the same either way: only some names in kohya's format differ.",
        "sd-scripts' `split_qkv` writes fused factors at three or four times the rank with the alpha of one part, so "
        "every program that reads the file, this one too, applies it three or four times weaker than it was trained. "
        "Nothing in the file says so.",
    ),
    unverified=(
        "a published LoRA or checkpoint of it: none was at hand",
        "FLUX.1 Fill, Canny and Depth, whose `x_embedder` is wider: they are read as any other, and were not tried",
    ),
)  # fmt: skip

FLUX_1 = Family(
    name="flux.1",
    namings=("diffusers", "original", "xlabs"),
    layers=tuple((*row, _XLABS.get(str(row[0]))) for row in (*_IN_BLOCKS, *_OUTSIDE)),
    parameters=(
        *(
            (f"{_DOUBLE}.attn.{canonical}.weight", f"double_blocks.{{}}.{stream}_attn.norm.{original}.scale", None)
            for canonical, stream, original in NORM_SCALES
        ),
        *(
            (f"{_SINGLE}.attn.norm_{letter}.weight", f"single_blocks.{{}}.norm.{original}.scale", None)
            for letter, original in (("q", "query_norm"), ("k", "key_norm"))
        ),
    ),
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=".attn.add_q_proj",
    sizes={(3072, 19): "FLUX.1 12B"},
    depths={3072: {"transformer_blocks": 19, "single_transformer_blocks": 38}},
    ratios=RATIOS,
    marks=r"flux(?![-_. ]?[23])",
    fused=(*(one for one in FUSED if one[1].startswith("transformer_blocks")), *SINGLE_FUSED),
    record=_RECORD,
)
