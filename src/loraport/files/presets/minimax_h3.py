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

_TURBO = "lightx2v/Minimax-h3-Turbo:minimax_h3_{}.safetensors"
_MIRROR = "DeepBeepMeep/MiniMax-H3:loras/minimax_h3_{}.safetensors"
_SGLANG, _PROFILES = "pull request 35952 of sgl-project/sglang", "profiles/minimax_h3/ of deepbeepmeep/Wan2GP"
_HEADER = "rank 128, alpha {} in its header, which counts here as in diffusers; in ComfyUI it does not"


def _turbo(
    name: str, kind: str, of: str, files: dict[str, float], steps: int, notes: str, seen: str
) -> AcceleratorPreset:
    models = tuple(f"minimax-h3-{of}{form}" for form in ("", "-comfy"))
    return AcceleratorPreset(
        f"minimax-h3-{name}", "minimax-h3", models, tuple(files.items()), steps, 1.0, notes,
        "the file itself was not opened: keys, ranks and alpha", seen, kind,
    )  # fmt: skip


MINIMAX_H3_ACCELERATORS: tuple[AcceleratorPreset, ...] = (
    _turbo("turbo-4", "turbo", "fl2va", {_TURBO.format("fl2v_turbo_4step_v1.0_768p_bf16"): 1.0}, 4,
           f"768p, shift 6; {_HEADER.format(128)}", f"{_SGLANG}; {_PROFILES}"),
    _turbo("turbo-8", "turbo-8", "fl2va", {_TURBO.format("fl2v_turbo_8step_v1.0_bf16"): 1.0}, 8,
           f"shift 12; {_HEADER.format(8)}", f"{_SGLANG}; {_PROFILES}"),
    _turbo("turbo-4-v0.1", "turbo-v0.1", "fl2va", {_TURBO.format("fl2v_turbo_4step_v0.1"): 0.0625}, 4,
           "rank 128, trained with alpha 8, which stands nowhere in it: hence the strength",
           "pull request 7062 of vllm-project/vllm-omni"),
    _turbo("turbo-ref-4", "turbo", "ref2va", {_TURBO.format("ref2v_turbo_4step_v0.1_bf16"): 1.0}, 4,
           _HEADER.format(8), _SGLANG),
    _turbo("larryvrh-v4", "larryvrh", "fl2va", {_MIRROR.format("larryvrh_v4_step600_ema"): 1.0}, 4,
           "a mirror of larryvrh/MiniMax-H3-Turbo-Lora", _PROFILES),
    _turbo("joyfox-4", "joyfox", "fl2va", {_MIRROR.format("joyfox_fl2va_4step_lora"): 1.0}, 4,
           "a mirror of joyfox/MiniMax-H3-Turbo; made for the pruned model, so convert --target the full one first",
           _PROFILES),
)  # fmt: skip
