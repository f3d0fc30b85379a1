"""The loaders of LoRAs of LTX-2, LTX-2.3 and LTX-2.5."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import component_keys, ltx2_original
from loraport.files.loaders.rows import (
    COMFYUI,
    DIFFUSERS,
    MIXED_RANKS,
    OF_DIFFUSERS,
    comfyui,
    spelled_alike,
)
from loraport.files.loaders.rules import Loader
from loraport.files.names.dialects import PEFT_PAIR

_LTX_PIPELINE = f"{DIFFUSERS}, LTX2Pipeline.load_lora_weights, run on tiny models"

LTX_2_LOADERS: tuple[Loader, ...] = (
    comfyui(
        f"{COMFYUI}, model_lora_keys_unet for LTXV and LTXAV",
        spelled_alike("ltx-2", *((prefix, "original") for prefix in ("diffusion_model.", "lora_unet_", ""))),
    ),
    Loader(
        "diffusers",
        _LTX_PIPELINE,
        spelled_alike("ltx-2", ("transformer.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=component_keys,
    ),
    Loader(
        "diffusers",
        _LTX_PIPELINE,
        spelled_alike("ltx-2", ("diffusion_model.", "original"), ("diffusion_model.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        header=True,
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=ltx2_original,
    ),
    Loader(
        "ltx-pipelines",
        "github.com/Lightricks/LTX-2, packages/ltx-core/src/ltx_core/loader/fuse_loras.py (22ed086), sd_ops.py",
        spelled_alike("ltx-2", ("diffusion_model.", "original"), ("", "original")),
        "comfy",
        pairs=frozenset({PEFT_PAIR}),
        alphas=frozenset(),
        convolutions=False,
    ),
    Loader(
        "LightX2V",
        "github.com/ModelTC/LightX2V, lightx2v/utils/lora_loader.py (0d6b494), its LTX-2 runner",
        spelled_alike("ltx-2", *((prefix, "original") for prefix in ("diffusion_model.", "model.", "unet.", ""))),
        "comfy",
        extras=frozenset({".diff", ".diff_b", ".diff_m"}),
        convolutions=False,
    ),
)
