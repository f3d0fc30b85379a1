"""The loaders of LoRAs of HunyuanVideo-1.5 and HunyuanVideo."""

from __future__ import annotations

from loraport.files.loaders.diffusers_converters import (
    component_keys,
    hunyuan_original,
)
from loraport.files.loaders.rows import (
    COMFYUI,
    DIFFUSERS,
    MIXED_RANKS,
    OF_DIFFUSERS,
    comfyui,
    musubi_tuner,
    spelled_alike,
)
from loraport.files.loaders.rules import Loader
from loraport.files.names.dialects import PEFT_PAIR

HUNYUAN_15_LOADERS: tuple[Loader, ...] = (
    comfyui(
        f"{COMFYUI}; HunyuanVideo15 is a HunyuanVideo there, comfy/model_base.py (094c74c)",
        spelled_alike("hunyuanvideo-1.5", ("diffusion_model.", "comfy"), ("lora_unet_", "comfy"),
            ("diffusion_model.", "diffusion-pipe"), ("transformer.", "diffusion-pipe")),
    ),
    Loader(
        "diffusers",
        f"{DIFFUSERS}, HunyuanVideo15Transformer3DModel.load_lora_adapter, run on a tiny model",
        spelled_alike("hunyuanvideo-1.5", ("transformer.", "diffusers")),
        "diffusers",
        strict=True,
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        alphas=frozenset(),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks=MIXED_RANKS,
        more=("by pipe.transformer.load_lora_adapter: its pipelines have no load_lora_weights (its issue 14420)",),
    ),
    Loader(
        "generate.py",
        "github.com/Tencent-Hunyuan/HunyuanVideo-1.5, generate.py and requirements.txt (60783e7)",
        spelled_alike("hunyuanvideo-1.5", ("", "original")),
        "tencent",
        strict=True,
        pairs=OF_DIFFUSERS,
        kinds=frozenset({"LoRA", "DoRA of PEFT"}),
        alphas=frozenset(),
        header=True,
        extras=frozenset({".lora_B.bias"}),
        mixed_ranks="it asks for diffusers 0.35, which scales layers of different ranks wrongly",
        more=("from a folder, as pytorch_lora_weights.safetensors",),
    ),
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora_hv_1_5.py (30c658c)",
        spelled_alike("hunyuanvideo-1.5", ("lora_unet_", "original")),
    ),
    Loader(
        "FastVideo",
        "github.com/hao-ai-lab/FastVideo, pipelines/lora_pipeline.py, configs/models/dits/hunyuanvideo15.py (2f3d407)",
        spelled_alike("hunyuanvideo-1.5", ("", "fastvideo"), ("diffusion_model.", "fastvideo")),
        "",
        pairs=frozenset({PEFT_PAIR}),
        alphas=frozenset({".lora_alpha"}),
        inside=("transformer_blocks.", "image_embedder.", "norm_out.", "proj_out"),
        convolutions=False,
    ),
)  # fmt: skip

HUNYUAN_LOADERS: tuple[Loader, ...] = (
    comfyui(
        f"{COMFYUI}, model_lora_keys_unet for HunyuanVideo",
        spelled_alike("hunyuanvideo", ("diffusion_model.", "comfy"), ("lora_unet_", "comfy"),
            ("transformer.", "diffusion-pipe"), ("diffusion_model.", "diffusion-pipe")),
    ),
    Loader(
        "diffusers",
        f"{DIFFUSERS}, HunyuanVideoPipeline.load_lora_weights, run on tiny models",
        spelled_alike("hunyuanvideo", ("transformer.", "diffusers")),
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
        f"{DIFFUSERS}, HunyuanVideoPipeline.load_lora_weights, run on tiny models",
        spelled_alike("hunyuanvideo", *((prefix, "original") for prefix in ("transformer.", "diffusion_model.", ""))),
        "diffusers",
        pairs=frozenset({PEFT_PAIR}),
        header=True,
        mixed_ranks=MIXED_RANKS,
        strict=True,
        converter=hunyuan_original,
    ),
    musubi_tuner(
        "github.com/kohya-ss/musubi-tuner, utils/lora_utils.py, networks/lora.py (30c658c)",
        spelled_alike("hunyuanvideo", ("lora_unet_", "original")),
    ),
)  # fmt: skip
