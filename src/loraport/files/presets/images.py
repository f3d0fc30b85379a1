"""Image models beside the U-Nets, and what is distilled from them, as published: Krea 2."""

from __future__ import annotations

from loraport.files.presets.preset import Preset

_COMFY_KREA = "Comfy-Org/Krea-2"
_KREA = "original names; the same repository has a folder with diffusers' names; may ask for its licence to be accepted"
_KREA_COMFY = "the same weights in one open file; fp8_scaled beside it is read too, int8_convrot and nvfp4 are not"

IMAGE_MODELS: tuple[Preset, ...] = (
    Preset("krea2-raw", "krea2", "krea/Krea-2-Raw", "raw.safetensors", notes=_KREA, unverified="the dtype"),
    Preset("krea2-turbo", "krea2", "krea/Krea-2-Turbo", "turbo.safetensors", "krea2-raw",
           f"8 steps without guidance; {_KREA}", "the dtype"),
    Preset("krea2-raw-comfy", "krea2", _COMFY_KREA, "diffusion_models/krea2_raw_bf16.safetensors", notes=_KREA_COMFY,
           unverified="that all of it is bf16: the size is 0.6 GB more", gigabytes=26.3),
    Preset("krea2-turbo-comfy", "krea2", _COMFY_KREA, "diffusion_models/krea2_turbo_bf16.safetensors",
           "krea2-raw-comfy", f"8 steps without guidance; {_KREA_COMFY}", "the dtype and the size"),
)  # fmt: skip
