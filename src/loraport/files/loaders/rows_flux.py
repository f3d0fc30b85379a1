"""The loaders of LoRAs of FLUX.1 and FLUX.2."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import (
    component_keys,
    flux2_kohya,
    flux2_original,
    flux_kohya,
    flux_onetrainer,
    flux_own,
    flux_whole,
)
from loraport.files.loaders.rows import (
    COMFYUI,
    DIFFUSERS,
    DOWN_UP,
    MIXED_RANKS,
    OF_DIFFUSERS,
    comfyui,
    musubi_tuner,
    spelled_alike,
)
from loraport.files.loaders.rules import Loader
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR, PEFT_PREFIX, XLABS_PAIR

_FLUX_PIPELINE = f"{DIFFUSERS}, FluxPipeline.load_lora_weights, run on tiny models"
_IN_BLOCKS = ("transformer_blocks.", "single_transformer_blocks.")

FLUX_1_LOADERS: tuple[Loader, ...] = (
    comfyui(
        f"{COMFYUI}, model_lora_keys_unet for Flux; comfy/utils.py, flux_to_diffusers",
        spelled_alike("flux.1", ("diffusion_model.", "original"), ("lora_unet_", "original"),
            *((prefix, "diffusers") for prefix in ("transformer.", "lycoris_", "lora_transformer_", ""))),
    ),
    Loader(
        "diffusers",
        _FLUX_PIPELINE,
        spelled_alike("flux.1", ("transformer.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS | {KOHYA_PAIR},
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=flux_own,
    ),
    Loader(
        "diffusers",
        _FLUX_PIPELINE,
        spelled_alike("flux.1", ("lora_unet_", "original"), ("diffusion_model.", "original")),
        "diffusers",
        pairs=DOWN_UP,
        kinds=frozenset({"LoRA", "DoRA"}),
        mixed_ranks=MIXED_RANKS,
        strict=True,
        inside=_IN_BLOCKS,
        converter=flux_kohya,
        remark="of original names with lora_A and lora_B it loads nothing, and does not say so",
    ),
    Loader(
        "diffusers",
        _FLUX_PIPELINE,
        spelled_alike("flux.1", ("lora_transformer_", "diffusers")),
        "diffusers",
        pairs=DOWN_UP,
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=flux_onetrainer,
    ),
    Loader(
        "diffusers",
        _FLUX_PIPELINE,
        spelled_alike("flux.1", ("", "xlabs"), ("diffusion_model.", "xlabs")),
        "diffusers",
        pairs=frozenset({XLABS_PAIR}),
        alphas=frozenset(),
        mixed_ranks=MIXED_RANKS,
        strict=True,
    ),
    Loader(
        "diffusers",
        _FLUX_PIPELINE,
        spelled_alike("flux.1", (PEFT_PREFIX, "original")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR}),
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=flux_whole,
    ),
    Loader(
        "sd-scripts",
        "github.com/kohya-ss/sd-scripts, networks/lora_flux.py (0087a46)",
        spelled_alike("flux.1", ("lora_unet_", "original")),
        "kohya",
        strict=True,
        pairs=DOWN_UP,
        inside=_IN_BLOCKS,
    ),
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py (0bcd20e), networks/lora_flux.py (1b21831), for Kontext",
        spelled_alike("flux.1", ("lora_unet_", "original")),
    ),
)  # fmt: skip

_FLUX_2_PIPELINE = f"{DIFFUSERS}, Flux2KleinPipeline.load_lora_weights, run on tiny models"
_FLUX_2_COMFYUI = f"{COMFYUI}, model_lora_keys_unet for Flux; comfy/utils.py, flux_to_diffusers (09708ea)"

FLUX_2_LOADERS: tuple[Loader, ...] = (
    comfyui(
        _FLUX_2_COMFYUI,
        spelled_alike("flux.2", ("diffusion_model.", "original"), ("lora_unet_", "original")),
    ),
    comfyui(
        _FLUX_2_COMFYUI,
        spelled_alike("flux.2",
            *((prefix, "diffusers") for prefix in ("transformer.", "lycoris_", "lora_transformer_", ""))),
        inside=(*_IN_BLOCKS, "x_embedder", "context_embedder", "proj_out", "norm_out."),
    ),
    Loader(
        "diffusers",
        _FLUX_2_PIPELINE,
        spelled_alike("flux.2", ("transformer.", "diffusers")),
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
        _FLUX_2_PIPELINE,
        spelled_alike("flux.2", *((prefix, naming) for prefix in ("diffusion_model.", PEFT_PREFIX)
                                  for naming in ("original", "diffusers"))),
        "diffusers",
        pairs=frozenset({PEFT_PAIR}),
        header=True,
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=flux2_original,
        remark="LoKr files of ai-toolkit and SimpleTuner are read by converters of their own, which were not tried",
    ),
    Loader(
        "diffusers",
        _FLUX_2_PIPELINE,
        spelled_alike("flux.2", ("lora_unet_", "original")),
        "diffusers",
        pairs=DOWN_UP,
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=flux2_kohya,
    ),
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py (0bcd20e), networks/lora_flux_2.py (2a1eac8)",
        spelled_alike("flux.2", ("lora_unet_", "original")),
    ),
)  # fmt: skip
