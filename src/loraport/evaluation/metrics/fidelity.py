"""How close the pixels of a clip are to those of its reference: PSNR, and structural similarity (Wang et al. 2004)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from loraport.clips.clip import Clip
from loraport.evaluation.metrics.metric import Readings
from loraport.evaluation.metrics.pixels import brightness

MOST_DECIBELS = 99.0
"""What identical clips get."""
_WINDOW, _SIGMA = 11, 1.5
_C1, _C2 = 0.01**2, 0.03**2


def open_fidelity(folders: Sequence[Path], device: str) -> Fidelity:
    """Return the instrument."""
    return Fidelity()


class Fidelity:
    """Frames beside each other: those of the same moment."""

    def __call__(self, clip: Clip, reference: Clip | None, prompt: str | None) -> Readings:
        """Return `psnr` and `ssim`, NaN where the two have different sizes."""
        if reference is None or clip.frames.shape[1:] != reference.frames.shape[1:]:
            return {"psnr": torch.tensor(float("nan")), "ssim": torch.tensor(float("nan"))}
        errors, similarities = [], []
        for own, other in moments(clip, reference):
            one, two = clip.frames[own], reference.frames[other]
            errors.append(float(np.square(one.astype(np.float32) - two).mean()) / 255**2)
            similarities.append(float(structural_similarity(brightness(one), brightness(two))))
        error = sum(errors) / len(errors)
        decibels = MOST_DECIBELS if error == 0 else min(MOST_DECIBELS, -10 * math.log10(error))
        return {"psnr": torch.tensor(decibels), "ssim": torch.tensor(sum(similarities) / len(similarities))}


def moments(clip: Clip, reference: Clip) -> list[tuple[int, int]]:
    """Return the frames of both that are shown at the same time, as far as both last.

    Of clips that run at different speeds each frame of the slower is met by the other's nearest.
    """
    lengths = len(clip.frames), len(reference.frames)
    if clip.fps == reference.fps or 1 in lengths:
        return [(index, index) for index in range(min(lengths))]
    slower = min(clip.fps, reference.fps)
    pairs = []
    for index in range(max(lengths)):
        own, other = (round(index * one.fps / slower) for one in (clip, reference))
        if own >= lengths[0] or other >= lengths[1]:
            break
        pairs.append((own, other))
    return pairs


def structural_similarity(one: Float[Tensor, "h w"], other: Float[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Return the mean structural similarity of two pictures in [0, 1], under a Gaussian window that lies inside.

    Of pictures smaller than the window, the similarity of their whole.
    """
    size = min(_WINDOW, *one.shape)
    line = [math.exp(-((place - (size - 1) / 2) ** 2) / (2 * _SIGMA**2)) for place in range(size)]
    line = [weight / sum(line) for weight in line]
    one, other = one.double(), other.double()  # variances are differences of nearly equal squares
    stack = torch.stack([one, other, one * one, other * other, one * other])
    mean, other_mean, square, other_square, product = _blurred(_blurred(stack, line, 1), line, 2)
    variance, other_variance = square - mean**2, other_square - other_mean**2
    covariance = product - mean * other_mean
    luminance = (2 * mean * other_mean + _C1) / (mean**2 + other_mean**2 + _C1)
    return (luminance * (2 * covariance + _C2) / (variance + other_variance + _C2)).mean()


def _blurred(stack: Float[Tensor, "n h w"], line: Sequence[float], axis: int) -> Float[Tensor, "n H W"]:
    """Return weighted means along an axis; sums of shifted pictures are ten times as fast as a convolution of one."""
    kept = stack.shape[axis] - len(line) + 1
    total = stack.narrow(axis, 0, kept) * line[0]
    for place, weight in enumerate(line[1:], 1):
        total.add_(stack.narrow(axis, place, kept), alpha=weight)
    return total
