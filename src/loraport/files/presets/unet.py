"""The U-Nets of Stable Diffusion 1.5 and XL, and SSD-1B, as published models."""

from __future__ import annotations

from loraport.files.presets.preset import AcceleratorPreset, Preset

UNET_MODELS: tuple[Preset, ...] = (
    Preset("sd1.5", "sd1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "unet/diffusion_pytorch_model.safetensors",
           unverified="the listing: a mirror of a repository that was withdrawn"),
    Preset("sdxl", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "unet/diffusion_pytorch_model.safetensors",
           unverified="the listing and the dtype"),
    Preset("ssd-1b", "sdxl", "segmind/SSD-1B", "unet/diffusion_pytorch_model.safetensors", "sdxl",
           "34 transformer blocks where SDXL has 70: layers are paired by similarity; fp32",
           "the name of the file in unet/", seen="8a9257c"),
)  # fmt: skip

_UNSEEN = "the file itself was not opened: keys, ranks and alpha"
_HYPER_SD, _LISTED = "ByteDance/Hyper-SD", "the repository's listing, and its model card"


def _accelerator(
    name: str, kind: str, model: str, where: str, steps: int, notes: str, seen: str = _LISTED
) -> AcceleratorPreset:
    family = "sd1.5" if model == "sd1.5" else "sdxl"
    return AcceleratorPreset(name, family, (model,), ((where, 1.0),), steps, 1.0, notes, _UNSEEN, seen, kind)


UNET_ACCELERATORS: tuple[AcceleratorPreset, ...] = (
    _accelerator("dmd2-lora-sdxl", "dmd2", "sdxl", "tianweiy/DMD2:dmd2_sdxl_4step_lora_fp16.safetensors", 4,
                 "394 MB; its licence is CC BY-NC 4.0"),
    _accelerator("lightning-lora-sdxl", "lightning", "sdxl",
                 "ByteDance/SDXL-Lightning:sdxl_lightning_4step_lora.safetensors", 4,
                 "394 MB; 2 and 8 steps lie beside it. Its makers advise the checkpoint where the base is SDXL itself"),
    _accelerator("lcm-lora-sdxl", "lcm", "sdxl", "latent-consistency/lcm-lora-sdxl:pytorch_lora_weights.safetensors", 4,
                 "394 MB; 2 to 8 steps, guidance 1 to 2, with the LCM scheduler"),
    _accelerator("lcm-lora-ssd-1b", "lcm", "ssd-1b",
                 "latent-consistency/lcm-lora-ssd-1b:pytorch_lora_weights.safetensors", 4,
                 "2 to 8 steps, guidance 1 to 2, with the LCM scheduler", "the collection's page and a model card"),
    _accelerator("lcm-lora-sd1.5", "lcm", "sd1.5",
                 "latent-consistency/lcm-lora-sdv1-5:pytorch_lora_weights.safetensors", 4,
                 "135 MB; 2 to 8 steps, guidance 1 to 2, with the LCM scheduler"),
    _accelerator("hyper-sd-lora-sdxl", "hyper-sd", "sdxl", f"{_HYPER_SD}:Hyper-SDXL-8steps-lora.safetensors", 8,
                 "787 MB; 1, 2 and 4 steps and versions that keep guidance lie beside it"),
    _accelerator("hyper-sd-lora-sd1.5", "hyper-sd", "sd1.5", f"{_HYPER_SD}:Hyper-SD15-8steps-lora.safetensors", 8,
                 "269 MB; 1, 2 and 4 steps and versions that keep guidance lie beside it"),
)  # fmt: skip
