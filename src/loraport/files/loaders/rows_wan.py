"""The loaders of Wan's LoRAs."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import (
    component_keys_of_wan,
    wan_flattened,
    wan_original,
)
from loraport.files.loaders.facts import Spelling
from loraport.files.loaders.rows import (
    COMFYUI,
    DIFFUSERS,
    DOTTED_PAIR,
    DOWN_UP,
    MIXED_RANKS,
    OF_DIFFUSERS,
    comfyui,
    musubi_tuner,
    spelled_alike,
)
from loraport.files.loaders.rules import Loader
from loraport.files.loaders.whole_or_nothing import SPELLINGS, mmgp
from loraport.files.names.dialects import ADDITIONS, KOHYA_PAIR, PARAMETER_DIFF, PEFT_PAIR

_CASA: tuple[Spelling, ...] = tuple(
    (prefix, "original") for prefix in ("diffusion_model.", "generator.", "model.", "module.", "")
)

_FASTVIDEO = ("original", "diffusers", "fastvideo")

_WAN_PIPELINE = f"{DIFFUSERS}, WanPipeline.load_lora_weights, run on tiny models; mixed ranks: its issue 14409"

WAN_LOADERS: tuple[Loader, ...] = (
    comfyui(
        COMFYUI,
        spelled_alike("wan", ("diffusion_model.", "original"), ("lora_unet_", "original")),
    ),
    Loader(
        "diffusers",
        _WAN_PIPELINE,
        spelled_alike("wan", ("transformer.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        converter=component_keys_of_wan,
        strict=True,
        header=True,
        extras=frozenset({".diff_b", ".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
    ),
    Loader(
        "diffusers",
        _WAN_PIPELINE,
        spelled_alike("wan", ("diffusion_model.", "original")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DOTTED_PAIR}),
        header=True,
        extras=frozenset({*ADDITIONS, PARAMETER_DIFF}),  # the converter tells which of them it takes
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=wan_original,
    ),
    Loader(
        "diffusers",
        _WAN_PIPELINE,
        spelled_alike("wan", ("lora_unet_", "original")),
        "diffusers",
        pairs=DOWN_UP,
        header=True,
        mixed_ranks=MIXED_RANKS,
        complete_kohya=True,
        strict=True,
        converter=wan_flattened,
    ),
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, src/musubi_tuner/utils/lora_utils.py (0bcd20e)",
        spelled_alike("wan", ("lora_unet_", "original")),
    ),
    Loader(
        "Wan2GP",
        "github.com/deepbeepmeep/Wan2GP, models/wan/modules/model.py; its library mmgp, offload.py",
        {"wan": SPELLINGS},
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        kinds=frozenset({"LoRA", "DoRA"}),
        extras=frozenset({".diff_b"}),
        convolutions=False,
        converter=mmgp(SPELLINGS, "blocks."),
        remark="one key of an unknown layer or ending and it refuses the file",
    ),
    Loader(
        "LightX2V",
        "github.com/ModelTC/LightX2V, lightx2v/utils/lora_loader.py (0d6b494)",
        spelled_alike("wan", *((prefix, "original") for prefix in ("diffusion_model.", "model.", "unet.", ""))),
        "comfy",
        extras=frozenset({".diff", ".diff_b", ".diff_m"}),
        convolutions=False,
        more=("its dynamic mode reads lora_down and lora_up under diffusion_model.blocks only",),
    ),
    Loader(
        "FastVideo",
        "github.com/hao-ai-lab/FastVideo, fastvideo/pipelines/lora_pipeline.py (008ac86), models/loader/lora_patch.py",
        spelled_alike("wan", *((prefix, name) for prefix in ("diffusion_model.", "") for name in _FASTVIDEO)),
        "comfy",
        pairs=frozenset({PEFT_PAIR}),
        alphas=frozenset({".lora_alpha"}),
        inside=("blocks.",),
        convolutions=False,
        more=("versions from mid-2026 on also read lora_down, lora_up, .alpha and full differences",),
    ),
    Loader(
        "Krea",
        "github.com/Noahwangyuchen/CASA, Krea/utils/lora.py (45d058d)",
        spelled_alike("wan", ("generator.model.", "original"), *_CASA),
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        alphas=frozenset({".alpha", ".lora_alpha"}),
        convolutions=False,
    ),
    Loader(
        "Rolling Forcing",
        "github.com/Noahwangyuchen/CASA, RollingForcing/utils/lora.py (45d058d)",
        spelled_alike("wan", *_CASA),
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        alphas=frozenset({".alpha", ".lora_alpha"}),
        convolutions=False,
    ),
)  # fmt: skip
