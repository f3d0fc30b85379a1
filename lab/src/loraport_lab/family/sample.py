"""Sampling clips: the base in many small steps with guidance, each student in its own few without.

Noise level t runs from 1 (noise) to 0 (clip), x_t = (1 - t) clean + t noise; the velocity is (x_t - clean) / t.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from diffusers import WanTransformer3DModel
from torch import Generator, Tensor

from loraport_lab.family.clips import embed, embed_nothing, from_latents
from loraport_lab.family.family import Student
from loraport_lab.family.model import LATENT_SHAPE, predict_clean

SHIFT = 3.0  # how far the noise levels are pushed towards noise, in training and in sampling
BASE_STEPS, GUIDANCE = 10, 2.0


def shifted(uniform: Tensor) -> Tensor:
    """Return noise levels t = s u / (1 + (s - 1) u) from levels u in [0, 1]."""
    return SHIFT * uniform / (1 + (SHIFT - 1) * uniform)


def base_levels(steps: int = BASE_STEPS) -> Tensor:
    """Return the noise levels of the base's steps, from 1 to 0: [steps + 1]."""
    return shifted(torch.linspace(1, 0, steps + 1))


def student_levels(student: Student) -> Tensor:
    """Return the noise levels at which the student evaluates its network, and the 0 where it ends: [steps + 1]."""
    return base_levels()[[*student.steps, BASE_STEPS]]


def draw_noise(count: int, generator: Generator, steps: int = 1) -> Tensor:
    """Noise [count, steps, …] for `count` clips: the first starts a clip, the others are for samplers that re-noise."""
    return torch.randn(count, steps, *LATENT_SHAPE, generator=generator)


def euler_step(latents: Tensor, clean: Tensor, now: Tensor, then: Tensor) -> Tensor:
    """Step from noise level `now` to `then`, along the line through `clean`."""
    return clean + (then / now) * (latents - clean)


def predict_guided(
    model: WanTransformer3DModel, noisy: Tensor, level: Tensor, prompts: Tensor, guidance: float = GUIDANCE
) -> Tensor:
    """Return the clean latents under classifier-free guidance; `level` [n]."""
    count = len(noisy)
    text = torch.cat([embed(prompts), embed_nothing(count)])
    both = predict_clean(model, noisy.repeat(2, 1, 1, 1, 1), level.repeat(2), text)
    asked, unasked = both[:count], both[count:]
    return unasked + guidance * (asked - unasked)


@torch.no_grad()
def trajectory(
    model: WanTransformer3DModel, prompts: Tensor, noise: Tensor, *, steps: int = BASE_STEPS, guidance: float = GUIDANCE
) -> Iterator[Tensor]:
    """Yield the starting noise and the states after each of `steps` Euler steps with classifier-free guidance."""
    latents = noise[:, 0]
    yield latents
    for now, then in pairwise(base_levels(steps)):
        clean = predict_guided(model, latents, now.expand(len(noise)), prompts, guidance)
        latents = euler_step(latents, clean, now, then)
        yield latents


def sample_base(
    model: WanTransformer3DModel, prompts: Tensor, noise: Tensor, *, steps: int = BASE_STEPS, guidance: float = GUIDANCE
) -> Tensor:
    """Return where the base's trajectory ends."""
    return list(trajectory(model, prompts, noise, steps=steps, guidance=guidance))[-1]


def run_euler(model: WanTransformer3DModel, prompts: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Take Euler steps without guidance, which is distilled in."""
    latents = noise[:, 0]
    for now, then in pairwise(levels):
        clean = predict_clean(model, latents, now.expand(len(noise)), embed(prompts))
        latents = euler_step(latents, clean, now, then)
    return latents


def run_renoise(model: WanTransformer3DModel, prompts: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Predict the clip, take it back to the next noise level with fresh noise, predict again."""
    latents = noise[:, 0]
    clean = latents
    for step, (now, then) in enumerate(pairwise(levels)):
        clean = predict_clean(model, latents, now.expand(len(noise)), embed(prompts))
        if then > 0:
            latents = (1 - then) * clean + then * noise[:, step + 1]
    return clean


def run_streaming(model: WanTransformer3DModel, prompts: Tensor, noise: Tensor, levels: Tensor) -> Tensor:
    """Sample frame after frame, each in Euler steps that see the finished frames before it and nothing after it."""
    done = noise[:, 0, :, :0]
    for frame in range(noise.shape[3]):
        latents = noise[:, 0, :, frame : frame + 1]
        for now, then in pairwise(levels):
            seen = torch.cat([done, latents], dim=2)
            level = torch.zeros(len(noise), frame + 1)
            level[:, frame] = now
            clean = predict_clean(model, seen, level, embed(prompts))[:, :, frame:]
            latents = euler_step(latents, clean, now, then)
        done = torch.cat([done, latents], dim=2)
    return done


RUN = {"euler": run_euler, "renoise": run_renoise, "streaming": run_streaming}


@torch.no_grad()
def sample_student(model: WanTransformer3DModel, student: Student, prompts: Tensor, noise: Tensor) -> Tensor:
    """Latents in the student's own few steps; `noise` as `draw_noise` gives it for that many steps or more."""
    return RUN[student.sampler](model, prompts, noise, student_levels(student))


def in_portions(tensors: Sequence[Tensor], size: int = 16) -> Iterator[tuple[Tensor, ...]]:
    """Yield the same rows of every tensor, a few at a time: less memory, and the caches of a CPU hold them."""
    yield from zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def as_frames(latents: Tensor) -> Tensor:
    """Return latents as clips one can look at: uint8 [n, FRAMES, SIZE, SIZE, 3]."""
    clips = (from_latents(latents).clamp(-1, 1) + 1) * 127.5
    return clips.round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
