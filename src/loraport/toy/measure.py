"""What the demo measures on every clip: one number per clip and metric, so that columns can be compared in pairs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.toy.clips import STYLES, TINTS
from loraport.toy.judge import Judge


@dataclass(frozen=True)
class Metric:
    """A number and how to read it; higher is better for all of them."""

    key: str
    title: str
    unit: str
    reading: str


METRICS = (
    Metric(
        "psnr",
        "Fidelity",
        "dB",
        "How close the pixels are to those of base + LoRA from the same noise (PSNR). 3 dB more is half the error. "
        "It does not punish blur.",
    ),
    Metric(
        "style",
        "Style",
        "%",
        "How much of the style a small network sees, from 0 (plain clip) to 100 (the style in full).",
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
        "Cosine between the network's texture features of the clip and of base + LoRA. It saturates: 97 can still be "
        "visibly wrong.",
    ),
    Metric(
        "shape", "Right shape", "%", "Clips in which a second network finds the shape asked for; guessing gives 25."
    ),
    Metric("colour", "Right colour", "%", "Clips in which it finds the colour asked for; guessing gives 17."),
    Metric("motion", "Right motion", "%", "Clips that move in the direction asked for; guessing gives 25."),
)


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


@torch.no_grad()
def measure(judge: Judge, clips: Tensor, prompts: Tensor, style: str, reference: Tensor | None) -> dict[str, Tensor]:
    """Metric key -> one value per clip. Without a reference there is no fidelity and no likeness;
    only a style of one tint has a tint, only the others have colours."""
    shape, colour, motion = (scores.argmax(1) for scores in judge.content_scores(clips))
    values = {"style": 100 * judge.style_shares(clips)[:, list(STYLES).index(style)]}
    values["shape"] = 100.0 * (shape == prompts[:, 0])
    if style in TINTS:
        values["tint"] = tint(clips, TINTS[style])
    else:
        values["colour"] = 100.0 * (colour == prompts[:, 1])
    values["motion"] = 100.0 * (motion == prompts[:, 3])
    if reference is not None:
        values["psnr"] = psnr(clips, reference)
        ours, theirs = judge.style_features(clips), judge.style_features(reference)
        values["likeness"] = 100 * torch.cosine_similarity(ours, theirs, dim=1)
    return values
