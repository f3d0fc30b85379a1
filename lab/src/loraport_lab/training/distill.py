"""How students and their oracles learn: trajectories of the base, and one loss for each paradigm."""

from dataclasses import dataclass
from typing import TypeAlias

import torch
from diffusers import WanTransformer3DModel
from peft import PeftModel
from torch import Generator, Tensor, nn

from loraport_lab.family.clips import draw_prompts, embed
from loraport_lab.family.family import Student
from loraport_lab.family.model import predict_clean
from loraport_lab.family.sample import (
    BASE_STEPS,
    draw_noise,
    in_portions,
    predict_guided,
    run_renoise,
    sample_student,
    shifted,
    student_levels,
)

KEPT = (0, 3, 6, 8, BASE_STEPS)  # the base's steps whose states are kept: all at which some student looks
WEIGHT_FLOOR = 0.2  # the denoising loss is that of the velocity, 1 / level², cut off here
CLEAN_FRAMES = 0.5  # share of a streaming student's frames that it sees finished in training
GENERATOR_TURNS = 1 / 3  # share of the steps in which distribution matching moves the student, not its critic

Network: TypeAlias = WanTransformer3DModel | PeftModel


@dataclass(frozen=True)
class Trajectories:
    """Prompts [n, 5] and the base's states [n, kept steps, …] on the way from noise to clips."""

    prompts: Tensor
    states: Tensor

    def at(self, student: Student, rows: Tensor) -> Tensor:
        """Return the states of some clips at the student's levels, its end included: [rows, steps + 1, …]."""
        columns = [KEPT.index(step) for step in (*student.steps, BASE_STEPS)]
        return self.states[rows[:, None], columns].float()

    def rows(self, start: int | None, stop: int | None) -> "Trajectories":
        """Return some of the clips."""
        return Trajectories(self.prompts[start:stop], self.states[start:stop])


def denoising_loss(model: Network, clean: Tensor, text: Tensor, rng: Generator) -> Tensor:
    """Return the loss of flow matching: the velocity's squared error, written in terms of the clean prediction."""
    level = shifted(torch.rand(len(clean), generator=rng)).clamp_min(1e-3).to(clean.device)
    noise = draw_noise(len(clean), rng)[:, 0].to(clean.device)
    missed = predict_clean(model, _mixed(clean, noise, level), level, text) - clean
    return (missed.square().mean(dim=(1, 2, 3, 4)) / level.clamp_min(WEIGHT_FLOOR) ** 2).mean()


def regression_loss(model: Network, student: Student, given: Trajectories, batch: int, rng: Generator) -> Tensor:
    """Return how far the student lands from where the base's trajectory goes, over a random part of the way."""
    chosen = torch.randint(len(given.prompts), (batch,), generator=rng)
    loss = {"euler": _segment_loss, "streaming": _frames_loss, "renoise": _renoise_loss}[student.sampler]
    return loss(model, student, given.at(student, chosen).to(device_of(model)), given.prompts[chosen], rng)


def _segment_loss(model: Network, student: Student, states: Tensor, prompts: Tensor, rng: Generator) -> Tensor:
    """From a random level in one step to the next."""
    levels, row = student_levels(student).to(states.device), torch.arange(len(states))
    step = torch.randint(len(student.steps), (len(states),), generator=rng)
    now, kept = levels[step], _wide(levels[step + 1] / levels[step])
    start, end = states[row, step], states[row, step + 1]
    clean = predict_clean(model, start, now, embed(prompts))
    return (clean + kept * (start - clean) - end).square().mean()


def _frames_loss(model: Network, student: Student, states: Tensor, prompts: Tensor, rng: Generator) -> Tensor:
    """Every frame from a level of its own, many of them finished, as when one frame follows the other."""
    levels, count, frames = student_levels(student).to(states.device), len(states), states.shape[3]
    step = torch.randint(len(student.steps), (count, frames), generator=rng)
    step = torch.where(torch.rand(count, frames, generator=rng) < CLEAN_FRAMES, len(student.steps), step)
    following = (step + 1).clamp_max(len(student.steps))
    row, frame = torch.arange(count)[:, None], torch.arange(frames)
    start, end = (states.transpose(2, 3)[row, at, frame].transpose(1, 2) for at in (step, following))
    now = levels[step]
    clean = predict_clean(model, start, now, embed(prompts))
    kept = (levels[following] / now.clamp_min(1e-6))[:, None, :, None, None]
    missed = (clean + kept * (start - clean) - end).square()
    return (missed * (now > 0)[:, None, :, None, None]).mean() / (1 - CLEAN_FRAMES)


def _renoise_loss(model: Network, student: Student, states: Tensor, prompts: Tensor, rng: Generator) -> Tensor:
    """From noise, or from its own clip taken back to a random level, to the end of the trajectory."""
    levels, end = student_levels(student), states[:, -1]
    step = int(torch.randint(len(student.steps), (), generator=rng))
    noisy = states[:, 0]
    if step:
        fresh = draw_noise(len(states), rng, step).to(states.device)
        with torch.no_grad():
            before = run_renoise(model, prompts, torch.cat([noisy[:, None], fresh[:, 1:]], 1), _until(levels, step))
        noisy = _mixed(before, fresh[:, 0], levels[step].expand(len(states)))
    clean = predict_clean(model, noisy, levels[step].expand(len(states)), embed(prompts))
    return (clean - end).square().mean()


class Matching(nn.Module):
    """Distribution matching: the student, the frozen base, and a critic that follows what the student makes."""

    def __init__(self, student: Student, generator: WanTransformer3DModel, critic: WanTransformer3DModel) -> None:
        super().__init__()
        self.kind, self.generator, self.critic = student, generator, critic

    def loss(self, base: WanTransformer3DModel, batch: int, rng: Generator) -> Tensor:
        """Return the loss of the student's turn, or more often of the critic's."""
        prompts = draw_prompts(batch, rng)
        if float(torch.rand((), generator=rng)) > GENERATOR_TURNS:
            with torch.no_grad():
                made = self._make(prompts, rng)
            return denoising_loss(self.critic, made, embed(prompts), rng)
        made = self._make(prompts, rng)
        level = shifted(torch.rand(batch, generator=rng)).clamp(0.02, 0.98).to(made.device)
        with torch.no_grad():
            noisy = _mixed(made, draw_noise(batch, rng)[:, 0].to(made.device), level)
            real = predict_guided(base, noisy, level, prompts)
            seen = predict_clean(self.critic, noisy, level, embed(prompts))
            size = (made - real).abs().mean(dim=(1, 2, 3, 4), keepdim=True).clamp_min(1e-3)
            wanted = made - (seen - real) / size
        return 0.5 * (made - wanted).square().mean()

    def _make(self, prompts: Tensor, rng: Generator) -> Tensor:
        """Sample a clip as the student does, stopped at a random step; gradients flow through that step alone."""
        levels, count = student_levels(self.kind), len(prompts)
        step = int(torch.randint(len(self.kind.steps), (), generator=rng))
        noise = draw_noise(count, rng, len(self.kind.steps)).to(device_of(self.generator))
        noisy = noise[:, 0]
        if step:
            with torch.no_grad():
                before = run_renoise(self.generator, prompts, noise, _until(levels, step))
            noisy = _mixed(before, noise[:, step], levels[step].expand(count))
        return predict_clean(self.generator, noisy, levels[step].expand(count), embed(prompts))


def landing_error(model: Network, student: Student, given: Trajectories) -> float:
    """Return the mean squared distance between where the student's own sampling and the base's trajectory end."""
    rng = torch.Generator().manual_seed(0)
    later = draw_noise(len(given.prompts), rng, len(student.steps))[:, 1:]
    noise = torch.cat([given.states[:, :1].float(), later], dim=1)
    device = device_of(model)
    missed = [
        (sample_student(model, student, prompts, start.to(device)) - end.to(device)).square().sum()
        for prompts, start, end in in_portions([given.prompts, noise, given.states[:, -1].float()])
    ]
    return float(sum(missed)) / given.states[:, -1].numel()


def device_of(model: nn.Module) -> torch.device:
    """Return the device that holds the model's weights."""
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def _until(levels: Tensor, step: int) -> Tensor:
    """Return the levels of a run that is stopped before its step `step`, whose last clip is its result."""
    return torch.cat([levels[:step], levels[-1:]])


def _mixed(clean: Tensor, noise: Tensor, level: Tensor) -> Tensor:
    share = _wide(level).to(clean.device)
    return (1 - share) * clean + share * noise


def _wide(values: Tensor) -> Tensor:
    return values[:, None, None, None, None]
