"""The loaders of LoRAs of MiniMax-H3."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import component_keys, h3_original
from loraport.files.loaders.rows import COMFYUI, COMFYUI_EXTRAS, DIFFUSERS, OF_DIFFUSERS, spelled_alike
from loraport.files.loaders.rules import DEFAULT_ADAPTER, Loader
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR

_H3 = "minimax-h3"
_PIPELINE = f"{DIFFUSERS}, MiniMaxH3LoraLoaderMixin.load_lora_weights, run on tiny models"

MINIMAX_H3_LOADERS: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        f"{COMFYUI}, model_lora_keys_unet for MiniMaxH3",
        spelled_alike(_H3, *((prefix, "original") for prefix in ("diffusion_model.", "lora_unet_", ""))),
        "comfy",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=COMFYUI_EXTRAS,
    ),
    Loader(
        "diffusers",
        _PIPELINE,
        spelled_alike(_H3, ("transformer.", "diffusers"), ("transformer_ref.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        header=True,
        network_alpha=True,
        extras=frozenset({".lora_B.bias"}),
        strict=True,
        converter=component_keys,
    ),
    Loader(
        "diffusers",
        _PIPELINE,
        spelled_alike(_H3, *((prefix, "original") for prefix in ("diffusion_model.", "lora_unet_", "")),
            ("", "interleaved")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DEFAULT_ADAPTER}),
        header=True,
        network_alpha=True,
        strict=True,
        converter=h3_original,
    ),
)  # fmt: skip
