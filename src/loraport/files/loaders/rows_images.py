"""The loaders of LoRAs of image models: Krea 2."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import krea2_component, krea2_original
from loraport.files.loaders.facts import Spelling
from loraport.files.loaders.rows import (
    COMFYUI,
    COMFYUI_EXTRAS,
    DIFFUSERS,
    DOWN_UP,
    MIXED_RANKS,
    OF_DIFFUSERS,
    spelled_alike,
)
from loraport.files.loaders.rules import Loader
from loraport.files.loaders.whole_or_nothing import mmgp
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR, PEFT_PREFIX

_ADAPTERS = frozenset({"LoRA", "LoHa", "LoKr", "DoRA"})
_WAN2GP = "github.com/deepbeepmeep/Wan2GP, {} (8681e9f); its library mmgp, offload.py (04b8d1f)"


def _behind(naming: str, *prefixes: str) -> tuple[Spelling, ...]:
    return tuple((prefix, naming) for prefix in prefixes)


_DOTTED = ("diffusion_model.", "transformer.", "")
_KREA_2_PIPELINE = f"{DIFFUSERS}, Krea2Pipeline.load_lora_weights, run on tiny models"
_KREA_2_WAN2GP = frozenset(_behind("original", *_DOTTED, "lora_unet_") + _behind("diffusers", *_DOTTED, "lora_unet_"))

_KREA_2: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        f"{COMFYUI}; comfy/utils.py, krea2_to_diffusers (09708ea); comfy/lora_convert.py (2bffe2f)",
        spelled_alike(
            "krea2",
            *_behind("original", "diffusion_model.", "lora_unet_"),
            *_behind("diffusers", *_DOTTED, "lycoris_"),
            *_behind("diffusers, fused", *_DOTTED, "lycoris_"),
        ),
        "comfy",
        kinds=_ADAPTERS,
        extras=COMFYUI_EXTRAS,
    ),
    Loader(
        "diffusers",
        _KREA_2_PIPELINE,
        spelled_alike("krea2", ("transformer.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA", "DoRA of PEFT"}),
        converter=krea2_component,
        strict=True,
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
    ),
    Loader(
        "diffusers",
        _KREA_2_PIPELINE,
        spelled_alike("krea2", *_behind("original", "diffusion_model.", PEFT_PREFIX)),
        "diffusers",
        pairs=frozenset({PEFT_PAIR}),
        kinds=frozenset({"LoRA", "DoRA"}),
        alphas=frozenset(),
        converter=krea2_original,
        strict=True,
        header=True,
        mixed_ranks=MIXED_RANKS,
    ),
    Loader(
        "musubi-tuner",
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora_krea2.py (30c658c)",
        spelled_alike("krea2", ("lora_unet_", "original")),
        "kohya",
        pairs=DOWN_UP,
        needs_alpha=True,
        kinds=frozenset({"LoRA", "LoHa", "LoKr"}),
    ),
    Loader(
        "Wan2GP",
        _WAN2GP.format("models/krea2/krea2_mmdit.py"),
        {"krea2": _KREA_2_WAN2GP},
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        kinds=frozenset({"LoRA", "DoRA"}),
        extras=frozenset({".diff_b"}),
        convolutions=False,
        converter=mmgp(_KREA_2_WAN2GP),
    ),
)  # fmt: skip

IMAGE_LOADERS: tuple[Loader, ...] = (*_KREA_2,)
