"""What pixels alone say of a clip: sharpness, how much changes from frame to frame, flicker, speed of motion, cuts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from loraport.clips.clip import Clip
from loraport.evaluation.metrics.flow import block_motion
from loraport.evaluation.metrics.metric import Readings

SMALL, FLOW_SIDE = 32, 128
"""Pixels of the shorter side at which cuts and motion are looked for; smaller clips are taken as they are."""
CUT_SHARE, CUT_TIMES, AROUND = 0.10, 5.0, 4
"""A cut changes a tenth of full scale in the mean pixel, and five times the median of the four steps on either side."""
_LUMA = (0.299, 0.587, 0.114)


def open_pixels(folders: Sequence[Path], device: str) -> Pixels:
    """Return the instrument."""
    return Pixels()


class Pixels:
    """One pass over the frames, of which three are in memory as numbers at a time."""

    def __call__(self, clip: Clip, reference: Clip | None, prompt: str | None) -> Readings:
        """Return means over the clip, in percent of full scale, `speed` in percent of the shorter side a second."""
        sharp, change, flicker, speeds, small = [], [], [], [], []
        before: list[Tensor] = []
        previous: Tensor | None = None
        for frame in clip.frames:
            luma = brightness(frame)
            sharp.append(float(luma.diff(dim=0).abs().mean() + luma.diff(dim=1).abs().mean()) / 2)
            small.append(_reduced(torch.from_numpy(frame.copy()).permute(2, 0, 1).float() / 255, SMALL))
            reduced = _reduced(luma[None], FLOW_SIDE)[0]
            if before:
                change.append(float((luma - before[-1]).abs().mean()))
            if previous is not None:
                speeds.append(float(block_motion(previous, reduced).norm(dim=-1).mean()) / min(reduced.shape))
            if len(before) == 2:
                flicker.append(float((luma - 2 * before[-1] + before[-2]).abs().mean()))
            before, previous = [*before[-1:], luma], reduced
        return {
            "sharpness": _mean(sharp),
            "change": _mean(change),
            "flicker": _mean(flicker),
            "speed": _mean(speeds) * clip.fps,
            "cuts": torch.tensor(float(len(cuts(torch.stack(small))))),
        }


def brightness(frame: np.ndarray) -> Float[Tensor, "h w"]:
    """Return the luma of a frame, in [0, 1]."""
    return torch.from_numpy(frame.astype(np.float32) / 255) @ torch.tensor(_LUMA)


def cuts(frames: Float[Tensor, "f 3 h w"]) -> list[int]:
    """Return the frames that begin a new scene: the step to them is large, and far larger than the steps around it."""
    steps = frames.diff(dim=0).abs().flatten(1).mean(1)
    found = []
    for index, step in enumerate(steps.tolist()):
        around = torch.cat([steps[max(0, index - AROUND) : index], steps[index + 1 : index + 1 + AROUND]])
        usual = float(around.median()) if len(around) else 0.0
        if step > CUT_SHARE and step > CUT_TIMES * usual:
            found.append(index + 1)
    return found


def _reduced(picture: Float[Tensor, "c h w"], side: int) -> Float[Tensor, "c H W"]:
    """Return a picture made smaller, by the mean over areas; one that is small already stays as it is."""
    scale = side / min(picture.shape[1:])
    if scale >= 1:
        return picture
    size = [max(1, round(length * scale)) for length in picture.shape[1:]]
    return functional.interpolate(picture[None], size, mode="area")[0]


def _mean(values: list[float]) -> Tensor:
    """Return the mean in percent; NaN where there was nothing to measure."""
    return torch.tensor(100 * sum(values) / len(values) if values else float("nan"))
