"""Two small networks that say what is in a clip: how much of which style, and which shape, colour and motion.

They are trained on procedural clips alone, never on what the models sample.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from loraport.toy.clips import COLOURS, FRAMES, MOTIONS, SHAPES, STYLES, draw_prompts, render
from loraport.toy.family import FAMILY

COLOURLESS = ("noir", "retro")  # styles in which the colour of the shape cannot be told
JUDGE_FILE = "judge.safetensors"


class Judge(nn.Module):
    """Style from single frames; shape, colour and motion from the first and last frame together."""

    def __init__(self) -> None:
        super().__init__()
        self.texture = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.SiLU(), nn.Conv2d(32, 48, 3, 2, 1)
        )
        self.style = nn.Linear(48, len(STYLES))
        self.scene = nn.Sequential(
            *(nn.Conv2d(6, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 48, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(48, 64, 3, 2, 1), nn.SiLU(), nn.Conv2d(64, 32, 3, padding=1), nn.SiLU(), nn.Flatten()),
            *(nn.Linear(32 * 36, 64), nn.SiLU()),
        )
        self.content = nn.Linear(64, len(SHAPES) + len(COLOURS) + len(MOTIONS))

    def style_features(self, clips: Tensor) -> Tensor:
        """Texture of each clip, 48 numbers averaged over place and over four frames: [n, 48]."""
        frames = clips[:, :, :: FRAMES // 4].transpose(1, 2)
        features = functional.silu(self.texture(frames.flatten(0, 1))).mean(dim=(2, 3))
        return features.reshape(len(clips), -1, features.shape[1]).mean(1)

    def style_shares(self, clips: Tensor) -> Tensor:
        """How much of each style is in each clip: [n, styles], rows sum to 1."""
        return self.style(self.style_features(clips)).softmax(1)

    def content_scores(self, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores of every shape, colour and motion."""
        ends = torch.cat([clips[:, :, 0], clips[:, :, -1]], dim=1)
        shape, colour, motion = self.content(self.scene(ends)).split([len(SHAPES), len(COLOURS), len(MOTIONS)], dim=1)
        return shape, colour, motion


def judge_loss(judge: Judge, batch: int, generator: Generator) -> Tensor:
    """Styles blended with the plain clip at a random strength; the strength is what the style head must answer."""
    prompts = draw_prompts(batch, generator)
    clips = render(prompts, generator)
    names = list(STYLES)
    chosen = torch.randint(len(names), (batch,), generator=generator)
    styled = clips.clone()
    for index, name in enumerate(names):
        styled[chosen == index] = STYLES[name](clips[chosen == index])
    strength = torch.rand(batch, generator=generator)
    strength = torch.where(torch.rand(batch, generator=generator) < 0.5, torch.ones(batch), strength)
    wide = strength[:, None, None, None, None]
    blurred = functional.avg_pool3d(styled, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    soften = 0.6 * torch.rand(batch, generator=generator)[:, None, None, None, None]
    seen = wide * ((1 - soften) * styled + soften * blurred) + (1 - wide) * clips
    seen = seen + 0.08 * torch.rand(batch, generator=generator)[:, None, None, None, None] * torch.randn(
        seen.shape, generator=generator
    )
    answer = functional.one_hot(chosen, len(names)) * strength[:, None]
    answer[:, 0] += 1 - strength
    style_loss = -(answer * judge.style(judge.style_features(seen)).log_softmax(1)).sum(1).mean()
    shape, colour, motion = judge.content_scores(seen)
    coloured = torch.tensor([name not in COLOURLESS for name in names])[chosen]
    colour_loss = (functional.cross_entropy(colour, prompts[:, 1], reduction="none") * coloured).mean()
    return (
        style_loss
        + functional.cross_entropy(shape, prompts[:, 0])
        + colour_loss
        + functional.cross_entropy(motion, prompts[:, 3])
    )


def save_judge(judge: Judge, folder: Path) -> None:
    """Write the networks' weights into the family's folder."""
    save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, folder / JUDGE_FILE)


def open_judge(family: Path = FAMILY) -> Judge:
    """The trained networks, ready to judge."""
    judge = Judge()
    judge.load_state_dict(load_file(family / JUDGE_FILE))
    return judge.requires_grad_(False).eval()
