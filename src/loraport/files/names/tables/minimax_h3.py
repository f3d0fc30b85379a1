"""MiniMax-H3: 50 blocks over one sequence of text, video and sound. Canonical names are diffusers': q, k and v apart.

Two traps. MiniMax's own shards and DiffSynth's LoRAs have the rows of q, k and v head by head, everybody else stacked:
same names, same shapes, so a naming of its own, `interleaved`, which is chosen by other evidence than names. And the
inner layer of the feed-forward is (gate, value) in the original, (value, gate) in diffusers.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Naming, Row, RowSlice
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

HEAD = 128
"""Rows of one head in every published model."""

_BLOCKS = (("transformer_blocks.{}", "blocks.{}"), ("token_refiner.refiner_blocks.{}", "token_refiner.blocks.{}"))


def _block(canonical: str, original: str) -> tuple[Row, ...]:
    """Return the layers that a block and a block of the token refiner share."""
    fused = f"{original}.attn.qkv_proj"
    inner = RowSlice(f"{original}.mlp.fc1", swapped=True)
    return (
        *(
            (f"{canonical}.attn.to_{letter}", RowSlice(fused, part, 3), RowSlice(fused, part, 3, group=HEAD))
            for part, letter in enumerate("qkv")
        ),
        (f"{canonical}.ff.net.0.proj", inner, inner),
        *(
            (f"{canonical}.{mine}", f"{original}.{theirs}", f"{original}.{theirs}")
            for mine, theirs in (
                ("attn.to_out.0", "attn.out_proj"),
                ("attn.norm_q", "attn.q_norm"),
                ("attn.norm_k", "attn.k_norm"),
                ("ff.net.2", "mlp.fc2"),
                ("norm1", "norm1"),
                ("norm2", "norm2"),
            )
        ),
    )


_LAYERS: tuple[Row, ...] = (
    # diffusers, original (stacked), interleaved
    *(row for canonical, original in _BLOCKS for row in _block(canonical, original)),
    *(
        (canonical, original, original)
        for canonical, original in (
            ("transformer_blocks.{}.adaln_proj.linear", "blocks.{}.adaln_proj.linear"),
            # the gate of video sparse attention (FastH3 only)
            ("transformer_blocks.{}.attn.to_gate_compress", "blocks.{}.attn.to_gate_compress"),
            ("token_refiner.final_norm", "token_refiner.final_norm"),
            ("proj_in", "video_patch_proj"),
            ("audio_proj_in", "audio_patch_proj"),
            ("context_embedder", "condition_proj"),
            ("time_embedder.linear_1", "time_embedder.proj_in"),
            ("time_embedder.linear_2", "time_embedder.proj_out"),
            ("norm_out.norm", "final_layer.norm"),
            ("norm_out.linear", "final_layer.adaln_proj.linear"),
            ("proj_out", "final_layer.video_out"),
            ("audio_proj_out", "final_layer.audio_out"),
        )
    ),
)

TABLE, BASIS, MEAN = "time_embedder.table", "adaln_basis", "adaln_mean"
"""What a pruned model has in place of its time embedder: [times, width]; and, where it keeps them, [width, in] and "
"[in]."""
REDUCED = "adaln_basis.weight"
"""What a model of reduced rank has beside its time embedder: [rank, in]."""
MODULATION = ".adaln_proj.linear.weight"
"""The ending of a weight that sees the time alone; `norm_out.linear.weight` is another, named as in other families."""
FOLDED = (".linear.bias", ".folded_bias")
"""The ending of a modulation's bias, and what it is called in pruned models that keep their basis."""
_PARAMETERS: tuple[Row, ...] = (
    (TABLE, "adaln_t_table", "adaln_t_table"),
    (BASIS, BASIS, BASIS),
    (MEAN, MEAN, MEAN),
    (REDUCED, REDUCED, REDUCED),
    *(
        (f"{canonical}.folded_bias", f"{original}.folded_bias", f"{original}.folded_bias")
        for canonical, original in (
            ("transformer_blocks.{}.adaln_proj", "blocks.{}.adaln_proj"),
            ("norm_out", "final_layer.adaln_proj"),
        )
    ),
)
_NAMINGS: tuple[Naming, ...] = ("diffusers", "original", "interleaved")

_RECORD = FamilyRecord(
    title="MiniMax-H3",
    summary="Video with its sound, 33.1 billion parameters, two partitions of the same names: `fl2va` (text, first "
    "and last frame) and `ref2va` (references). Distilled into Turbo LoRAs of several makers and into "
    "FastH3; published pruned and of reduced rank, too, where only the modulation by time is stored "
    "otherwise.",
    sizes=(PublishedSize("MiniMax-H3", "MiniMaxH3Transformer3DModel", 638, 33_122_992_896),),
    trainers=(
        TrainerKey("ai-toolkit, ComfyUI", "diffusion_model.blocks.0.attn.qkv_proj.lora_A.weight", "no alpha"),
        TrainerKey(
            "MiniMax's reference, larryvrh, lightx2v",
            "blocks.0.attn.qkv_proj.lora_A.weight",
            "alpha in the header's field `alpha` or nowhere; ranks 64 and, of the modulation, 16 in one file",
        ),
        TrainerKey("musubi-tuner", "lora_unet_blocks_0_attn_qkv_proj.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey("DiffSynth", "blocks.0.attn.qkv_proj.lora_A.default.weight", "rows head by head; no alpha"),
        TrainerKey("diffusers", "transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "alpha in the header"),
        TrainerKey("diffusers, of ref2va", "transformer_ref.transformer_blocks.0.attn.to_q.lora_A.weight"),
        TrainerKey("FastVideo", "base_model.model.transformer_blocks.0.attn.to_q.lora_A.weight", "PEFT's folder"),
    ),
    sources=(
        "diffusers 0.42, `convert_minimax_h3_transformer_checkpoint_to_diffusers` and "
        "`_convert_non_diffusers_minimax_h3_lora_to_diffusers`",
        "ComfyUI's comfy/ldm/minimax/model.py (2c64d4a) and `model_lora_keys_unet` of comfy/lora.py (17358c8)",
        "FastVideo's scripts/checkpoint_conversion/convert_minimax_h3_adaln_rank.py, of models of reduced rank",
        "vLLM-Omni's tools/minimax_h3/convert_comfy_convrot_to_partition.py: the interleaved layout, and the names of"
        " pruned models that keep their basis",
        "Wan2GP's models/minimax_h3/transformer.py and prune_checkpoint.py: what is pruned, and its LoRA loader",
    ),
    traps=(
        "The rows of the fused q, k and v (`attn.qkv_proj`) are stacked in ComfyUI's files and in what every trainer "
        "but DiffSynth writes, and lie head by head (56 heads of 128 rows for each of q, k and v) in the shards that "
        "MiniMax published and in DiffSynth's LoRAs. Names and shapes are the same. A LoRA is taken as interleaved "
        "where its keys hold the name of an adapter (`.default.`); a model in several shards likewise, unless the "
        "other model contradicts it: the right layout is the one in which the two differ little. What was decided is "
        "said, and `--qkv` decides otherwise (`--qkv interleaved`, `--qkv lora=stacked`, `--qkv source=interleaved`).",
        "The inner layer of the feed-forward is (gate, value) in the original and (value, gate) in diffusers: rows of"
        " B change places, A does not.",
        "The modulation (`adaln_proj.linear`) is 2,688 numbers wide in the full model, as wide as the table in a "
        "pruned one, and as wide as the basis in one of reduced rank. A LoRA for one form is carried over to another:"
        " [Use a LoRA with a pruned MiniMax-H3](../../how-to/pruned-models.md).",
        "LoRAs of the two partitions have the same names, and load in the other. `--source` one and `--target` the "
        "other is a pair like any other.",
        "FastH3 with sparse attention has `attn.to_gate_compress` in every block, which the base lacks: left alone "
        "and named.",
        "int8_convrot (rotated codes) and nvfp4 are refused by name; of fp8_scaled the drift is compared with what "
        "such rounding alone would make of it.",
    ),
    unverified=(
        "no weights of the model were downloaded, and no published LoRA: names, shapes and rows are those of the code"
        " that reads them",
        "the layout of the repository MiniMaxAI/MiniMax-H3; that its `transformer/` holds diffusers' names",
        "the repositories of FastH3, beyond their names",
        "what LightX2V, FastVideo and SGLang do with LoRAs of it",
    ),
)

MINIMAX_H3 = Family(
    "minimax-h3",
    _NAMINGS,
    _LAYERS,
    _PARAMETERS,
    partitions=("transformer_ref",),
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe="transformer_blocks.{}.attn.to_q",
    sizes={(5376, 50): "MiniMax-H3"},
    mixed_ranks=True,
    header_alpha=True,
    depths={5376: {"transformer_blocks": 50}},
    marks=r"minimax[-_. ]?h3",
    record=_RECORD,
    twins={"original": "interleaved"},
)
