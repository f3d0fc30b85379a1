"""The loaders of LoRAs of Stable Diffusion 1.5 and XL, and SSD-1B."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import (
    component_keys,
    unet_flattened,
)
from loraport.files.loaders.rows import (
    COMFYUI,
    COMFYUI_EXTRAS,
    DIFFUSERS,
    DOWN_UP,
    MIXED_RANKS,
    OF_DIFFUSERS,
    PROCESSOR_PAIR,
    spelled_alike,
)
from loraport.files.loaders.rules import Loader

_UNET_PIPELINES = (
    f"{DIFFUSERS}, lora_state_dict and load_lora_into_unet of both Stable Diffusion pipelines, run likewise"
)
_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")

UNET_LOADERS: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        COMFYUI,
        spelled_alike("sd1.5 sdxl", ("lora_unet_", "original"), ("lora_unet_", "diffusers"), ("lycoris_", "diffusers"),
            ("diffusion_model.", "original")),
        "kohya",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=COMFYUI_EXTRAS,
    ),
    Loader(
        "ComfyUI",
        COMFYUI,
        spelled_alike("sd1.5 sdxl", ("unet.", "diffusers"), ("", "diffusers")),
        "kohya",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=COMFYUI_EXTRAS,
        processors=True,
    ),
    Loader(
        "diffusers",
        _UNET_PIPELINES,
        spelled_alike("sd1.5 sdxl", ("unet.", "diffusers")),
        "diffusers",
        pairs=frozenset({*OF_DIFFUSERS, PROCESSOR_PAIR}),
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        converter=component_keys,
        strict=True,
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
    ),
    Loader(
        "diffusers",
        _UNET_PIPELINES,
        spelled_alike("sdxl", ("lora_unet_", "original")),
        "diffusers",
        pairs=DOWN_UP,
        kinds=frozenset({"LoRA", "DoRA"}),
        strict=True,
        converter=unet_flattened,
    ),
    Loader(
        "diffusers",
        _UNET_PIPELINES,
        spelled_alike("sd1.5 sdxl", ("lora_unet_", "diffusers")),
        "diffusers",
        pairs=DOWN_UP,
        kinds=frozenset({"LoRA", "DoRA"}),
        strict=True,
        converter=unet_flattened,
        inside=(*_BLOCKS, "conv_", "time_embedding."),
    ),
    Loader(
        "sd-scripts",
        "github.com/kohya-ss/sd-scripts, networks/lora.py (48d368f)",
        spelled_alike("sd1.5", ("lora_unet_", "diffusers"))
        | spelled_alike("sdxl", ("lora_unet_", "original"), ("lora_unet_", "diffusers")),
        "kohya",
        strict=True,
        pairs=DOWN_UP,
        inside=_BLOCKS,
    ),
)  # fmt: skip
