"""Schedulers of diffusers' pipelines: a target's noise levels, fresh noise for each clip, runs from a level onwards."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import FlowMatchLCMScheduler, SchedulerMixin
from torch import Generator, Tensor

from loraport.errors import MismatchError, SettingsError
from loraport.sampling.pair import Sampler
from loraport.sampling.pipeline_files import FASTVIDEO, opening, pipeline_class, read_json

DMD_TIMES, DMD_SHIFT = (1000.0, 757.0, 522.0), 8.0
"""FastVideo's own: `dmd_denoising_steps` of both FastWan configurations (configs/pipelines/wan.py), and the shift that
`DmdDenoisingStage` sets whatever the model (pipelines/stages/denoising.py)."""
STEPS = 4
"""Of a target whose levels are its scheduler's."""


def find_sampler(folder: Path, steps: int | None, times: Sequence[float]) -> Sampler:
    """Return how the target in a folder is sampled: at `times` where given, else in `steps` of its own scheduler.

    A timestep stands for the nearest level that the scheduler was trained at, as in FastVideo.
    Raises SettingsError for steps and times that contradict each other, MismatchError for what diffusers does not know.
    """
    dmd = pipeline_class(folder) == FASTVIDEO
    grid: Any = FlowMatchLCMScheduler(shift=DMD_SHIFT) if dmd else own_scheduler(folder)
    name = type(grid).__name__
    renoises = isinstance(grid, FlowMatchLCMScheduler) or bool(grid.config.get("stochastic_sampling"))
    if times and not renoises:
        raise SettingsError(
            f"target timesteps are for targets that re-noise, but {name} in {folder} has levels of its own; give "
            "--target-steps"
        )
    if not times and not dmd:
        levels, own_times = _of_steps(grid, STEPS if steps is None else steps, folder)
        return Sampler(name, levels, own_times, renoises, "the pipeline's own scheduler")
    wanted = tuple(times) or DMD_TIMES
    if steps is not None and steps != len(wanted):
        shown = ",".join(f"{time:g}" for time in wanted)
        raise SettingsError(f"{folder} is sampled at timesteps {shown}, not in {steps} steps; give --target-timesteps")
    reason = "as given" if times else f"FastVideo's own of a {FASTVIDEO}"
    return Sampler(name, _nearest(grid, wanted), wanted, True, reason)


def own_scheduler(folder: Path) -> Any:
    """Return the scheduler of a pipeline's folder. Raises MismatchError for one that diffusers does not know."""
    name = str(read_json(folder / "scheduler" / "scheduler_config.json").get("_class_name", "none"))
    kind: Any = getattr(diffusers, name, None)
    if not (isinstance(kind, type) and issubclass(kind, SchedulerMixin)):
        raise MismatchError(f"{folder} has a scheduler that diffusers does not know: {name}")
    with opening("scheduler", folder):
        return kind.from_pretrained(folder, subfolder="scheduler")  # type: ignore[attr-defined]


def _of_steps(scheduler: Any, steps: int, folder: Path) -> tuple[tuple[float, ...], tuple[float, ...]]:
    scheduler.set_timesteps(steps)
    sigmas = [float(sigma) for sigma in getattr(scheduler, "sigmas", ())]
    if len(sigmas) != steps + 1 or not 0.9 <= sigmas[0] <= 1 or sigmas[-1] > 0.05:
        raise MismatchError(f"the noise levels of {type(scheduler).__name__} in {folder} do not run from 1 to 0")
    return (*sigmas[:-1], 0.0), tuple(float(time) for time in scheduler.timesteps)


def _nearest(scheduler: Any, times: Sequence[float]) -> tuple[float, ...]:
    """Return the levels of the nearest of the scheduler's training timesteps, and the 0 at the end."""
    if any(now <= then for now, then in pairwise((*times, 0.0))) or not 900 <= times[0] <= 1000:
        shown = ",".join(f"{time:g}" for time in times)
        raise SettingsError(f"target timesteps {shown} do not fall from 1000 towards 0; write 1000,757,522 for one")
    nearest = [int((scheduler.timesteps - time).abs().argmin()) for time in times]
    return (*(float(scheduler.sigmas[index]) for index in nearest), 0.0)


class Renoising(FlowMatchLCMScheduler):  # type: ignore[misc]
    """diffusers' re-noising scheduler at given levels; the fresh noise of a clip comes from the clip's own generator.

    x ← (1 − σ') (x − σ v) + σ' ε. Noise from one generator for all would depend on the batch that a clip is in.
    """

    @classmethod
    def of(cls, sampler: Sampler, generators: Sequence[Generator]) -> Renoising:
        """Return a scheduler for one run of the clips that the generators belong to."""
        self = cls(shift=1.0)
        self.sampler, self.generators = sampler, list(generators)
        return self

    def set_timesteps(self, num_inference_steps: int | None = None, device: Any = None, **_: Any) -> None:
        """Set the sampler's levels, and the timesteps that the network gets."""
        super().set_timesteps(sigmas=self.sampler.levels[:-1], timesteps=self.sampler.times, device=device)

    def step(self, *args: Any, **options: Any) -> Any:
        """Go from one evaluation's velocity to the next state."""
        return super().step(*args, **{**options, "generator": self.generators})


def fresh_noise(generators: Sequence[Generator], shape: Sequence[int]) -> Tensor:
    """Return the noise that `Renoising` draws at a step, for clips of one shape: [n, …]."""
    return torch.cat([torch.randn((1, *shape), generator=generator) for generator in generators])


class PartialSchedule:
    """A scheduler whose run begins at a given noise level: there first, then at its own levels below it."""

    def __init__(self, scheduler: Any, level: float) -> None:
        self.scheduler, self.level = scheduler, level

    def __getattr__(self, name: str) -> Any:
        return getattr(self.scheduler, name)

    def set_timesteps(self, num_inference_steps: int, device: Any = None) -> None:
        """Set the scheduler's own levels, cut off above the given one."""
        self.scheduler.set_timesteps(num_inference_steps, device=device)
        sigmas, times = self.scheduler.sigmas, self.scheduler.timesteps
        below = int((sigmas >= self.level - NEAR).sum())
        if below == 0 or abs(float(sigmas[below - 1]) - self.level) <= NEAR:
            first = max(below - 1, 0)
            self.scheduler.sigmas, self.scheduler.timesteps = sigmas[first:], times[first:]
            return
        time = self.level * self.scheduler.config.num_train_timesteps
        self.scheduler.sigmas = torch.cat([sigmas.new_tensor([self.level]), sigmas[below:]])
        self.scheduler.timesteps = torch.cat([times.new_tensor([time]), times[below:]])


NEAR = 1e-4
"""Levels this close are the same: schedulers write 1 as 0.999999."""
