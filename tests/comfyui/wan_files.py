"""A Wan that ComfyUI's own loader takes, as small as it allows, with a distilled variant, a LoRA and an accelerator.

ComfyUI tells a Wan by its names, its width (a multiple of 128, a head's) and its text encoder's width (4096).
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import tiny

BASE, FAST = "wan2.1_t2v_1.3B_bf16.safetensors", "fastwan2.1_t2v_1.3B_bf16.safetensors"
STYLE, ACCELERATOR = "style.safetensors", "causvid_t2v_1.3B_lora.safetensors"
"""The names that the example workflows have chosen."""
OTHERS = {"text_encoders": "umt5_xxl_fp8_e4m3fn_scaled.safetensors", "vae": "wan_2.1_vae.safetensors"}
"""Files that an example names and that are empty here: its sampling is not run with them."""
WIDTH, FEED_FORWARD, TEXT, FREQUENCIES, CHANNELS, BLOCKS = 128, 192, 4096, 256, 16, 2


def wan_state(seed: int = 0) -> dict[str, Tensor]:
    """Every parameter, in bf16."""
    shapes = {
        **tiny.tiny_shapes(BLOCKS, WIDTH, FEED_FORWARD),
        "patch_embedding.weight": (WIDTH, CHANNELS, 1, 2, 2),
        "text_embedding.0.weight": (WIDTH, TEXT),
        "time_embedding.0.weight": (WIDTH, FREQUENCIES),
        "head.head.weight": (4 * CHANNELS, WIDTH),
        "head.head.bias": (4 * CHANNELS,),
    }
    rng = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=rng) / max(shape[-1], 1) ** 0.5).bfloat16()
        for name, shape in shapes.items()
    }


def write_files(models: Path) -> None:
    """Write them into a folder such as `ComfyUI/models`, under the names that the example workflows use."""
    for folder in ("diffusion_models", "loras", *OTHERS):
        (models / folder).mkdir(parents=True, exist_ok=True)
    base = wan_state()
    save_file(base, models / "diffusion_models" / BASE)
    save_file(tiny.drifted(base), models / "diffusion_models" / FAST)
    for name, seed in ((STYLE, 2), (ACCELERATOR, 3)):
        tiny.write_lora(models / "loras" / name, tiny.lora_factors(base, seed))
    for folder, name in OTHERS.items():
        (models / folder / name).touch()
