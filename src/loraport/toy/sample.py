"""Sampling clips: the base in many small steps with guidance, the student in its own few.

Noise level t runs from 1 (noise) to 0 (clip), x_t = (1 - t) clean + t noise; the velocity is (x_t - clean) / t.
"""

from itertools import pairwise

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from loraport.toy.clips import embed, embed_nothing, from_latents
from loraport.toy.model import predict_clean

SHIFT = 3.0  # how far the noise levels are pushed towards noise, in training and in sampling
BASE_STEPS, GUIDANCE = 10, 2.0
STUDENT_LEVELS = (1.0,)  # the noise levels at which the student looks: once, at pure noise


def shifted(uniform: Tensor) -> Tensor:
    """Noise levels t = s u / (1 + (s - 1) u) from levels u in [0, 1]."""
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def _guided(model: WanTransformer3DModel, noisy: Tensor, level: Tensor, prompts: Tensor, guidance: float) -> Tensor:
    count = len(noisy)
    text = torch.cat([embed(prompts), embed_nothing(count)])
    both = predict_clean(model, noisy.repeat(2, 1, 1, 1, 1), level.repeat(2), text)
    asked, unasked = both[:count], both[count:]
    return unasked + guidance * (asked - unasked)


@torch.no_grad()
def sample_base(
    model: WanTransformer3DModel,
    prompts: Tensor,
    noise: Tensor,
    *,
    steps: int = BASE_STEPS,
    guidance: float = GUIDANCE,
) -> Tensor:
    """Latents by `steps` Euler steps with classifier-free guidance."""
    levels = shifted(torch.linspace(1, 0, steps + 1))
    latents = noise
    for now, then in pairwise(levels):
        clean = _guided(model, latents, now.expand(len(noise)), prompts, guidance)
        latents = clean + (then / now) * (latents - clean)
    return latents


def run_student(model: WanTransformer3DModel, prompts: Tensor, noise: Tensor) -> list[Tensor]:
    """The student's prediction at each of its levels; it returns to a level with the noise it started from."""
    predictions: list[Tensor] = []
    for level in STUDENT_LEVELS:
        noisy = noise if not predictions else (1 - level) * predictions[-1].detach() + level * noise
        predictions.append(predict_clean(model, noisy, torch.full((len(noise),), level), embed(prompts)))
    return predictions


@torch.no_grad()
def sample_student(model: WanTransformer3DModel, prompts: Tensor, noise: Tensor) -> Tensor:
    """Latents in as many evaluations as the student has levels, no guidance: it is distilled in."""
    return run_student(model, prompts, noise)[-1]


def as_frames(latents: Tensor) -> Tensor:
    """Latents as clips one can look at: uint8 [n, FRAMES, SIZE, SIZE, 3]."""
    clips = (from_latents(latents).clamp(-1, 1) + 1) * 127.5
    return clips.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
