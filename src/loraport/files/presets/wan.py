"""Wan 2.1 and 2.2 and what is distilled from them, as published models."""

from __future__ import annotations

from loraport.files.presets.preset import Preset

_LIGHTX2V = "bf16, says LightX2V's documentation; the scaled fp8 file beside it is read too, the int8 one is not"
_ANYFLOW = "the listing and the dtype; its configuration was seen with the classes of its own repository"


def _wan(
    name: str,
    where: str,
    base: str | None = None,
    notes: str = "",
    unverified: str = "",
    *,
    seen: str | None = None,
    gigabytes: float | None = None,
    short: str = "",
) -> Preset:
    repo, _, inside = where.partition(":")
    return Preset(name, "wan", repo, inside, base, notes, unverified, seen=seen, gigabytes=gigabytes, short=short)


WAN_MODELS: tuple[Preset, ...] = (
    # Wan, as its makers publish it
    _wan("wan2.1-t2v-1.3b", "Wan-AI/Wan2.1-T2V-1.3B-Diffusers:transformer", notes="fp32, 2 shards", gigabytes=5.7),
    _wan("wan2.1-t2v-14b", "Wan-AI/Wan2.1-T2V-14B-Diffusers:transformer", notes="fp32, 12 shards", gigabytes=57),
    _wan("wan2.1-i2v-14b-480p", "Wan-AI/Wan2.1-I2V-14B-480P", notes="original names, shards with index",
         unverified="the dtype, and the number of shards (7 in the 720p repository)"),
    _wan("wan2.1-i2v-14b-720p", "Wan-AI/Wan2.1-I2V-14B-720P", notes="original names, 7 shards with index",
         unverified="the dtype"),
    *(_wan(f"wan2.2-{kind}-a14b-{noise}", f"Wan-AI/Wan2.2-{kind.upper()}-A14B:{noise}_noise_model",
           notes="fp32; one of two experts, each with a LoRA of its own",
           unverified="the number of shards (6 and 9 are both reported)")
      for kind in ("t2v", "i2v") for noise in ("high", "low")),
    _wan("wan2.2-ti2v-5b", "Wan-AI/Wan2.2-TI2V-5B", unverified="the layout of the repository and the dtype"),
    # FastWan
    _wan("fastwan2.1-t2v-1.3b", "FastVideo/FastWan2.1-T2V-1.3B-Diffusers:transformer", "wan2.1-t2v-1.3b",
         "one file: 16 bits, with the gates of sparse attention, which the base lacks and which stay",
         "that the 16 bits are bf16", seen="75640eb", gigabytes=2.98, short="fastwan"),
    _wan("fastwan2.1-t2v-14b", "FastVideo/FastWan2.1-T2V-14B-Diffusers:transformer", "wan2.1-t2v-14b",
         "two shards, with gates", "the dtype: the size fits neither fp32 nor bf16", seen="ab7d614", gigabytes=52.5),
    _wan("fastwan2.1-t2v-14b-480p", "FastVideo/FastWan2.1-T2V-14B-480P-Diffusers:transformer", "wan2.1-t2v-14b",
         "with gates", "the listing and the dtype"),
    _wan("fastwan2.2-ti2v-5b", "FastVideo/FastWan2.2-TI2V-5B-Diffusers:transformer", "wan2.2-ti2v-5b",
         "with gates", "the listing and the dtype"),
    _wan("fastwan2.2-ti2v-5b-fullattn", "FastVideo/FastWan2.2-TI2V-5B-FullAttn-Diffusers:transformer",
         "wan2.2-ti2v-5b", "without gates", "the files of the transformer and the dtype", seen="7b04595"),
    # AnyFlow: any number of steps, sampled by a pipeline of diffusers
    *(_wan(f"anyflow-t2v-{size}", f"nvidia/AnyFlow-Wan2.1-T2V-{size.upper()}-Diffusers:transformer",
           f"wan2.1-t2v-{size}", "any number of steps, four usually; a second time embedding, which the base lacks and "
           "which stays", _ANYFLOW, short="anyflow" if size == "1.3b" else "") for size in ("1.3b", "14b")),
    *(_wan(f"anyflow-far-{size}", f"nvidia/AnyFlow-FAR-Wan2.1-{size.upper()}-Diffusers:transformer",
           f"wan2.1-t2v-{size}", "causal; clips are not made here: merge, and run its own program", _ANYFLOW)
      for size in ("1.3b", "14b")),
    # Helios: long videos, 14B
    *(_wan(f"helios-{kind}", f"BestWishYsh/Helios-{kind.title()}:transformer", "wan2.1-t2v-14b", notes,
           "the listing and the dtype; which networks lie in the repository")
      for kind, notes in (
          ("base", "patches of history, which Wan lacks and which stay"),
          ("mid", "between base and distilled; for a LoRA of Helios itself: --source helios-base"),
          ("distilled", "few steps; for a LoRA of Helios itself: --source helios-base"),
      )),
    # causal models
    _wan("self-forcing", "gdhe17/Self-Forcing:checkpoints/self_forcing_dmd.pt", "wan2.1-t2v-1.3b",
         "generator_ema is taken where it is there; --target-part generator takes the other",
         "which of generator and generator_ema the file holds, and the dtype"),
    _wan("rolling-forcing", "TencentARC/RollingForcing:checkpoints/rolling_forcing_dmd.pt", "wan2.1-t2v-1.3b",
         "generator, generator_ema (taken) and critic, fp32 by the size; --target-part generator is the other",
         gigabytes=17),
    _wan("causvid", "tianweiy/CausVid:autoregressive_checkpoint/model.pt", "wan2.1-t2v-1.3b",
         "bidirectional_checkpoint1 and 2 lie beside it", "the dtype, and whether it holds a critic"),
    _wan("krea-realtime-14b", "krea/krea-realtime-video:krea-realtime-video-14b.safetensors", "wan2.1-t2v-14b",
         "original names behind `model.`", "the dtype", short="krea-realtime"),
    # LightX2V, four steps
    *(_wan(f"lightx2v-{name}", f"lightx2v/Wan2.1-Distill-Models:wan2.1_{file}_lightx2v_4step.safetensors",
           f"wan2.1-{name}", _LIGHTX2V, "the dtype")
      for name, file in (("t2v-14b", "t2v_14b"), ("i2v-14b-480p", "i2v_480p"), ("i2v-14b-720p", "i2v_720p"))),
    *(_wan(f"lightx2v-wan2.2-i2v-a14b-{noise}",
           f"lightx2v/Wan2.2-Distill-Models:wan2.2_i2v_A14b_{noise}_noise_lightx2v_4step.safetensors",
           f"wan2.2-i2v-a14b-{noise}", _LIGHTX2V, "the dtype") for noise in ("high", "low")),
)  # fmt: skip
