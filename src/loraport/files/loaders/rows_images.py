"""The loaders of LoRAs of image models: Krea 2, Qwen-Image, Z-Image."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import (
    Findings,
    component_unless_converted,
    krea2_component,
    krea2_original,
    qwen_converted,
    z_image_component,
    z_image_converted,
)
from loraport.files.loaders.facts import Facts, Spelling
from loraport.files.loaders.rows import (
    COMFYUI,
    DIFFUSERS,
    DOTTED_PAIR,
    MIXED_RANKS,
    OF_DIFFUSERS,
    comfyui,
    musubi_tuner,
    spelled_alike,
)
from loraport.files.loaders.rules import DEFAULT_ADAPTER, Loader
from loraport.files.loaders.whole_or_nothing import mmgp
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR, PEFT_PREFIX

_WAN2GP = "github.com/deepbeepmeep/Wan2GP, {} (8681e9f); its library mmgp, offload.py (04b8d1f)"


def _behind(naming: str, *prefixes: str) -> tuple[Spelling, ...]:
    return tuple((prefix, naming) for prefix in prefixes)


_DOTTED = ("diffusion_model.", "transformer.", "")
_OF_MMGP = frozenset({PEFT_PAIR, KOHYA_PAIR, DEFAULT_ADAPTER, DOTTED_PAIR})
_BY_MMGP = frozenset({"LoRA", "LoKr", "DoRA"})
_ENDINGS_OF_MMGP = (*DEFAULT_ADAPTER, *DOTTED_PAIR, ".lokr_w1", ".lokr_w2")
"""LoKr with both factors whole: one in parts has other endings, and its file is refused."""
_KREA_2_PIPELINE = f"{DIFFUSERS}, Krea2Pipeline.load_lora_weights, run on tiny models"
_KREA_2_WAN2GP = frozenset(_behind("original", *_DOTTED, "lora_unet_") + _behind("diffusers", *_DOTTED, "lora_unet_"))

_KREA_2: tuple[Loader, ...] = (
    comfyui(
        f"{COMFYUI}; comfy/utils.py, krea2_to_diffusers (09708ea); comfy/lora_convert.py (2bffe2f)",
        spelled_alike(
            "krea2",
            *_behind("original", "diffusion_model.", "lora_unet_"),
            *_behind("diffusers", *_DOTTED, "lycoris_"),
            *_behind("diffusers, fused", *_DOTTED, "lycoris_"),
        ),
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
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora_krea2.py (30c658c)",
        spelled_alike("krea2", ("lora_unet_", "original")),
    ),
    Loader(
        "Wan2GP",
        _WAN2GP.format("models/krea2/krea2_mmdit.py"),
        {"krea2": _KREA_2_WAN2GP},
        "comfy",
        pairs=_OF_MMGP,
        kinds=_BY_MMGP,
        extras=frozenset({".diff_b"}),
        convolutions=False,
        converter=mmgp(_KREA_2_WAN2GP, more_endings=_ENDINGS_OF_MMGP),
    ),
)  # fmt: skip

_QWEN_PIPELINE = f"{DIFFUSERS}, QwenImagePipeline.load_lora_weights, run on tiny models; mixed ranks: its issue 14409"
_QWEN_WAN2GP = frozenset(_behind("diffusers", *_DOTTED, "lora_unet_"))
_FULL_DIFFERENCES = frozenset({".diff", ".diff_b", ".diff_m"})


def _qwen_of_mmgp(facts: Facts) -> Findings:
    """Judge Wan2GP on Qwen-Image: without prefix it looks at the first key, and passes over all that is not as that."""
    refused, left = mmgp(_QWEN_WAN2GP, "transformer_blocks.", _ENDINGS_OF_MMGP)(facts)
    if not facts.prefix and facts.names[:1] and facts.names[0].startswith("transformer_blocks"):
        others = [key for key in facts.names if not key.startswith("transformer_blocks")]
        left += [f"{len(others)} keys are left out, such as {others[0]}"] if others else []
    return refused, left


_QWEN_IMAGE: tuple[Loader, ...] = (
    comfyui(
        COMFYUI,
        spelled_alike("qwen-image", *_behind("diffusers", *_DOTTED, "lora_unet_", "lycoris_")),
    ),
    Loader(
        "diffusers",
        _QWEN_PIPELINE,
        spelled_alike("qwen-image", ("transformer.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA", "DoRA of PEFT"}),
        converter=component_unless_converted,
        strict=True,
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
    ),
    Loader(
        "diffusers",
        _QWEN_PIPELINE,
        spelled_alike("qwen-image", *_behind("diffusers", "diffusion_model.", "lora_unet_", "")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DEFAULT_ADAPTER}),
        kinds=frozenset({"LoRA", "DoRA"}),
        converter=qwen_converted,
        strict=True,
        header=True,
        mixed_ranks=MIXED_RANKS,
    ),
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora_qwen_image.py (30c658c)",
        spelled_alike("qwen-image", ("lora_unet_", "diffusers")),
    ),
    Loader(
        "LightX2V",
        "github.com/ModelTC/LightX2V, lightx2v/utils/lora_loader.py (0d6b494), models/runners/qwen_image/ (f8aee98)",
        spelled_alike("qwen-image", *_behind("diffusers", "diffusion_model.", "model.", "unet.", "")),
        "comfy",
        extras=_FULL_DIFFERENCES,
        convolutions=False,
    ),
    Loader(
        "Wan2GP",
        _WAN2GP.format("models/qwen/transformer_qwenimage.py"),
        {"qwen-image": _QWEN_WAN2GP},
        "comfy",
        pairs=_OF_MMGP,
        kinds=_BY_MMGP,
        extras=frozenset({".diff_b"}),
        convolutions=False,
        converter=_qwen_of_mmgp,
    ),
)  # fmt: skip

_QWEN_IMAGE_21: tuple[Loader, ...] = (
    comfyui(
        COMFYUI,
        spelled_alike(
            "qwen-image-2.1",
            *_behind("diffusers", "transformer.", "", "lycoris_"),
            *_behind("comfy", "diffusion_model.", "lora_unet_"),
        ),
    ),
    Loader(
        "diffusers",
        f"{DIFFUSERS}, QwenImage21Pipeline.load_lora_weights, run on tiny models",
        spelled_alike("qwen-image-2.1", ("transformer.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA", "DoRA of PEFT"}),
        converter=component_unless_converted,
        strict=True,
        header=True,
        extras=frozenset({".lora_B.bias"}),
    ),
    Loader(
        "diffusers",
        f"{DIFFUSERS}, QwenImage21Pipeline.load_lora_weights, run on tiny models",
        spelled_alike("qwen-image-2.1", *_behind("diffusers", "diffusion_model.", "")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DEFAULT_ADAPTER}),
        kinds=frozenset({"LoRA", "DoRA"}),
        converter=qwen_converted,
        strict=True,
        header=True,
    ),
)  # fmt: skip

_Z_PIPELINE = f"{DIFFUSERS}, ZImagePipeline.load_lora_weights, run on tiny models; mixed ranks: its issue 14409"
_Z_WAN2GP = frozenset(_behind("diffusers", *_DOTTED))

_Z_IMAGE: tuple[Loader, ...] = (
    comfyui(
        f"{COMFYUI}; comfy/utils.py, z_image_to_diffusers (09708ea)",
        spelled_alike(
            "z-image",
            *_behind("diffusers", *_DOTTED, "lycoris_"),
            *_behind("comfy", "diffusion_model.", "lora_unet_"),
        ),
    ),
    Loader(
        "diffusers",
        _Z_PIPELINE,
        spelled_alike("z-image", ("transformer.", "diffusers")),
        "diffusers",
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "LoKr", "DoRA", "DoRA of PEFT"}),
        converter=z_image_component,
        strict=True,
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
    ),
    Loader(
        "diffusers",
        _Z_PIPELINE,
        spelled_alike("z-image", *_behind("diffusers", "diffusion_model.", "lora_unet_", "")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DEFAULT_ADAPTER, DOTTED_PAIR}),
        kinds=frozenset({"LoRA", "LoKr", "DoRA"}),
        converter=z_image_converted,
        strict=True,
        header=True,
        mixed_ranks=MIXED_RANKS,
    ),
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora_zimage.py (30c658c)",
        spelled_alike("z-image", ("lora_unet_", "diffusers")),
    ),
    Loader(
        "LightX2V",
        "github.com/ModelTC/LightX2V, lightx2v/utils/lora_loader.py (0d6b494), models/runners/z_image/ (f8aee98)",
        spelled_alike("z-image", *_behind("diffusers", "diffusion_model.", "model.", "unet.", "")),
        "comfy",
        extras=_FULL_DIFFERENCES,
        convolutions=False,
    ),
    Loader(
        "Wan2GP",
        _WAN2GP.format("models/z_image/z_image_transformer2d.py"),
        {"z-image": _Z_WAN2GP},
        "comfy",
        pairs=_OF_MMGP,
        kinds=_BY_MMGP,
        extras=frozenset({".diff_b"}),
        convolutions=False,
        converter=mmgp(_Z_WAN2GP, more_endings=_ENDINGS_OF_MMGP),
    ),
)  # fmt: skip

IMAGE_LOADERS: tuple[Loader, ...] = (*_KREA_2, *_QWEN_IMAGE, *_QWEN_IMAGE_21, *_Z_IMAGE)
