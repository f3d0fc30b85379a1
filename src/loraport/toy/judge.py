"""Two small networks that say what is in a clip: how much of which style, and which shape, colour and motion.

They are trained on procedural clips alone, never on what the models sample.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from loraport.toy.clips import COLOURS, FRAMES, MOTIONS, SHAPES, STYLES, TINTS, draw_prompts, render
from loraport.toy.family import FAMILY

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
        """Texture of each clip, 48 numbers averaged over place and over two frames: [n, 48]."""
        frames = clips[:, :, :: FRAMES // 2].transpose(1, 2)
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


def _imperfect(clips: Tensor, chosen: Tensor, rng: Generator) -> tuple[Tensor, Tensor]:
    """Styled clips, half of them flawed, and the share of the style that is left in each.

    Two flaws: a blend with the plain clip, whose share is the blend's; and, in styles of a single tint, the right
    texture with the plain clip's colours showing through, which at worst leaves half of the style.
    """
    styled = clips.clone()
    for index, style in enumerate(STYLES.values()):
        styled[chosen == index] = style(clips[chosen == index])
    amount, dice = torch.rand(2, len(clips), generator=rng)
    tinted = torch.tensor([name in TINTS for name in STYLES])[chosen]
    leaks, blends = (dice < 0.25) & tinted, (dice >= 0.25) & (dice < 0.5)
    dimmed = ((styled + 1).amax(1, keepdim=True) / (clips + 1).amax(1, keepdim=True).clamp_min(0.1)).clamp_max(1)
    colours = (clips - clips.mean(1, keepdim=True)) * dimmed
    leaked = (styled + _wide(amount) * colours).clamp(-1, 1)
    blended = (1 - _wide(amount)) * styled + _wide(amount) * clips
    flawed = torch.where(_wide(leaks), leaked, torch.where(_wide(blends), blended, styled))
    return flawed, 1 - amount * blends - 0.5 * amount * leaks


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]


def _worn(clips: Tensor, rng: Generator) -> Tensor:
    """A little blur and noise, as in what models sample."""
    soft = functional.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    softness, grain = torch.rand(2, len(clips), generator=rng)
    mixed = clips + 0.6 * _wide(softness) * (soft - clips)
    return mixed + 0.08 * _wide(grain) * torch.randn(clips.shape, generator=rng)


def judge_loss(judge: Judge, batch: int, rng: Generator) -> Tensor:
    """Cross entropies: the share left is what the style head must answer, the prompt what the content head must."""
    prompts = draw_prompts(batch, rng)
    chosen = torch.randint(len(STYLES), (batch,), generator=rng)
    flawed, share = _imperfect(render(prompts, rng), chosen, rng)
    seen = _worn(flawed, rng)
    answer = functional.one_hot(chosen, len(STYLES)) * share[:, None]
    answer[:, 0] += 1 - share
    style_loss = -(answer * judge.style(judge.style_features(seen)).log_softmax(1)).sum(1).mean()
    shape, colour, motion = judge.content_scores(seen)
    coloured = torch.tensor([name not in TINTS for name in STYLES])[chosen]
    colour_loss = (functional.cross_entropy(colour, prompts[:, 1], reduction="none") * coloured).mean()
    content_loss = functional.cross_entropy(shape, prompts[:, 0]) + functional.cross_entropy(motion, prompts[:, 3])
    return style_loss + content_loss + colour_loss


def save_judge(judge: Judge, folder: Path) -> None:
    """Write the networks' weights into the family's folder."""
    save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, folder / JUDGE_FILE)


def open_judge(family: Path = FAMILY) -> Judge:
    """The trained networks, ready to judge."""
    judge = Judge()
    judge.load_state_dict(load_file(family / JUDGE_FILE))
    return judge.requires_grad_(False).eval()
