"""FLUX.1: 19 double blocks and 38 single ones. Canonical names are those of diffusers.

Its blocks are HunyuanVideo's in diffusers' names and in ComfyUI's, which took them from FLUX: one table serves both.
Sources: src/flux/model.py and modules/layers.py of github.com/black-forest-labs/flux (original; also in ComfyUI's files,
and in the LoRAs of kohya's sd-scripts and musubi-tuner); diffusers' FluxTransformer2DModel and its
`convert_flux_transformer_checkpoint_to_diffusers`; src/flux/modules/layers.py of github.com/XLabs-AI/x-flux for the
processors that its LoRAs are made of.

Two traps. The original fuses q, k and v, and the inner layer of single blocks with them. The last modulation is (shift,
scale) in the original and (scale, shift) in diffusers.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Cell, Family, Row, RowSlice
from loraport.files.names.tables.hunyuan import RATIOS, SINGLE_BLOCKS, SINGLE_FUSED
from loraport.files.names.tables.hunyuan15 import BLOCKS, FUSED, NORM_SCALES

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
)
