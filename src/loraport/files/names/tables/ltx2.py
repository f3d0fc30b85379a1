"""LTX-2, LTX-2.3 and LTX-2.5: 48 blocks of video and audio side by side. Canonical names are those of diffusers.

Renames only: nothing is fused, no rows change places. The blocks' linear layers are called alike in both spellings.
"""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Row
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_ATTENTIONS = ("attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn")
_PROJECTIONS = ("to_q", "to_k", "to_v", "to_out.0", "to_gate_logits")
_MODULATIONS = (
    ("adaln_single", "time_embed"),
    ("audio_adaln_single", "audio_time_embed"),
    ("prompt_adaln_single", "prompt_adaln"),
    ("audio_prompt_adaln_single", "audio_prompt_adaln"),
    ("av_ca_video_scale_shift_adaln_single", "av_cross_attn_video_scale_shift"),
    ("av_ca_audio_scale_shift_adaln_single", "av_cross_attn_audio_scale_shift"),
    ("av_ca_a2v_gate_adaln_single", "av_cross_attn_video_a2v_gate"),
    ("av_ca_v2a_gate_adaln_single", "av_cross_attn_audio_v2a_gate"),
)
_SAME = (
    "proj_out",
    "audio_proj_out",
    *(f"{name}caption_projection.linear_{n}" for name in ("", "audio_") for n in (1, 2)),
)
_BLOCK = "transformer_blocks.{}"


_LAYERS: tuple[Row, ...] = (
    # diffusers, original
    *((f"{_BLOCK}.{attention}.{one}",) * 2 for attention in _ATTENTIONS for one in _PROJECTIONS),
    *((f"{_BLOCK}.{one}.norm_{letter}", f"{_BLOCK}.{one}.{letter}_norm") for one in _ATTENTIONS for letter in "qk"),
    *((f"{_BLOCK}.{network}.net.{part}",) * 2 for network in ("ff", "audio_ff") for part in ("0.proj", "2")),
    ("proj_in", "patchify_proj"),
    ("audio_proj_in", "audio_patchify_proj"),
    *((name, name) for name in _SAME),
    *(
        (f"{diffusers}.{layer}", f"{original}.{layer}")
        for original, diffusers in _MODULATIONS
        for layer in ("emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2", "linear")
    ),
)

_CLASS = "LTX2VideoTransformer3DModel"
_RECORD = FamilyRecord(
    title="LTX-2, LTX-2.3, LTX-2.5",
    summary="Lightricks' models of video and sound. Each version is published as dev, as distilled to eight steps, "
    "and as a LoRA that makes the one of the other.",
    sizes=(
        PublishedSize("LTX-2 19B", _CLASS, 3510, 18_876_174_592),
        PublishedSize("LTX-2.3 22B", _CLASS, 4186, 18_988_838_144),
        PublishedSize("LTX-2.5 22B", _CLASS, 4091, 18_987_859_200),
    ),
    trainers=(
        TrainerKey("ltx-trainer, ai-toolkit, the distilled LoRAs, ComfyUI",
                   "diffusion_model.transformer_blocks.0.attn1.to_q.lora_A.weight", "no alpha: the scale is 1"),
        TrainerKey("diffusers", "transformer.transformer_blocks.0.audio_attn1.to_q.lora_A.weight",
                   "alpha in the header"),
        TrainerKey("PEFT", "base_model.model.transformer_blocks.0.attn1.to_q.lora_A.weight",
                   "alpha in `adapter_config.json`"),
        TrainerKey("DiffSynth", "transformer_blocks.0.attn1.to_q.lora_A.default.weight", "no prefix"),
        TrainerKey("forks of musubi-tuner", "lora_unet_transformer_blocks_0_attn1_to_q.lora_down.weight",
                   "`.alpha` in a tensor"),
    ),
    sources=(
        "packages/ltx-core/src/ltx_core/model/transformer/ of github.com/Lightricks/LTX-2 (original; also in ComfyUI's "
        "files)",
        "diffusers' LTX2VideoTransformer3DModel, its `convert_ltx2_transformer_to_diffusers`, which knows LTX-2 alone, "
        "and `_convert_non_diffusers_ltx2_lora_to_diffusers`, which knows LTX-2.3 too",
        "the flags of LTX-2.5's published configuration as FastVideo's notes on its port list them",
    ),
    traps=(
        "The versions have the same width and the same number of blocks, and a LoRA on the blocks of one fits the "
        "others, whether or not it does there what it did. Told apart they are by what one has alone: "
        "`caption_projection` in LTX-2, `prompt_adaln_single` and `to_gate_logits` from LTX-2.3 on, no bias in the "
        "video's `ff` and `keyframes_abs_pos_embedding` in LTX-2.5. `adaln_single` has six parts in LTX-2 and nine "
        "later: a LoRA on it "
        "does not fit. A transfer from one version to another is a transfer between two trainings, which a note "
        "says: `diagnose` measures how far apart they are, and nothing promises that an IC-LoRA of 2.3 works on 2.5.",
        "What stands between text encoder and transformer (`video_embeddings_connector`, `audio_embeddings_connector`, "
        "`text_embedding_projection`) is a component of its own in diffusers, and its names are in no table: a LoRA on "
        "it goes along where the names stay the original's, and has no place in diffusers' format, which is said.",
        "Names of LTX-Video 0.9 (13B, 48 blocks of the same width) are the same inside the blocks: a LoRA of it is "
        "taken for one of LTX-2, whose layers of video it fits by shape alone.",
    ),
    unverified=(
        "a published LoRA or checkpoint of any version: none was at hand",
        "the sizes of LTX-2.3 and LTX-2.5: they are diffusers' class with the flags of the sources, not counted in a "
        "file",
        "nvfp4 and int4 (W4A8) files, which are refused, as everywhere",
    ),
)  # fmt: skip

LTX_2 = Family(
    name="ltx-2",
    namings=("diffusers", "original"),
    layers=_LAYERS,
    parameters=(
        *((name, name) for name in ("scale_shift_table", "audio_scale_shift_table", "keyframes_abs_pos_embedding")),
        *(
            (f"{_BLOCK}.{name}", f"{_BLOCK}.{name}")
            for name in (
                *("scale_shift_table", "audio_scale_shift_table"),
                *("prompt_scale_shift_table", "audio_prompt_scale_shift_table"),
            )
        ),
        *(
            (f"{_BLOCK}.{one}_a2v_cross_attn_scale_shift_table", f"{_BLOCK}.scale_shift_table_a2v_ca_{one}")
            for one in ("video", "audio")
        ),
    ),
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=".audio_to_video_attn.to_q",
    sizes={(4096, 48): "LTX-2 19B, LTX-2.3 22B or LTX-2.5 22B"},
    versions={
        "LTX-2.5": "keyframes_abs_pos_embedding",
        "LTX-2.3": "prompt_adaln.linear.weight",
        "LTX-2": "caption_projection.linear_1.weight",
    },
    marks=r"ltx",
    record=_RECORD,
)
