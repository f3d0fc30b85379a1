"""LTX-2, LTX-2.3 and LTX-2.5 as published, and the LoRAs that make a dev model a distilled one."""

from __future__ import annotations

from loraport.files.presets.preset import AcceleratorPreset, Preset

_FILE = "one file with the autoencoders and text connectors, bf16; the network is behind `model.diffusion_model.`"
_SPLIT = "the transformer alone, bf16"
_GATED = "the listing: the repository asks for a login"

LTX_MODELS: tuple[Preset, ...] = (
    Preset("ltx-2-dev", "ltx-2", "Lightricks/LTX-2", "ltx-2-19b-dev.safetensors", notes=_FILE,
           unverified="the listing; its distilled LoRA was seen there"),
    Preset("ltx-2-distilled", "ltx-2", "Lightricks/LTX-2", "ltx-2-19b-distilled.safetensors", "ltx-2-dev",
           f"eight steps, no guidance; {_FILE}", "the listing; its distilled LoRA was seen there"),
    Preset("ltx-2.3-dev", "ltx-2", "Lightricks/LTX-2.3", "ltx-2.3-22b-dev.safetensors", notes=_FILE, gigabytes=46.1),
    Preset("ltx-2.3-distilled", "ltx-2", "Lightricks/LTX-2.3", "ltx-2.3-22b-distilled.safetensors", "ltx-2.3-dev",
           f"eight steps, no guidance; {_FILE}", gigabytes=46.1),
    Preset("ltx-2.3-distilled-1.1", "ltx-2", "Lightricks/LTX-2.3", "ltx-2.3-22b-distilled-1.1.safetensors",
           "ltx-2.3-dev", f"eight steps, no guidance; {_FILE}", gigabytes=46.1, seen="76730e6"),
    Preset("ltx-2.5-dev", "ltx-2", "Lightricks/LTX-2.5",
           "diffusion_models/ltx-2.5-22b-dev-transformer-bf16.safetensors", notes=_SPLIT, unverified=_GATED,
           gigabytes=42),
    Preset("ltx-2.5-distilled", "ltx-2", "Lightricks/LTX-2.5",
           "diffusion_models/ltx-2.5-22b-distilled-transformer-bf16.safetensors", "ltx-2.5-dev",
           f"eight steps, no guidance; {_SPLIT}; the nvfp4 and int8_convrot files beside it are not read", _GATED,
           gigabytes=42),
)  # fmt: skip

_LORA = "not beside the distilled model, which it makes of dev"
_KEYS = "the spelling of its keys, and whether it holds text_embedding_projection"


def _lora(version: str, repo: str, file: str, seen: str | None = None) -> AcceleratorPreset:
    return AcceleratorPreset(
        f"{version}-distilled-lora",
        "ltx-2",
        (f"{version}-dev",),
        ((f"{repo}:{file}", 1.0),),
        8,
        1.0,
        _LORA,
        _KEYS,
        seen,
    )


LTX_ACCELERATORS: tuple[AcceleratorPreset, ...] = (
    _lora("ltx-2", "Lightricks/LTX-2", "ltx-2-19b-distilled-lora-384.safetensors", "33ced56"),
    _lora("ltx-2.3", "Lightricks/LTX-2.3", "ltx-2.3-22b-distilled-lora-384-1.1.safetensors", "76730e6"),
    _lora("ltx-2.5", "Lightricks/LTX-2.5", "loras/ltx-2.5-22b-distilled-lora-450-bf16.safetensors"),
)
