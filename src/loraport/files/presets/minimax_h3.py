"""MiniMax-H3, its two partitions, pruned files and FastH3, as published models; Turbo LoRAs as accelerators."""

from __future__ import annotations

from loraport.files.presets.preset import AcceleratorPreset, Preset

_FULL, _COMFY = "MiniMaxAI/MiniMax-H3", "Comfy-Org/MiniMax-H3"
_PRUNED = (
    "a table over time in place of the time embedder, to which LoRAs of the full model are carried over; scaled fp8, "
    "below whose rounding a drift counts as none"
)


def _h3(
    name: str,
    where: str,
    base: str | None = None,
    notes: str = "",
    unverified: str = "",
    *,
    gigabytes: float | None = None,
) -> Preset:
    repo, _, inside = where.partition(":")
    return Preset(f"minimax-h3-{name}", "minimax-h3", repo, inside, base, notes, unverified, gigabytes=gigabytes)


MINIMAX_H3_MODELS: tuple[Preset, ...] = (
    _h3("fl2va", f"{_FULL}:transformer", gigabytes=66.3,
        notes="text, first and last frame; bf16, with fp32 at the ends",
        unverified="the listing, and whether its names are diffusers' or MiniMax's own"),
    _h3("ref2va", f"{_FULL}:transformer_ref", notes="references; the names of fl2va, other weights", gigabytes=66.3,
        unverified="the listing, and whether its names are diffusers' or MiniMax's own"),
    *(_h3(f"{kind}-comfy", f"{_COMFY}:diffusion_models/minimax_h3_{kind}_bf16.safetensors", gigabytes=66.3,
          notes="one file, original names, q, k and v stacked", unverified="the commit of the listing")
      for kind in ("fl2va", "ref2va")),
    *(_h3(f"{kind}-pruned", f"{_COMFY}:diffusion_models/minimax_h3_{kind}_pruned_fp8_scaled.safetensors", gigabytes=21,
          notes=_PRUNED, unverified="the commit of the listing, the layout of its scales")
      for kind in ("fl2va", "ref2va")),
    _h3("fasth3-pruned", "FastVideo/FastVideo-FastH3-Comfy:fastvideo_fasth3_8step_v2_pruned_bf16.safetensors",
        "minimax-h3-fl2va", "eight steps; pruned; its gates of sparse attention, which the base lacks, stay",
        "the folder of the file in the repository, and its size"),
)  # fmt: skip

_PROFILES = "Wan2GP's profiles/minimax_h3"


def _turbo(name: str, file: str, strength: float, steps: int, notes: str = "") -> AcceleratorPreset:
    return AcceleratorPreset(
        f"minimax-h3-turbo-{name}", "minimax-h3", ("minimax-h3-fl2va", "minimax-h3-fl2va-comfy"),
        ((f"DeepBeepMeep/MiniMax-H3:loras/minimax_h3_{file}.safetensors", strength),), steps, 1.0, notes,
        "the file itself: how its keys are spelled, and its alpha", _PROFILES,
    )  # fmt: skip


MINIMAX_H3_ACCELERATORS: tuple[AcceleratorPreset, ...] = (
    _turbo("lightx2v-4", "lightx2v_fl2v_turbo_4step_alpha128_v1.0_768p_bf16", 1.0, 4, "768p, shift 6"),
    _turbo("lightx2v-8", "lightx2v_fl2v_turbo_8step_alpha8_v1.0_bf16", 1.0, 8, "shift 12"),
    _turbo("larryvrh-v4", "larryvrh_v4_step600_ema", 1.0, 4),
    _turbo("joyfox-4", "joyfox_fl2va_4step_lora", 1.0, 4, "made for the pruned model"),
)
"""Mirrored in one repository by Wan2GP's maker."""
