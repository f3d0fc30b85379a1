"""Wan 2.1 and 2.2: text to video, image to video, first and last frame, each expert; VACE, Animate, S2V, Fun."""

from __future__ import annotations

from loraport.files.names.tables.family import Family, Row, RowSlice
from loraport.files.names.tables.record import FamilyRecord, PublishedSize, TrainerKey

_IN_BLOCK = (
    # original, diffusers, FastVideo while it runs (on disk it uses the names of diffusers)
    ("self_attn.q", "attn1.to_q", "to_q"),
    ("self_attn.k", "attn1.to_k", "to_k"),
    ("self_attn.v", "attn1.to_v", "to_v"),
    ("self_attn.o", "attn1.to_out.0", "to_out"),
    ("self_attn.norm_q", "attn1.norm_q", "norm_q"),
    ("self_attn.norm_k", "attn1.norm_k", "norm_k"),
    ("cross_attn.q", "attn2.to_q", "attn2.to_q"),
    ("cross_attn.k", "attn2.to_k", "attn2.to_k"),
    ("cross_attn.v", "attn2.to_v", "attn2.to_v"),
    ("cross_attn.o", "attn2.to_out.0", "attn2.to_out"),
    ("cross_attn.norm_q", "attn2.norm_q", "attn2.norm_q"),
    ("cross_attn.norm_k", "attn2.norm_k", "attn2.norm_k"),
    # image-to-video of Wan 2.1 only
    ("cross_attn.k_img", "attn2.add_k_proj", "attn2.add_k_proj"),
    ("cross_attn.v_img", "attn2.add_v_proj", "attn2.add_v_proj"),
    ("cross_attn.norm_k_img", "attn2.norm_added_k", "attn2.norm_added_k"),
    # norm3 is norm2 elsewhere: diffusers counts in the order of use; the other two norms have no parameters
    ("norm3", "norm2", "self_attn_residual_norm.norm"),
    ("ffn.0", "ffn.net.0.proj", "ffn.fc_in"),
    ("ffn.2", "ffn.net.2", "ffn.fc_out"),
)


def _same(*names: str) -> tuple[Row, ...]:
    """Return layers that the original and diffusers call alike."""
    return tuple((name, name, None) for name in names)


def _original(*names: str) -> tuple[Row, ...]:
    """Return layers of models that diffusers has no class for."""
    return tuple((name, None, None) for name in names)


_VACE: tuple[Row, ...] = (
    *((f"vace_blocks.{{}}.{mine}", f"vace_blocks.{{}}.{theirs}", None) for mine, theirs, _ in _IN_BLOCK),
    ("vace_blocks.{}.before_proj", "vace_blocks.{}.proj_in", None),
    ("vace_blocks.{}.after_proj", "vace_blocks.{}.proj_out", None),
    *_same("vace_patch_embedding"),
)

_FUSER = "face_adapter.fuser_blocks.{}"
_MOTION, _CONVOLUTIONS = "motion_encoder", "motion_encoder.enc.net_app.convs"
_ANIMATE: tuple[Row, ...] = (
    *_same("pose_patch_embedding", "face_encoder.out_proj"),
    *((f"face_encoder.{name}.conv", f"face_encoder.{name}", None) for name in ("conv1_local", "conv2", "conv3")),
    *(
        (f"{_FUSER}.{mine}", f"face_adapter.{{}}.{theirs}", None)
        for mine, theirs in (
            ("linear1_q", "to_q"),
            ("linear1_k", "to_k"),
            ("linear1_v", "to_v"),
            ("linear2", "to_out"),
            ("q_norm", "norm_q"),
            ("k_norm", "norm_k"),
        )
    ),
    (f"{_CONVOLUTIONS}.0.0", f"{_MOTION}.conv_in", None),
    (f"{_CONVOLUTIONS}.0.1", f"{_MOTION}.conv_in.act_fn", None),
    (f"{_CONVOLUTIONS}.8", f"{_MOTION}.conv_out", None),
    (f"{_MOTION}.enc.fc.{{}}", f"{_MOTION}.motion_network.{{}}", None),
    *(
        (f"{_CONVOLUTIONS}.{block + 1}.{mine}", f"{_MOTION}.res_blocks.{block}.{theirs}", None)
        for block in range(7)
        for mine, theirs in (
            ("conv1.0", "conv1"),
            ("conv1.1", "conv1.act_fn"),
            ("conv2.1", "conv2"),
            ("conv2.2", "conv2.act_fn"),
            ("skip.1", "conv_skip"),
        )
    ),
)

_S2V = _original(
    *(f"audio_injector.injector.{{}}.{part}" for part in ("q", "k", "v", "o", "norm_q", "norm_k")),
    "audio_injector.injector_adain_layers.{}.linear",
    "audio_injector.injector_adain_output_layers.{}",
    *(f"casual_audio_encoder.encoder.{part}.conv" for part in ("conv1_local", "conv1_global", "conv2", "conv3")),
    "casual_audio_encoder.encoder.final_linear",
    "cond_encoder",
    "frame_packer.proj",
    "frame_packer.proj_2x",
    "frame_packer.proj_4x",
    "trainable_cond_mask",
)

_FUN = _original(
    "ref_conv",
    "control_adapter.conv",
    "control_adapter.residual_blocks.{}.conv1",
    "control_adapter.residual_blocks.{}.conv2",
)

_AUDIO = "blocks.{}.audio_cross_attn_wrapper"
_HUMO = _original(
    *(f"{_AUDIO}.audio_cross_attn.{part}" for part in ("q", "k", "v", "o", "norm_q", "norm_k")),
    f"{_AUDIO}.norm1_audio",
    *(f"audio_proj.audio_proj_glob_{part}.layer" for part in ("1", "2", "3", "norm")),
)


_DELTA = "condition_embedder.delta_embedder.linear_{}"
_FLOW_MAPS = _same(
    # AnyFlow's second time, and the patches of the frames before in its causal form; Helios' patches of history
    *(_DELTA.format(number) for number in (1, 2)),
    "far_patch_embedding",
    "patch_short",
    "patch_mid",
    "patch_long",
)


def _fused(block: str) -> list[tuple[str, RowSlice]]:
    """Return (canonical name, rows) of what diffusers' `fuse_qkv_projections` makes of one kind of blocks."""
    self_attention, cross = f"{block}.attn1.to_qkv", f"{block}.attn2"
    return [
        *((f"{block}.self_attn.{letter}", RowSlice(self_attention, part, 3)) for part, letter in enumerate("qkv")),
        *((f"{block}.cross_attn.{letter}", RowSlice(f"{cross}.to_kv", part, 2)) for part, letter in enumerate("kv")),
        *(
            (f"{block}.cross_attn.{letter}_img", RowSlice(f"{cross}.to_added_kv", part, 2))
            for part, letter in enumerate("kv")
        ),
    ]


_PATCH, _3X3, _3 = (1, 2, 2), (3, 3), (3,)

_CLASS = "WanTransformer3DModel"
_RECORD = FamilyRecord(
    title="Wan 2.1 and 2.2",
    summary="Video models of 1.3B to 17B, the bases of FastWan, AnyFlow, Helios, Self-Forcing, Rolling Forcing, "
    "CausVid, Krea Realtime, LightX2V and most accelerator LoRAs. Each of Wan 2.2's two experts is a model of its own "
    "here: [two experts](../../how-to/two-experts.md).",
    sizes=(
        PublishedSize("Wan 2.1 T2V 1.3B", _CLASS, 825, 1_418_996_800),
        PublishedSize("Wan 2.1 T2V 14B, each expert of Wan 2.2 T2V A14B", _CLASS, 1095, 14_288_491_584),
        PublishedSize("Wan 2.1 I2V 14B", _CLASS, 1303, 16_394_878_784),
        PublishedSize("each expert of Wan 2.2 I2V A14B", _CLASS, 1095, 14_288_901_184),
        PublishedSize("Wan 2.2 TI2V 5B", _CLASS, 825, 4_999_787_712),
        PublishedSize("Wan 2.1 VACE 14B", "WanVACETransformer3DModel", 1331, 17_337_592_896),
        PublishedSize("Wan 2.2 Animate 14B", "WanAnimateTransformer3DModel", 1243, 15_177_050_484),
        PublishedSize("AnyFlow 14B", "AnyFlowTransformer3DModel", 1099, 14_316_026_944),
        PublishedSize("AnyFlow 1.3B", "AnyFlowTransformer3DModel", 829, 1_421_752_384),
        PublishedSize("AnyFlow FAR 14B, causal", "AnyFlowFARTransformer3DModel", 1101, 14_317_342_784),
        PublishedSize("Helios 14B", "HeliosTransformer3DModel", 1101, 14_312_427_584),
    ),
    trainers=(
        TrainerKey("ai-toolkit, diffusion-pipe, DiffSynth for ComfyUI",
                   "diffusion_model.blocks.0.self_attn.q.lora_A.weight", "alpha in a tensor, or none"),
        TrainerKey("lightx2v, CausVid and other accelerators", "diffusion_model.blocks.0.self_attn.q.lora_down.weight",
                   "`.alpha` in a tensor; `.diff`, `.diff_b` and `.diff_m` beside the factors"),
        TrainerKey("musubi-tuner", "lora_unet_blocks_0_self_attn_q.lora_down.weight", "`.alpha` in a tensor"),
        TrainerKey("diffusers", "transformer.blocks.0.attn1.to_q.lora_A.weight",
                   "alpha in the header, as PEFT's configuration"),
        TrainerKey("PEFT", "base_model.model.blocks.0.attn1.to_q.lora_A.weight", "alpha in `adapter_config.json`"),
        TrainerKey("DiffSynth, PEFT's models in memory", "blocks.0.self_attn.q.lora_A.default.weight", "no alpha"),
        TrainerKey("FastVideo", "blocks.0.to_q.lora_A.weight",
                   "`.lora_alpha` in a tensor; self-attention stands in the block itself"),
    ),
    sources=(
        "the models of github.com/Wan-Video (original)",
        "diffusers' WanTransformer3DModel, WanVACETransformer3DModel, WanAnimateTransformer3DModel, "
        "AnyFlowTransformer3DModel, AnyFlowFARTransformer3DModel, HeliosTransformer3DModel, and "
        "`convert_wan_transformer_to_diffusers` for the way to their names",
        "FastVideo's configs/models/dits/wanvideo.py for the names that it uses while it runs",
        "ComfyUI's comfy/ldm/wan/ for what diffusers has no class for: S2V, the control adapter and reference of Fun, "
        "HuMo",
    ),
    traps=(
        "`norm3` is `norm2` in diffusers, which counts norms in the order of use.",
        "FastWan has one more linear layer in each block, `to_gate_compress`. It has no counterpart in the base: no "
        "drift, and it stays as it is.",
        "AnyFlow has a second time embedding, `condition_embedder.delta_embedder`, Helios patches of the frames before "
        "(`patch_short`, `patch_mid`, `patch_long`) and its last modulation under another name. They have no "
        "counterpart in Wan: they are left alone and named. LoRAs that were trained on AnyFlow may hold factors for "
        "the first.",
        "Keys of the image branch (`k_img`, `v_img`, `img_emb`) have a place in Wan 2.1's image-to-video models only, "
        "not in Wan 2.2's.",
    ),
    unverified=(
        "the dtype of FastWan 14B: 52.5 GB fit neither fp32 nor bf16, with gates or without",
        "the dtype of Krea's file, CausVid's and Self-Forcing's, and of LightX2V's beyond what its documentation says",
        "which of `generator` and `generator_ema` `self_forcing_dmd.pt` holds",
        "how many shards Wan 2.2 A14B has (6 and 9 are both reported), and how TI2V 5B lies on the Hub",
        "AnyFlow's repositories as they are now: an older index names the classes of its own code "
        "(`WanAnyFlowPipeline`), by which clips are not made here; diffusers' documentation opens them by its own",
        "Helios' listing, and how many of its networks lie in each repository",
        "S2V, Fun and HuMo on published files: their names were read in ComfyUI's source",
    ),
)  # fmt: skip

WAN = Family(
    name="wan",
    namings=("original", "diffusers", "fastvideo"),
    layers=(
        *(tuple(f"blocks.{{}}.{name}" for name in names) for names in _IN_BLOCK),
        # the gate of video sparse attention (FastWan only): one spelling
        ("blocks.{}.to_gate_compress", "blocks.{}.to_gate_compress", "blocks.{}.to_gate_compress"),
        ("patch_embedding", "patch_embedding", "patch_embedding.proj"),
        (
            "text_embedding.0",
            "condition_embedder.text_embedder.linear_1",
            "condition_embedder.text_embedder.fc_in",
        ),
        (
            "text_embedding.2",
            "condition_embedder.text_embedder.linear_2",
            "condition_embedder.text_embedder.fc_out",
        ),
        (
            "time_embedding.0",
            "condition_embedder.time_embedder.linear_1",
            "condition_embedder.time_embedder.mlp.fc_in",
        ),
        (
            "time_embedding.2",
            "condition_embedder.time_embedder.linear_2",
            "condition_embedder.time_embedder.mlp.fc_out",
        ),
        ("time_projection.1", "condition_embedder.time_proj", "condition_embedder.time_modulation.linear"),
        ("head.head", "proj_out", "proj_out"),
        # image-to-video of Wan 2.1 only
        ("img_emb.proj.0", "condition_embedder.image_embedder.norm1", "condition_embedder.image_embedder.norm1"),
        (
            "img_emb.proj.1",
            "condition_embedder.image_embedder.ff.net.0.proj",
            "condition_embedder.image_embedder.ff.fc_in",
        ),
        (
            "img_emb.proj.3",
            "condition_embedder.image_embedder.ff.net.2",
            "condition_embedder.image_embedder.ff.fc_out",
        ),
        ("img_emb.proj.4", "condition_embedder.image_embedder.norm2", "condition_embedder.image_embedder.norm2"),
        *_VACE,
        *_ANIMATE,
        *_S2V,
        *_FUN,
        *_HUMO,
        *_FLOW_MAPS,
    ),
    parameters=(
        ("blocks.{}.modulation", "blocks.{}.scale_shift_table", "blocks.{}.scale_shift_table"),
        ("head.modulation", "scale_shift_table", "scale_shift_table"),
        (
            "img_emb.emb_pos",
            "condition_embedder.image_embedder.pos_embed",
            "condition_embedder.image_embedder.pos_embed",
        ),
        ("vace_blocks.{}.modulation", "vace_blocks.{}.scale_shift_table", None),
        ("face_encoder.padding_tokens", "face_encoder.padding_tokens", None),
        ("motion_encoder.dec.direction.weight", "motion_encoder.motion_synthesis_weight", None),
        # of Helios, in the place of head.modulation
        ("norm_out.scale_shift_table", "norm_out.scale_shift_table", None),
    ),
    written={"comfy": "original", "diffusers": "diffusers", "peft": "diffusers", "kohya": "original"},
    probe=".self_attn.q",
    sizes={
        (1536, 30): "Wan 2.1 1.3B",
        (5120, 40): "Wan 2.1 14B or one expert of Wan 2.2 A14B",
        (3072, 30): "Wan 2.2 TI2V 5B",
        (1536, 45): "Wan 2.1 VACE 1.3B",
        (5120, 48): "Wan 2.1 VACE 14B",
    },
    together={
        f"{_FUSER}.linear1_{letter}": RowSlice(f"{_FUSER}.linear1_kv", part, 2) for part, letter in enumerate("kv")
    },
    fused=tuple(("diffusers", *pair) for block in ("blocks.{}", "vace_blocks.{}") for pair in _fused(block)),
    kernels=(
        *((name, _PATCH) for name in ("patch_embedding", "vace_patch_embedding", "pose_patch_embedding")),
        ("cond_encoder", _PATCH),
        ("far_patch_embedding", (1, 4, 4)),
        ("patch_short", _PATCH),
        ("patch_mid", (2, 4, 4)),
        ("patch_long", (4, 8, 8)),
        ("frame_packer.proj", _PATCH),
        ("frame_packer.proj_2x", (2, 4, 4)),
        ("frame_packer.proj_4x", (4, 8, 8)),
        ("ref_conv", (2, 2)),
        ("control_adapter.conv", (2, 2)),
        ("conv1_local.conv", _3),
        ("conv1_global.conv", _3),
        ("conv2.conv", _3),
        ("conv3.conv", _3),
        ("convs.0.0", (1, 1)),
        ("convs.8", (4, 4)),
        ("skip.1", (1, 1)),
        ("conv1.0", _3X3),
        ("conv2.1", _3X3),
        ("conv1", _3X3),
        ("conv2", _3X3),
    ),
    record=_RECORD,
)
