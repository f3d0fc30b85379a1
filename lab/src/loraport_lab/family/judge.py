"""Two small networks that say what is in a clip: how much of which style, and which content on which path.

They are trained on procedural clips alone, never on what the models sample.
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Generator, Tensor, nn
from torch.nn import functional

from loraport_lab.family.clips import ATTRIBUTES, FRAMES, MOTIONS, PATHS, STYLES, TINTS, draw_prompts, render, visible
from loraport_lab.family.family import FAMILY

JUDGE_FILE = "judge.safetensors"
_ANSWERS = [len(words) * (len(PATHS) if name == "motion" else 1) for name, words in ATTRIBUTES.items()]
# motion and path are one question


class Judge(nn.Module):
    """Style from single frames; shape, colour, background, motion and path from three frames together."""

    def __init__(self) -> None:
        super().__init__()
        self.texture = nn.Sequential(
            nn.Conv2d(3, 24, 3, padding=1), nn.SiLU(), nn.Conv2d(24, 32, 3, 2, 1), nn.SiLU(), nn.Conv2d(32, 48, 3, 2, 1)
        )
        self.style = nn.Linear(48, len(STYLES))
        self.scene = nn.Sequential(
            *(nn.Conv2d(9, 32, 3, padding=1), nn.SiLU(), nn.Conv2d(32, 48, 3, 2, 1), nn.SiLU()),
            *(nn.Conv2d(48, 64, 3, 2, 1), nn.SiLU(), nn.Conv2d(64, 48, 3, 2, 1), nn.SiLU(), nn.Flatten()),
            *(nn.Linear(48 * 25, 128), nn.SiLU()),
        )
        self.content = nn.Linear(128, sum(_ANSWERS))

    def style_features(self, clips: Tensor) -> Tensor:
        """Texture of each clip, 48 numbers averaged over place and over every fourth frame: [n, 48]."""
        frames = clips[:, :, :: FRAMES // 2].transpose(1, 2)
        features = functional.silu(self.texture(frames.flatten(0, 1))).mean(dim=(2, 3))
        return features.reshape(len(clips), -1, features.shape[1]).mean(1)

    def style_shares(self, clips: Tensor) -> Tensor:
        """How much of each style is in each clip: [n, styles], rows sum to 1."""
        return self.style(self.style_features(clips)).softmax(1)

    def scene_features(self, clips: Tensor) -> Tensor:
        """Return what is where and how it moves, from the first, the middle and the last frame: [n, 128]."""
        return self.scene(clips[:, :, [0, FRAMES // 2 - 1, FRAMES - 1]].transpose(1, 2).flatten(1, 2))

    def content_scores(self, clips: Tensor) -> dict[str, Tensor]:
        """Return the scores of each attribute's words, and those of the paths under "path": [n, words] each."""
        answers = self.content(self.scene_features(clips)).split(_ANSWERS, dim=1)
        scores = dict(zip(ATTRIBUTES, answers, strict=True))
        both = scores["motion"].unflatten(1, (len(MOTIONS), len(PATHS)))
        return scores | {"motion": both.logsumexp(2), "path": both.logsumexp(1)}

    def effect_shares(self, clips: Tensor, effect: str) -> Tensor:
        """How much of an adapter's effect is in each clip, 0 to 1: [n]."""
        if effect in STYLES:
            return self.style_shares(clips)[:, list(STYLES).index(effect)]
        return self.content_scores(clips)["path"].softmax(1)[:, PATHS.index(effect)]


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
    """Add a little blur and noise, as in what models sample."""
    soft = functional.avg_pool3d(clips, (1, 3, 3), 1, (0, 1, 1), count_include_pad=False)
    softness, grain = torch.rand(2, len(clips), generator=rng)
    mixed = clips + 0.6 * _wide(softness) * (soft - clips)
    return mixed + 0.08 * _wide(grain) * torch.randn(clips.shape, generator=rng)


def judge_loss(judge: Judge, batch: int, rng: Generator) -> Tensor:
    """Cross entropies: the share left is what the style head must answer, the prompt what the content head must.

    What a style hides is not asked.
    """
    prompts, swings = draw_prompts(batch, rng), torch.rand(batch, generator=rng) < 0.3
    chosen = torch.randint(len(STYLES), (batch,), generator=rng)
    flawed, share = _imperfect(render(prompts, rng, swings), chosen, rng)
    seen = _worn(flawed, rng)
    answer = functional.one_hot(chosen, len(STYLES)) * share[:, None]
    answer[:, 0] += 1 - share
    loss = -(answer * judge.style(judge.style_features(seen)).log_softmax(1)).sum(1).mean()
    scores = judge.content_scores(seen)
    for column, attribute in enumerate(ATTRIBUTES):
        shown = torch.tensor([attribute in visible(style) for style in STYLES])[chosen]
        missed = functional.cross_entropy(scores[attribute], prompts[:, column], reduction="none")
        loss = loss + (missed * shown).mean()
    return loss + functional.cross_entropy(scores["path"], swings.long())


def save_judge(judge: Judge, folder: Path) -> None:
    """Write the networks' weights into the family's folder."""
    save_file({name: value.contiguous() for name, value in judge.state_dict().items()}, folder / JUDGE_FILE)


def open_judge(family: Path = FAMILY) -> Judge:
    """Open the trained networks, ready to judge."""
    judge = Judge()
    judge.load_state_dict(load_file(family / JUDGE_FILE))
    return judge.requires_grad_(False).eval()
