"""FLUX.2: 5 or 8 double blocks, 20 to 48 single ones, no biases. Canonical names are those of diffusers.

Its double blocks fuse q, k and v in the original, as FLUX.1's do; in single blocks `linear1` is one layer everywhere.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Row, RowSlice
from loraport.files.names.tables.hunyuan15 import BLOCKS, FUSED, NORM_SCALES
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_DOUBLE, _SINGLE = "transformer_blocks.{}", "single_transformer_blocks.{}"
_ATTENTION: tuple[Row, ...] = tuple(
    (canonical, comfy) for canonical, _, comfy, _, _ in BLOCKS if ".attn." in str(canonical)
)
_REST: tuple[Row, ...] = (
    *(
        (f"{_DOUBLE}.{ff}.linear_{end}", f"double_blocks.{{}}.{stream}_mlp.{number}")
        for ff, stream in (("ff", "img"), ("ff_context", "txt"))
        for end, number in (("in", 0), ("out", 2))
    ),
    (f"{_SINGLE}.attn.to_qkv_mlp_proj", "single_blocks.{}.linear1"),
    (f"{_SINGLE}.attn.to_out", "single_blocks.{}.linear2"),
    # in the original files these are `.scale`: see the parameters
    (f"{_SINGLE}.attn.norm_q", "single_blocks.{}.norm.query_norm"),
    (f"{_SINGLE}.attn.norm_k", "single_blocks.{}.norm.key_norm"),
    ("x_embedder", "img_in"),
    ("context_embedder", "txt_in"),
    *(
        (f"time_guidance_embed.{mine}_embedder.linear_{number}", f"{theirs}.{end}_layer")
        for mine, theirs in (("timestep", "time_in"), ("guidance", "guidance_in"))
        for number, end in ((1, "in"), (2, "out"))
    ),
    *(
        (f"{name}.linear", f"{name}.lin")
        for name in ("double_stream_modulation_img", "double_stream_modulation_txt", "single_stream_modulation")
    ),
    ("proj_out", "final_layer.linear"),
    ("norm_out.linear", RowSlice("final_layer.adaLN_modulation.1", swapped=True)),
)

_CLASS = "Flux2Transformer2DModel"
_RECORD = FamilyRecord(
    title="FLUX.2",
    summary="Black Forest Labs' image model: dev of 32B, and klein of 4B and 9B, each as a base and distilled to four "
    "steps.",
    sizes=(
        PublishedSize("FLUX.2 dev", _CLASS, 331, 32_223_281_152),
        PublishedSize("FLUX.2 klein 9B", _CLASS, 233, 9_078_581_248),
        PublishedSize("FLUX.2 klein 4B", _CLASS, 169, 3_875_544_576),
    ),
    trainers=(
        TrainerKey("ai-toolkit, ComfyUI", "diffusion_model.double_blocks.0.img_attn.qkv.lora_A.weight",
                   "q, k and v in one; no alpha"),
        TrainerKey("musubi-tuner", "lora_unet_single_blocks_0_linear1.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey("diffusers",
                   "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj.lora_A.weight",
                   "alpha in the header"),
        TrainerKey("PEFT", "base_model.model.transformer_blocks.0.ff.linear_in.lora_A.weight",
                   "alpha in `adapter_config.json`"),
        TrainerKey("LyCORIS in SimpleTuner", "lycoris_transformer_blocks_0_ff_linear_in.lora_down.weight",
                   "`.alpha` in a tensor"),
    ),
    sources=(
        "src/flux2/model.py of github.com/black-forest-labs/flux2 (original; also in ComfyUI's files)",
        "diffusers' Flux2Transformer2DModel, its `convert_flux2_transformer_checkpoint_to_diffusers`, and its "
        "converters of LoRAs",
        "ComfyUI's `flux_to_diffusers` (comfy/utils.py, 09708ea) and `model_lora_keys_unet`",
    ),
    traps=(
        "The original has q, k and v of a double block in one layer; `linear1` of a single block is one layer in "
        "diffusers too, nine times as many rows as columns. In FLUX.1 it is seven times, by which a LoRA of original "
        "names is told from one of that.",
        "The last modulation is (shift, scale) in the original and (scale, shift) in diffusers: rows of B change "
        "places. The loader of diffusers 0.42 does not exchange them in LoRAs of original names, and `inspect` says "
        "so.",
        "A LoRA of one size fits no other, and one of FLUX.1 fits none: the widths and the number of blocks differ. "
        "`transfer` refuses the pair by the first layer whose shape differs.",
    ),
    unverified=(
        "a published LoRA or checkpoint of it: none was at hand",
        "klein 9B KV, whose network was not seen",
        "nvfp4 files, which are refused, as everywhere",
    ),
)  # fmt: skip

FLUX_2 = Family(
    name="flux.2",
    namings=("diffusers", "original"),
    layers=(*_ATTENTION, *_REST),
    parameters=(
        *(
            (f"{_DOUBLE}.attn.{canonical}.weight", f"double_blocks.{{}}.{stream}_attn.norm.{original}.scale")
            for canonical, stream, original in NORM_SCALES
        ),
        *(
            (f"{_SINGLE}.attn.norm_{letter}.weight", f"single_blocks.{{}}.norm.{original}.scale")
            for letter, original in (("q", "query_norm"), ("k", "key_norm"))
        ),
    ),
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=".attn.add_q_proj",
    sizes={(6144, 8): "FLUX.2 dev 32B", (4096, 8): "FLUX.2 klein 9B", (3072, 5): "FLUX.2 klein 4B"},
    depths={
        6144: {"transformer_blocks": 8, "single_transformer_blocks": 48},
        4096: {"transformer_blocks": 8, "single_transformer_blocks": 24},
        3072: {"transformer_blocks": 5, "single_transformer_blocks": 20},
    },
    ratios={
        **{f"{_DOUBLE}.attn.{name}": (1, 1) for name in ("to_q", "add_q_proj", "to_out.0", "to_add_out")},
        **{f"{_DOUBLE}.{ff}.linear_in": (6, 1) for ff in ("ff", "ff_context")},
        **{f"{_DOUBLE}.{ff}.linear_out": (1, 3) for ff in ("ff", "ff_context")},
        f"{_SINGLE}.attn.to_qkv_mlp_proj": (9, 1),
        f"{_SINGLE}.attn.to_out": (1, 4),
    },
    marks=r"flux[-_. ]?2|klein",
    fused=(
        *(one for one in FUSED if one[1].startswith("transformer_blocks")),
        # the name that some exports have, cut short
        *(
            ("diffusers", canonical, RowSlice(canonical.replace("transformer_blocks", "sformer_blocks", 1)))
            for canonical in (str(row[0]) for row in (*_ATTENTION, *_REST) if str(row[0]).startswith(f"{_DOUBLE}."))
            if ".norm_" not in canonical
        ),
    ),
    record=_RECORD,
)
