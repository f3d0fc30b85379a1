"""The U-Nets of Stable Diffusion 1.5 and XL, and SSD-1B, as published models."""

from __future__ import annotations

from loraport.files.presets.preset import Preset

UNET_MODELS: tuple[Preset, ...] = (
    Preset("sd1.5", "sd1.5", "stable-diffusion-v1-5/stable-diffusion-v1-5", "unet/diffusion_pytorch_model.safetensors",
           unverified="the listing: a mirror of a repository that was withdrawn"),
    Preset("sdxl", "sdxl", "stabilityai/stable-diffusion-xl-base-1.0", "unet/diffusion_pytorch_model.safetensors",
           unverified="the listing and the dtype"),
    Preset("ssd-1b", "sdxl", "segmind/SSD-1B", "unet/diffusion_pytorch_model.safetensors", "sdxl",
           "34 transformer blocks where SDXL has 70: layers are paired by similarity; fp32",
           "the name of the file in unet/", seen="8a9257c"),
)  # fmt: skip
