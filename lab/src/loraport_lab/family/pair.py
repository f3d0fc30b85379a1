"""The embedded family as a pair for `loraport.sampling`: the base as the source, any student as the target."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn

from loraport.errors import MismatchError
from loraport.sampling.hooks import adapted, linear_layers
from loraport.sampling.pair import Chain, Clips, Evaluation, Passes, Sampler, Updates
from loraport_lab.family.clips import describe, draw_prompts, embed, from_latents
from loraport_lab.family.family import BASE, FAMILY, STUDENTS, Student, find_student, student_path
from loraport_lab.family.model import CLOCK, CONFIG, LATENT_SHAPE, open_base, open_student, predict_clean
from loraport_lab.family.sample import (
    BASE_STEPS,
    GUIDANCE,
    as_frames,
    base_levels,
    draw_noise,
    euler_step,
    predict_guided,
    sample_base,
    sample_student,
    student_levels,
)

LATENT_FRAMES = LATENT_SHAPE[1]


class EmbeddedPair:
    """Both models in memory; they are small. See `loraport.sampling.pair.Pair` for what each member means."""

    batch = 16
    fps = 8.0
    no_evaluations_reason: str | None = None
    notes: tuple[str, ...] = ()

    def __init__(self, student: str, family: Path = FAMILY) -> None:
        """Open both models. Raises SettingsError for an unknown student."""
        self.student: Student = find_student(student)
        self.base, self.model = open_base(family), open_student(student, family)
        self.levels = student_levels(self.student)
        weights = [family / BASE.name / "transformer", student_path(student, family)]
        base_hash, student_hash = (_content(place) for place in weights)
        own_steps = self.student.steps
        self.source_identity = f"embedded {base_hash} {self.student.sampler} {own_steps} {BASE_STEPS} × {GUIDANCE}"
        self.target_identity = f"embedded {base_hash} {student_hash} {self.student.sampler} {own_steps}"
        levels = tuple(float(level) for level in self.levels)
        times = tuple(level * CLOCK for level in levels[:-1])
        streaming, renoises = self.student.sampler == "streaming", self.student.sampler == "renoise"
        self.sampler = Sampler(self.student.sampler, levels, times, renoises, f"the student {student}'s own")
        frames = range(LATENT_FRAMES) if streaming else (None,)
        self.evaluations = tuple(self._evaluation(step, frame) for frame in frames for step in range(len(own_steps)))
        steps = sum(BASE_STEPS - first for first in own_steps) if renoises else BASE_STEPS
        self.passes = Passes(source=2 * steps, target=len(self.evaluations), evaluations=len(self.evaluations))

    def prompts(self, clips: Clips) -> tuple[str, ...]:
        return prompts_in_words(clips)

    def layers(self) -> Mapping[str, tuple[int, int]]:
        layers = linear_layers(self.model)
        return {name: (module.out_features, module.in_features) for name, module in layers.items()}

    @torch.no_grad()
    def source(self, clips: Clips, updates: Updates) -> Chain:
        words, noise = draw_words(clips), self._noise(clips)
        with adapted(self.base, updates):
            return self._renoised(words, noise) if self.student.sampler == "renoise" else self._passed(words, noise)

    @torch.no_grad()
    def source_clips(self, clips: Clips, updates: Updates) -> Tensor:
        with adapted(self.base, updates):
            return sample_base(self.base, draw_words(clips), self._noise(clips))

    @torch.no_grad()
    def target(self, clips: Clips, updates: Updates) -> Tensor:
        with adapted(self.model, updates):
            return sample_student(self.model, self.student, draw_words(clips), self._noise(clips))

    @torch.no_grad()
    def velocity(self, evaluation: Evaluation, clips: Clips, chain: Chain) -> Tensor:
        state, text = chain.states[:, evaluation.step], embed(draw_words(clips))
        if evaluation.frame is None:
            level = torch.full((len(clips),), evaluation.level)
            return (state - predict_clean(self.model, state, level, text)) / evaluation.level
        frame = evaluation.frame
        noisy = state[:, :, frame : frame + 1]
        level = torch.zeros(len(clips), frame + 1)
        level[:, frame] = evaluation.level
        seen = torch.cat([chain.end[:, :, :frame], noisy], dim=2)
        return (noisy - predict_clean(self.model, seen, level, text)[:, :, frame:]) / evaluation.level

    def network(self) -> nn.Module:
        return self.model

    def to_error_space(self, latents: Tensor) -> Tensor:
        return from_latents(latents).clamp(-1, 1)

    def pictures(self, latents: Tensor) -> Tensor:
        return as_frames(latents)

    def _evaluation(self, step: int, frame: int | None) -> Evaluation:
        now, then = (float(level) for level in self.levels[step : step + 2])
        return Evaluation(step, now, abs(then - now), -1 / now, frame)

    def _noise(self, clips: Clips) -> Tensor:
        return torch.cat([draw_noise(1, rng, len(self.student.steps)) for rng in clips.generators("noise")])

    def _walk(self, latents: Tensor, words: Tensor, first: int) -> list[Tensor]:
        """Return the states of the base's steps from the given one to the end."""
        states = [latents]
        for now, then in list(pairwise(base_levels()))[first:]:
            clean = predict_guided(self.base, states[-1], now.expand(len(words)), words)
            states.append(euler_step(states[-1], clean, now, then))
        return states

    def _passed(self, words: Tensor, noise: Tensor) -> Chain:
        """Return the base's one trajectory at the student's levels."""
        states = self._walk(noise[:, 0], words, 0)
        kept = torch.stack([states[step] for step in (*self.student.steps, BASE_STEPS)], dim=1)
        widths = self.levels.diff()[None, :, None, None, None, None]
        return Chain(kept, kept.diff(dim=1) / widths)

    def _renoised(self, words: Tensor, noise: Tensor) -> Chain:
        """From each level down to a clip, which is taken back to the next level with the noise the student gets."""
        states, velocities = [noise[:, 0]], []
        for step, (now, then) in enumerate(pairwise(self.levels)):
            clean = self._walk(states[-1], words, self.student.steps[step])[-1]
            velocities.append((states[-1] - clean) / now)
            states.append((1 - then) * clean + then * noise[:, step + 1] if then > 0 else clean)
        return Chain(torch.stack(states, dim=1), torch.stack(velocities, dim=1))


def draw_words(clips: Clips) -> Tensor:
    """Return the prompts of clips: [n, 5]."""
    return torch.cat([draw_prompts(1, generator) for generator in clips.generators("prompt")])


def prompts_in_words(clips: Clips) -> tuple[str, ...]:
    """Return the prompt of each clip, as a person would write it."""
    return tuple(map(describe, draw_words(clips)))


def is_embedded(place: Path) -> bool:
    """Whether a folder is one of the family's: the tiny Wan by its configuration."""
    config = place / "transformer" / "config.json"
    if not config.is_file():
        return False
    try:
        own = json.loads(config.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return all(own.get(key) == (list(value) if isinstance(value, tuple) else value) for key, value in CONFIG.items())


def open_embedded(source: Path, target: Path) -> EmbeddedPair:
    """Open the pair that these folders of one family are; the target may be its accelerator's file.

    The sampler is the one of the student of that name, so a student has to lie at its place in a family:
    FAMILY/students/NAME, beside FAMILY/base. Raises MismatchError where it does not.
    """
    name, family = target.name.removesuffix(".safetensors"), source.resolve().parent
    if name not in STUDENTS or target.resolve() != student_path(name, family).resolve() or source.name != BASE.name:
        raise MismatchError(
            f"{target} is not a student beside {source}: how a tiny model is sampled follows from its place in its "
            f"family, FAMILY/base and FAMILY/students/NAME with NAME one of {', '.join(STUDENTS)}"
        )
    return EmbeddedPair(name, family)


def _content(place: Path) -> str:
    """Return a hash of the weights in a folder, or of a file."""
    digest = hashlib.sha256()
    for path in sorted(place.rglob("*.safetensors")) if place.is_dir() else [place]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:32]
