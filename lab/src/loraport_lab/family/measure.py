"""What is measured on every clip: one number per clip and metric, so that columns can be compared in pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loraport_lab.family.clips import ATTRIBUTES, TINTS, visible
from loraport_lab.family.judge import Judge


@dataclass(frozen=True)
class Metric:
    """A number and how to read it."""

    key: str
    title: str
    unit: str
    reading: str


METRICS = (  # higher is better for all of them
    Metric(
        "psnr",
        "Fidelity",
        "dB",
        "How close the pixels are to those of base + LoRA from the same noise (PSNR). 3 dB more is half the error. "
        "It does not punish blur.",
    ),
    Metric(
        "effect",
        "Effect",
        "%",
        "How much of the style (or of the motion) that the LoRA stands for a small network sees, from 0 to 100.",
    ),
    Metric(
        "tint",
        "Tint",
        "%",
        "How much of the light has the style's one tint, straight from the pixels; what is missing is colour of the "
        "plain clip that leaks through.",
    ),
    Metric(
        "likeness",
        "Likeness",
        "%",
        "Cosine between the network's texture features of the clip and of base + LoRA, over all frames it looks at. It "
        "saturates: 97 can still be visibly wrong.",
    ),
    Metric(
        "shape", "Right shape", "%", "Clips in which a second network finds the shape asked for; guessing gives 25."
    ),
    Metric("colour", "Right colour", "%", "Clips in which it finds the colour asked for; guessing gives 17."),
    Metric(
        "background", "Right background", "%", "Clips in which it finds the background asked for; guessing gives 25."
    ),
    Metric("motion", "Right motion", "%", "Clips that move in the direction asked for; guessing gives 25."),
    Metric("ball", "Right ball", "%", "Clips with a resting ball of the colour asked for; guessing gives 17."),
)
MORE_METRICS = (
    Metric("likeness_first", "Likeness, first frame", "%", "The same cosine on the first frame alone."),
    Metric(
        "sharpness",
        "Sharpness",
        "%",
        "Mean step between neighbouring pixels, as a share of base + LoRA's: 100 is right.",
    ),
    Metric("flicker", "Flicker", "%", "Mean step between frames, as a share of base + LoRA's: 100 is right."),
)
CONTENT = tuple(ATTRIBUTES)


def psnr(clips: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each clip against its twin, in dB; both in [-1, 1]. At most 99."""
    error = ((clips - reference) / 2).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(1e-12).log10()).clamp_max(99.0)


def tint(clips: Tensor, colour: tuple[float, float, float]) -> Tensor:
    """How much of each clip's light lies on the line from black through `colour`, in percent: 100 is a pure tint."""
    light = (clips + 1) / 2
    line = torch.tensor(colour)[:, None, None, None] / torch.tensor(colour).norm()
    astray = light - (light * line).sum(1, keepdim=True) * line
    return 100 * (1 - astray.flatten(1).norm(dim=1) / light.flatten(1).norm(dim=1).clamp_min(1e-6))


def sharpness(clips: Tensor) -> Tensor:
    """Mean absolute step between horizontal and vertical neighbours: [n]."""
    return (clips.diff(dim=3).abs().flatten(1).mean(1) + clips.diff(dim=4).abs().flatten(1).mean(1)) / 2


def flicker(clips: Tensor) -> Tensor:
    """Mean absolute step from frame to frame: [n]."""
    return clips.diff(dim=2).abs().flatten(1).mean(1)


@torch.no_grad()
def measure(judge: Judge, clips: Tensor, prompts: Tensor, effect: str, reference: Tensor | None) -> dict[str, Tensor]:
    """Metric key -> one value per clip.

    Without a reference nothing is compared; only a style of one tint has a tint; what an effect hides is not asked.
    """
    scores = judge.content_scores(clips)
    values = {"effect": 100 * judge.effect_shares(clips, effect)}
    for column, attribute in enumerate(ATTRIBUTES):
        if attribute in visible(effect):
            values[attribute] = 100.0 * (scores[attribute].argmax(1) == prompts[:, column])
    if effect in TINTS:
        values["tint"] = tint(clips, TINTS[effect])
    if reference is not None:
        values |= _compared(judge, clips, reference)
    return values


def _compared(judge: Judge, clips: Tensor, reference: Tensor) -> dict[str, Tensor]:
    return {
        "psnr": psnr(clips, reference),
        "likeness": _likeness(judge, clips, reference),
        "likeness_first": _likeness(judge, clips[:, :, :1], reference[:, :, :1]),
        "sharpness": 100 * sharpness(clips) / sharpness(reference).clamp_min(1e-6),
        "flicker": 100 * flicker(clips) / flicker(reference).clamp_min(1e-6),
    }


def _likeness(judge: Judge, clips: Tensor, reference: Tensor) -> Tensor:
    return 100 * torch.cosine_similarity(judge.style_features(clips), judge.style_features(reference), dim=1)
