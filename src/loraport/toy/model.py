"""The tiny Wan: its shape, where its trained weights lie, and how LoRA files are attached to it.

The network is diffusers' own `WanTransformer3DModel`, so names, shapes and LoRA loading are those of the real models.
It predicts the clean latents (not the velocity): a token holds more numbers than the network is wide, and noise,
unlike clips, does not compress. The velocity follows from it, see `loraport.toy.sample`.
"""

from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Generator, Tensor

from loraport.toy.clips import FRAMES, SIZE, SPACE_FOLD, TEXT_WIDTH, TIME_FOLD
from loraport.toy.family import FAMILY

CHANNELS = 3 * TIME_FOLD * SPACE_FOLD**2
LATENT_SHAPE = (CHANNELS, FRAMES // TIME_FOLD, SIZE // SPACE_FOLD, SIZE // SPACE_FOLD)
CLOCK = 1000.0  # the network counts noise levels in thousandths, as Wan does
CONFIG = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 4,
    "attention_head_dim": 32,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 64,
    "ffn_dim": 512,
    "num_layers": 4,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


def new_model(seed: int) -> WanTransformer3DModel:
    """An untrained network; the global random state is left as it was found."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**CONFIG)


def open_model(name: str, family: Path = FAMILY) -> WanTransformer3DModel:
    """The trained `base` or `student` in float32, through diffusers' own loader, ready for sampling."""
    model = WanTransformer3DModel.from_pretrained(family / name, subfolder="transformer", torch_dtype=torch.float32)
    return model.requires_grad_(False).eval()


def draw_noise(count: int, generator: Generator) -> Tensor:
    """Starting noise for `count` clips."""
    return torch.randn(count, *LATENT_SHAPE, generator=generator)


def predict_clean(model: WanTransformer3DModel, noisy: Tensor, level: Tensor, text: Tensor) -> Tensor:
    """The clean latents the network sees in `noisy` = (1 - level) clean + level noise, with level [n] in (0, 1]."""
    return model(hidden_states=noisy, timestep=level * CLOCK, encoder_hidden_states=text, return_dict=False)[0]
