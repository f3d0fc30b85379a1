"""Image models beside the U-Nets, and what is distilled from them, as published: Krea 2, Qwen-Image, Z-Image."""

from __future__ import annotations

from loraport.files.presets.preset import AcceleratorPreset, Preset

_COMFY_KREA = "Comfy-Org/Krea-2"
_KREA = "original names; the same repository has a folder with diffusers' names; may ask for its licence to be accepted"
_KREA_COMFY = "the same weights in one open file; fp8_scaled beside it is read too, int8_convrot and nvfp4 are not"

_QWEN, _LIGHTNING = "qwen-image", "lightx2v/Qwen-Image-Lightning"
_SHARDS = "shards with index; diffusers' names, which everybody has"
_FUSED = "one file, bf16 by its size; q, k and v in one matrix"
_FP8 = "Lightning merged into the weights, in scaled fp8: how much of its drift is rounding, inspect and transfer say"

IMAGE_MODELS: tuple[Preset, ...] = (
    Preset("krea2-raw", "krea2", "krea/Krea-2-Raw", "raw.safetensors", notes=_KREA, unverified="the dtype"),
    Preset("krea2-turbo", "krea2", "krea/Krea-2-Turbo", "turbo.safetensors", "krea2-raw",
           f"8 steps without guidance; {_KREA}", "the dtype"),
    Preset("krea2-raw-comfy", "krea2", _COMFY_KREA, "diffusion_models/krea2_raw_bf16.safetensors", notes=_KREA_COMFY,
           unverified="that all of it is bf16: the size is 0.6 GB more", gigabytes=26.3),
    Preset("krea2-turbo-comfy", "krea2", _COMFY_KREA, "diffusion_models/krea2_turbo_bf16.safetensors",
           "krea2-raw-comfy", f"8 steps without guidance; {_KREA_COMFY}", "the dtype and the size"),
    *(Preset(f"qwen-image{version.lower()}", _QWEN, f"Qwen/Qwen-Image{version}", "transformer", notes=_SHARDS,
             unverified="the listing and the dtype") for version in ("", "-2512", "-Edit-2511")),
    Preset("qwen-image-distill", _QWEN, "DiffSynth-Studio/Qwen-Image-Distill-Full", "", "qwen-image",
           "15 steps without guidance, all weights trained", "that the Hub has it as ModelScope does, and the dtype"),
    *(Preset(f"qwen-image-2512-lightning-{steps}", _QWEN, "lightx2v/Qwen-Image-2512-Lightning",
             f"qwen_image_2512_fp8_e4m3fn_scaled_{steps}steps_v1.0.safetensors", "qwen-image-2512",
             f"{steps} steps without guidance; {_FP8}", "the layout of its scales")
      for steps in (4, 8)),
    Preset("qwen-image-2.1", "qwen-image-2.1", "Qwen/Qwen-Image-2.1", "transformer",
           notes="another model than Qwen-Image", unverified="the listing and the dtype"),
    Preset("z-image", "z-image", "Tongyi-MAI/Z-Image", "transformer", notes=_SHARDS,
           unverified="the listing and the dtype"),
    Preset("z-image-turbo", "z-image", "Tongyi-MAI/Z-Image-Turbo", "transformer", "z-image",
           f"8 steps without guidance; {_SHARDS}", "the listing and the dtype"),
    Preset("z-image-comfy", "z-image", "Comfy-Org/z_image", "split_files/diffusion_models/z_image_bf16.safetensors",
           notes=_FUSED, gigabytes=12.3),
    Preset("z-image-turbo-comfy", "z-image", "Comfy-Org/z_image_turbo",
           "split_files/diffusion_models/z_image_turbo_bf16.safetensors", "z-image-comfy",
           f"8 steps without guidance; {_FUSED}", gigabytes=12.3),
)  # fmt: skip

_WITHOUT_GUIDANCE = "without guidance, with a fixed shift of 3; names without prefix, alpha in tensors"


def _lightning(name: str, steps: int, file: str, model: str, repo: str = _LIGHTNING) -> AcceleratorPreset:
    return AcceleratorPreset(
        name, _QWEN, (model,), ((f"{repo}:{file}.safetensors", 1.0),), steps, 1.0, _WITHOUT_GUIDANCE,
        "the file itself, and the bf16 one beside it", "LightX2V's configurations and examples, the repository's users",
        "lightning" if steps == 4 else f"lightning-{steps}",
    )  # fmt: skip


IMAGE_ACCELERATORS: tuple[AcceleratorPreset, ...] = (
    *(_lightning(f"qwen-image-lightning-{steps}", steps, f"Qwen-Image-Lightning-{steps}steps-V2.0", "qwen-image")
      for steps in (4, 8)),
    *(_lightning(f"qwen-image-2512-lightning-lora-{steps}", steps, f"Qwen-Image-2512-Lightning-{steps}steps-V1.0-fp32",
                 "qwen-image-2512", "lightx2v/Qwen-Image-2512-Lightning") for steps in (4, 8)),
    *(_lightning(f"qwen-image-edit-2511-lightning-{steps}", steps,
                 f"Qwen-Image-Edit-2511-Lightning-{steps}steps-V1.0-fp32", "qwen-image-edit-2511",
                 "lightx2v/Qwen-Image-Edit-2511-Lightning") for steps in (4, 8)),
)  # fmt: skip
