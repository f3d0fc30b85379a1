"""The tiny Wan: its shape, where its trained weights lie, and how LoRA files are attached to it.

The network is diffusers' own `WanTransformer3DModel`, so names, shapes and LoRA loading are those of the real models.
It predicts the clean latents (not the velocity): a token holds more numbers than the network is wide, and noise,
unlike clips, does not compress. The velocity follows from it, see `loraport_lab.family.sample`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import WanTransformer3DModel
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from torch import Tensor

from loraport_lab.family.adapters import attach, fuse
from loraport_lab.family.clips import FRAMES, SIZE, SPACE_FOLD, TEXT_WIDTH, TIME_FOLD
from loraport_lab.family.family import BASE, FAMILY, Student, find_student, student_path

CHANNELS = 3 * TIME_FOLD * SPACE_FOLD**2
LATENT_SHAPE = (CHANNELS, FRAMES // TIME_FOLD, SIZE // SPACE_FOLD, SIZE // SPACE_FOLD)
TOKENS_PER_FRAME = LATENT_SHAPE[2] * LATENT_SHAPE[3] // 4  # patches of 2 × 2
CLOCK = 1000.0  # the network counts noise levels in thousandths, as Wan does
HEAD = 32  # numbers of an attention head
CONFIG = {  # what all sizes of the tiny Wan share
    "patch_size": (1, 2, 2),
    "attention_head_dim": HEAD,
    "in_channels": CHANNELS,
    "out_channels": CHANNELS,
    "text_dim": TEXT_WIDTH,
    "freq_dim": 64,
    "cross_attn_norm": True,
    "qk_norm": "rms_norm_across_heads",
    "rope_max_seq_len": 32,
}


@dataclass(frozen=True)
class Size:
    """How large a network is: its width (a multiple of HEAD) and its blocks; the feed-forward is thrice as wide."""

    width: int = 256
    blocks: int = 4


FAMILY_SIZE = Size()


def new_model(seed: int, size: Size = FAMILY_SIZE) -> WanTransformer3DModel:
    """Return an untrained network; the global random state is left as it was found."""
    width = {"num_attention_heads": size.width // HEAD, "ffn_dim": 3 * size.width, "num_layers": size.blocks}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WanTransformer3DModel(**CONFIG, **width)


def open_base(family: Path = FAMILY) -> WanTransformer3DModel:
    """Open the trained base in float32, through diffusers' own loader, ready for sampling."""
    return _open(family / BASE.name)


def open_student(name: str, family: Path = FAMILY) -> WanTransformer3DModel:
    """Open a trained student in float32, ready for sampling; an accelerator is fused into the base."""
    student, path = find_student(name), student_path(name, family)
    model = fuse(attach(open_base(family), path)) if student.accelerator else _open(path)
    return prepared(model, student)


def prepared(model: WanTransformer3DModel, student: Student) -> WanTransformer3DModel:
    """Give the model the attention that the student's sampling needs; no weight changes."""
    if student.sampler == "streaming":
        for block in model.blocks:
            block.attn1.set_processor(CausalAttention())
    return model


class CausalAttention(WanAttnProcessor):  # type: ignore[misc]  # diffusers has no types
    """Self-attention in which a frame sees itself and the frames before it, as in streaming video models."""

    def __call__(self, attn: Any, hidden_states: Tensor, *others: Any, **named: Any) -> Tensor:
        """Wan's own attention with a mask; the frames' tokens come one frame after the other."""
        encoder_hidden_states, _, rotary_emb = others
        frame = torch.arange(hidden_states.shape[1], device=hidden_states.device) // TOKENS_PER_FRAME
        mask = frame[:, None] >= frame[None, :]
        return super().__call__(attn, hidden_states, encoder_hidden_states, mask, rotary_emb, **named)


def _open(folder: Path) -> WanTransformer3DModel:
    model = WanTransformer3DModel.from_pretrained(folder, subfolder="transformer", dtype=torch.float32)
    return model.requires_grad_(False).eval()


def predict_clean(model: WanTransformer3DModel, noisy: Tensor, level: Tensor, text: Tensor) -> Tensor:
    """Return the clean latents that the network predicts from `noisy` = (1 - level) clean + level noise.

    `level` in [0, 1] is one for each clip [n], or one for each frame of each clip [n, frames]. The network
    has to be where `noisy` is; the rest is sent there.
    """
    if level.ndim == 2:
        level = level.repeat_interleave(TOKENS_PER_FRAME, dim=1)
    times, words = (part.to(noisy.device) for part in (level * CLOCK, text))
    clean: Tensor = model(hidden_states=noisy, timestep=times, encoder_hidden_states=words, return_dict=False)[0]
    return clean.float()  # under autocast the network's last layer leaves bfloat16
