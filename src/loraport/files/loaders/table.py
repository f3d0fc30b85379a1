"""The table of loaders: what each does with keys, endings and scales, and where that can be read.

A row is what the loader's own code does, not what its page promises. A loader has several where it treats families or
spellings differently; the one that knows most of a file's layers counts, the first of equal ones.
`tests/contracts/` holds the same rules once more as small programs that merge a file as the loader would, and runs
diffusers and PEFT themselves.
"""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import (
    component_keys,
    component_keys_of_wan,
    hunyuan_original,
    unet_flattened,
    wan_flattened,
    wan_original,
)
from loraport.files.loaders.facts import Facts, Spelling
from loraport.files.loaders.rules import Loader, Verdict, verdict
from loraport.files.loaders.whole_or_nothing import SPELLINGS, of_mmgp
from loraport.files.names.dialects import ADDITIONS, KOHYA_PAIR, PARAMETER_DIFF, PEFT_PAIR, PEFT_PREFIX, Pair
from loraport.files.names.families import FAMILIES

DOTTED_PAIR: Pair = (".lora.down.weight", ".lora.up.weight")
PROCESSOR_PAIR: Pair = ("_lora.down.weight", "_lora.up.weight")
DOWN_UP = frozenset({KOHYA_PAIR})


def _of(families: str, *spellings: Spelling) -> dict[str, frozenset[Spelling]]:
    """Return the same spellings for every one of the families."""
    return {family: frozenset(spellings) for family in families.split()}


_CASA: tuple[Spelling, ...] = tuple(
    (prefix, "original") for prefix in ("diffusion_model.", "generator.", "model.", "module.", "")
)

_FASTVIDEO = ("original", "diffusers", "fastvideo")

_COMFYUI = "github.com/Comfy-Org/ComfyUI, comfy/lora.py (17358c8), comfy/weight_adapter/ (0323d87)"
_COMFYUI_EXTRAS = frozenset({".diff", ".diff_b", ".w_norm", ".b_norm", PARAMETER_DIFF})
_DIFFUSERS = "huggingface/diffusers 0.42"
_WAN_PIPELINE = f"{_DIFFUSERS}, WanPipeline.load_lora_weights, run on tiny models; mixed ranks: its issue 14409"
_UNET_PIPELINES = (
    f"{_DIFFUSERS}, lora_state_dict and load_lora_into_unet of both Stable Diffusion pipelines, run likewise"
)
_OF_DIFFUSERS = frozenset({PEFT_PAIR, DOTTED_PAIR})
_MIXED = "before version 0.40 it scales layers of different ranks wrongly"

_WAN: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        _COMFYUI,
        _of("wan", ("diffusion_model.", "original"), ("lora_unet_", "original")),
        "comfy",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=_COMFYUI_EXTRAS,
    ),
    Loader(
        "diffusers",
        _WAN_PIPELINE,
        _of("wan", ("transformer.", "diffusers")),
        "diffusers",
        pairs=_OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        converter=component_keys_of_wan,
        strict=True,
        header=True,
        extras=frozenset({".diff_b", ".lora_B.bias"}),
        mixed_ranks=_MIXED,
    ),
    Loader(
        "diffusers",
        _WAN_PIPELINE,
        _of("wan", ("diffusion_model.", "original")),
        "diffusers",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR, DOTTED_PAIR}),
        header=True,
        extras=frozenset({*ADDITIONS, PARAMETER_DIFF}),  # the converter tells which of them it takes
        mixed_ranks=_MIXED,
        strict=True,
        converter=wan_original,
    ),
    Loader(
        "diffusers",
        _WAN_PIPELINE,
        _of("wan", ("lora_unet_", "original")),
        "diffusers",
        pairs=DOWN_UP,
        header=True,
        mixed_ranks=_MIXED,
        complete_kohya=True,
        strict=True,
        converter=wan_flattened,
    ),
    Loader(
        "musubi-tuner",
        "github.com/kohya-ss/musubi-tuner, src/musubi_tuner/utils/lora_utils.py (0bcd20e)",
        _of("wan", ("lora_unet_", "original")),
        "kohya",
        pairs=DOWN_UP,
        needs_alpha=True,
        kinds=frozenset({"LoRA", "LoHa", "LoKr"}),
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
        converter=of_mmgp,
    ),
    Loader(
        "LightX2V",
        "github.com/ModelTC/LightX2V, lightx2v/utils/lora_loader.py (0d6b494)",
        _of("wan", *((prefix, "original") for prefix in ("diffusion_model.", "model.", "unet.", ""))),
        "comfy",
        extras=frozenset({".diff", ".diff_b", ".diff_m"}),
        convolutions=False,
        more=("its dynamic mode reads lora_down and lora_up under diffusion_model.blocks only",),
    ),
    Loader(
        "FastVideo",
        "github.com/hao-ai-lab/FastVideo, fastvideo/pipelines/lora_pipeline.py (008ac86), models/loader/lora_patch.py",
        _of("wan", *((prefix, name) for prefix in ("diffusion_model.", "") for name in _FASTVIDEO)),
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
        _of("wan", ("generator.model.", "original"), *_CASA),
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        alphas=frozenset({".alpha", ".lora_alpha"}),
        convolutions=False,
    ),
    Loader(
        "Rolling Forcing",
        "github.com/Noahwangyuchen/CASA, RollingForcing/utils/lora.py (45d058d)",
        _of("wan", *_CASA),
        "comfy",
        pairs=frozenset({PEFT_PAIR, KOHYA_PAIR}),
        alphas=frozenset({".alpha", ".lora_alpha"}),
        convolutions=False,
    ),
)  # fmt: skip

_HUNYUAN: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        f"{_COMFYUI}; HunyuanVideo15 is a HunyuanVideo there, comfy/model_base.py (094c74c)",
        _of("hunyuanvideo-1.5", ("diffusion_model.", "comfy"), ("lora_unet_", "comfy"),
            ("diffusion_model.", "diffusion-pipe"), ("transformer.", "diffusion-pipe")),
        "comfy",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=_COMFYUI_EXTRAS,
    ),
    Loader(
        "diffusers",
        f"{_DIFFUSERS}, HunyuanVideo15Transformer3DModel.load_lora_adapter, run on a tiny model",
        _of("hunyuanvideo-1.5", ("transformer.", "diffusers")),
        "diffusers",
        strict=True,
        pairs=_OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        alphas=frozenset(),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=_MIXED,
        more=("by pipe.transformer.load_lora_adapter: its pipelines have no load_lora_weights (its issue 14420)",),
    ),
    Loader(
        "generate.py",
        "github.com/Tencent-Hunyuan/HunyuanVideo-1.5, generate.py and requirements.txt (60783e7)",
        _of("hunyuanvideo-1.5", ("", "original")),
        "tencent",
        strict=True,
        pairs=_OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        alphas=frozenset(),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks="it asks for diffusers 0.35, which scales layers of different ranks wrongly",
        more=("from a folder, as pytorch_lora_weights.safetensors",),
    ),
    Loader(
        "musubi-tuner",
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora_hv_1_5.py (30c658c)",
        _of("hunyuanvideo-1.5", ("lora_unet_", "original")),
        "kohya",
        pairs=DOWN_UP,
        needs_alpha=True,
        kinds=frozenset({"LoRA", "LoHa", "LoKr"}),
    ),
    Loader(
        "FastVideo",
        "github.com/hao-ai-lab/FastVideo, pipelines/lora_pipeline.py, configs/models/dits/hunyuanvideo15.py (2f3d407)",
        _of("hunyuanvideo-1.5", ("", "fastvideo"), ("diffusion_model.", "fastvideo")),
        "",
        pairs=frozenset({PEFT_PAIR}),
        alphas=frozenset({".lora_alpha"}),
        inside=("transformer_blocks.", "image_embedder.", "norm_out.", "proj_out"),
        convolutions=False,
    ),
)  # fmt: skip

_HUNYUAN_1: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        f"{_COMFYUI}, model_lora_keys_unet for HunyuanVideo",
        _of("hunyuanvideo", ("diffusion_model.", "comfy"), ("lora_unet_", "comfy"), ("transformer.", "diffusion-pipe"),
            ("diffusion_model.", "diffusion-pipe")),
        "comfy",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=_COMFYUI_EXTRAS,
    ),
    Loader(
        "diffusers",
        f"{_DIFFUSERS}, HunyuanVideoPipeline.load_lora_weights, run on tiny models",
        _of("hunyuanvideo", ("transformer.", "diffusers")),
        "diffusers",
        pairs=_OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=_MIXED,
        strict=True,
        converter=component_keys,
    ),
    Loader(
        "diffusers",
        f"{_DIFFUSERS}, HunyuanVideoPipeline.load_lora_weights, run on tiny models",
        _of("hunyuanvideo", *((prefix, "original") for prefix in ("transformer.", "diffusion_model.", ""))),
        "diffusers",
        pairs=frozenset({PEFT_PAIR}),
        header=True,
        mixed_ranks=_MIXED,
        strict=True,
        converter=hunyuan_original,
    ),
    Loader(
        "musubi-tuner",
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora.py (30c658c)",
        _of("hunyuanvideo", ("lora_unet_", "original")),
        "kohya",
        pairs=DOWN_UP,
        needs_alpha=True,
        kinds=frozenset({"LoRA", "LoHa", "LoKr"}),
    ),
)  # fmt: skip

_BLOCKS = ("down_blocks.", "mid_block.", "up_blocks.")

_UNETS: tuple[Loader, ...] = (
    Loader(
        "ComfyUI",
        _COMFYUI,
        _of("sd1.5 sdxl", ("lora_unet_", "original"), ("lora_unet_", "diffusers"), ("lycoris_", "diffusers"),
            ("diffusion_model.", "original")),
        "kohya",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=_COMFYUI_EXTRAS,
    ),
    Loader(
        "ComfyUI",
        _COMFYUI,
        _of("sd1.5 sdxl", ("unet.", "diffusers"), ("", "diffusers")),
        "kohya",
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA"}),
        extras=_COMFYUI_EXTRAS,
        processors=True,
    ),
    Loader(
        "diffusers",
        _UNET_PIPELINES,
        _of("sd1.5 sdxl", ("unet.", "diffusers")),
        "diffusers",
        pairs=frozenset({*_OF_DIFFUSERS, PROCESSOR_PAIR}),
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        converter=component_keys,
        strict=True,
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=_MIXED,
    ),
    Loader(
        "diffusers",
        _UNET_PIPELINES,
        _of("sdxl", ("lora_unet_", "original")),
        "diffusers",
        pairs=DOWN_UP,
        kinds=frozenset({"LoRA", "DoRA"}),
        strict=True,
        converter=unet_flattened,
    ),
    Loader(
        "diffusers",
        _UNET_PIPELINES,
        _of("sd1.5 sdxl", ("lora_unet_", "diffusers")),
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
        _of("sd1.5", ("lora_unet_", "diffusers"))
        | _of("sdxl", ("lora_unet_", "original"), ("lora_unet_", "diffusers")),
        "kohya",
        strict=True,
        pairs=DOWN_UP,
        inside=_BLOCKS,
    ),
)  # fmt: skip

LOADERS: tuple[Loader, ...] = (
    *_WAN,
    *_HUNYUAN,
    *_HUNYUAN_1,
    *_UNETS,
    Loader(
        "PEFT",
        "huggingface/peft 0.21, PeftModel.from_pretrained, run on tiny models",
        _of(" ".join(FAMILIES), (PEFT_PREFIX, "any")),
        "peft",
        strict=True,
        pairs=frozenset({PEFT_PAIR}),
        kinds=frozenset({"LoRA", "LoHa", "LoKr", "DoRA of PEFT", "PiSSA", "OLoRA"}),
        alphas=frozenset(),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        folder=True,
    ),
)


def verdicts(facts: Facts) -> tuple[Verdict, ...]:
    """Return the verdict of every loader that knows the family."""
    rows: dict[str, list[Loader]] = {}
    for loader in LOADERS:
        if facts.family in loader.spellings:
            rows.setdefault(loader.name, []).append(loader)
    return tuple(verdict(min(some, key=lambda row: len(row.unknown(facts))), facts) for some in rows.values())
