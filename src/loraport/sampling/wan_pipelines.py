"""Two of diffusers' Wan pipelines as a `Pair`, the target perhaps AnyFlow's: latents only, one in memory at a time."""

from __future__ import annotations

import gc
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from loraport.errors import MismatchError
from loraport.files.models.presets import open_model
from loraport.sampling.accelerators import Acceleration, bake, read_accelerators
from loraport.sampling.hooks import adapted, add_updates, linear_layers
from loraport.sampling.network import empty_network, open_pipeline
from loraport.sampling.pair import Chain, Clips, Evaluation, Passes, Updates
from loraport.sampling.pipeline_files import (
    FASTVIDEO,
    FLOW_MAP,
    channels,
    check_pipeline,
    check_size,
    folds,
    identity,
    pipeline_class,
    read_json,
    sparse_gates,
)
from loraport.sampling.places import find_model
from loraport.sampling.schedules import PartialSchedule, Renoising, find_sampler, fresh_noise, own_scheduler


@dataclass(frozen=True)
class PipelineSettings:
    """How both pipelines are sampled."""

    prompts: tuple[str, ...]
    frames: int = 17
    height: int = 256
    width: int = 448
    source_steps: int = 30
    source_guidance: float = 5.0
    target_steps: int | None = None
    """None: 4, or as many as the target's own timesteps are."""
    target_timesteps: tuple[float, ...] = ()
    """The timesteps of a target that re-noises; empty: those of its pipeline."""
    target_guidance: float = 1.0
    offload: bool = False
    pipeline: str | None = None
    """What has text encoder and scheduler for a network that is named alone; None: the source."""
    device: str | torch.device = "cpu"
    batch: int = 1


class PipelinePair:
    """Two folders of `WanPipeline`, or one of `AnyFlowPipeline` as the target; `Pair` says what each member means.

    For a target that follows one trajectory, the source's states at the target's levels are interpolated on its own
    trajectory, which is straight between two steps. For a target that re-noises, the source samples a clip from each
    level, which is taken back to the next level with the very noise that the target gets.
    """

    def __init__(self, source: str, target: str, settings: PipelineSettings) -> None:
        """Read headers only. Raises InputError for a place that is not a pipeline, MismatchError for another class."""
        self.settings, self.batch = settings, settings.batch
        self.models = {
            "source": find_model(source, pipeline=settings.pipeline),
            "target": find_model(target, source=source, pipeline=settings.pipeline),
        }
        self.places = {role: model.folder for role, model in self.models.items()}
        for role, text in (("source", source), ("target", target)):
            check_pipeline(self.places[role], text)
        kinds = {role: pipeline_class(folder) for role, folder in self.places.items()}
        if kinds["source"] in (FASTVIDEO, FLOW_MAP):
            raise MismatchError(
                f"{source} is a {kinds['source']}, a distilled model; give the model that the LoRA was made for"
            )
        self.flow_map = kinds["target"] == FLOW_MAP
        self._check()
        self.open: tuple[str, Any] | None = None
        self.own: Any = None
        """The open pipeline's scheduler; in a run another one may stand in its place."""
        self.embedded: dict[str, Tensor] = {}
        self.sampler = find_sampler(self.places["target"], settings.target_steps, settings.target_timesteps)
        gates = sparse_gates(self._weights("target"))
        self.acceleration = {role: self._accelerators(role) for role in self.models}
        self.notes = (
            *(note for model in self.models.values() for note in model.notes),
            *(note for one in self.acceleration.values() for note in one.notes),
            *_notes(target, gates),
        )
        levels, guided = self.sampler.levels, settings.target_guidance > 1
        evaluations = tuple(Evaluation(j, now, abs(then - now), 1.0) for j, (now, then) in enumerate(pairwise(levels)))
        self.no_evaluations_reason = (
            "the target runs with guidance, which mixes two passes; use --target-guidance 1" if guided else None
        )
        self.evaluations = () if guided else evaluations
        steps = self._source_steps() * (2 if settings.source_guidance > 1 else 1)
        self.passes = Passes(steps, len(evaluations) * (2 if guided else 1), len(self.evaluations))
        shown = {
            key: str(value) for key, value in asdict(settings).items() if key not in ("batch", "offload", "pipeline")
        }
        course = f"{json.dumps(self.sampler.as_json())} {json.dumps(shown)}"
        self.source_identity, self.target_identity = (f"{self._identity(role)} {course}" for role in self.models)

    def _check(self) -> None:
        """Refuse models that make clips of different kinds, or not of the size that was asked for."""
        source, target = (channels(self.places[role]) for role in ("source", "target"))
        if source != target:
            raise MismatchError(
                f"the source's latents have {source} channels and the target's {target}; such models cannot be compared"
            )
        for place in self.places.values():
            check_size(place, self.settings.height, self.settings.width)

    def _weights(self, role: str) -> str:
        """Return where the weights of a role's network are."""
        return self.models[role].network or str(self.places[role] / "transformer")

    def _identity(self, role: str) -> str:
        """Return a text that changes with any file that is sampled."""
        model, own = self.models[role], identity(self.places[role])
        if model.network is None and not model.accelerators:
            return own
        return f"{own} {json.dumps(model.as_json())}"

    def _accelerators(self, role: str) -> Acceleration:
        named = self.models[role].accelerators
        return read_accelerators(named, open_model(self._weights(role))) if named else NO_ACCELERATION

    def prompts(self, clips: Clips) -> tuple[str, ...]:
        known = self.settings.prompts
        return tuple(known[number % len(known)] for number in range(clips.start, clips.stop))

    def layers(self) -> Mapping[str, tuple[int, int]]:
        folder = self.places["target"] / "transformer"
        network = empty_network(read_json(folder / "config.json"), folder)
        return {name: (layer.out_features, layer.in_features) for name, layer in linear_layers(network).items()}

    @torch.no_grad()
    def source(self, clips: Clips, updates: Updates) -> Chain:
        return self._renoised(clips, updates) if self.sampler.renoises else self._passed(clips, updates)

    @torch.no_grad()
    def target(self, clips: Clips, updates: Updates) -> Tensor:
        scheduler = Renoising.of(self.sampler, list(clips.generators("steps"))) if self.sampler.renoises else None
        return self._sample("target", clips, updates, self._noise(clips), scheduler)[0][-1]

    @torch.no_grad()
    def velocity(self, evaluation: Evaluation, clips: Clips, chain: Chain) -> Tensor:
        network: Any = self.network()
        device, dtype = self.settings.device, network.dtype
        state = chain.states[:, evaluation.step].to(device, dtype)
        now = self.sampler.times[evaluation.step]
        text = self._text("target", self.prompts(clips))[0].to(device, dtype)
        with adapted(network, self.acceleration["target"].updates):
            if self.flow_map:
                then = (*self.sampler.times, 0.0)[evaluation.step + 1]
                return flow_map_velocity(network, state, now, then, text).float().cpu()
            time = torch.full((len(clips),), now, device=device)
            return network(state, timestep=time, encoder_hidden_states=text, return_dict=False)[0].float().cpu()

    def network(self) -> nn.Module:
        return self._opened("target").transformer

    def to_error_space(self, latents: Tensor) -> Tensor:
        return latents

    def _passed(self, clips: Clips, updates: Updates) -> Chain:
        """Return the source's one trajectory at the target's levels."""
        states, levels = self._sample("source", clips, updates, self._noise(clips))
        kept = at_levels(torch.stack(states, dim=1), levels, self.sampler.levels)
        widths = torch.tensor(self.sampler.levels).diff().reshape(1, -1, *(1 for _ in kept.shape[2:]))
        return Chain(kept, kept.diff(dim=1) / widths)

    def _renoised(self, clips: Clips, updates: Updates) -> Chain:
        """Sample a clip from each level, and take it back to the next level with the noise that the target gets."""
        states, velocities, generators = [self._noise(clips)], [], list(clips.generators("steps"))
        self._opened("source")
        for now, then in pairwise(self.sampler.levels):
            clean = self._sample("source", clips, updates, states[-1], PartialSchedule(self.own, now))[0][-1]
            velocities.append((states[-1] - clean) / now)
            noise = fresh_noise(generators, clean.shape[1:])
            states.append((1 - then) * clean + then * noise if then > 0 else clean)
        return Chain(torch.stack(states, dim=1), torch.stack(velocities, dim=1))

    def _source_steps(self) -> int:
        """Return the steps of one of the source's chains."""
        scheduler, steps = own_scheduler(self.places["source"]), self.settings.source_steps
        count = 0
        for level in self.sampler.levels[:-1] if self.sampler.renoises else (1.0,):
            schedule = PartialSchedule(scheduler, level)
            schedule.set_timesteps(steps)
            count += len(schedule.timesteps)
        return count

    def _sample(
        self, role: str, clips: Clips, updates: Updates, start: Tensor, scheduler: Any = None
    ) -> tuple[list[Tensor], Sequence[float]]:
        """Run the pipeline itself. Returns its states, `start` first, and their levels."""
        settings, pipe = self.settings, self._opened(role)
        pipe.scheduler = self.own if scheduler is None else scheduler
        states = [start]
        source = role == "source"
        frames_first = self.flow_map and not source

        def keep(_: Any, step: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            latents = values["latents"].float().cpu()
            states.append(latents.transpose(1, 2).contiguous() if frames_first else latents)
            return {}

        text, nothing = self._text(role, self.prompts(clips))
        both = add_updates(self.acceleration[role].updates, updates)
        with adapted(pipe.transformer, both), torch.random.fork_rng():
            torch.manual_seed(next(clips.generators("steps")).initial_seed())  # for schedulers that draw noise
            pipe(
                prompt_embeds=text,
                negative_prompt_embeds=nothing,
                latents=start.to(settings.device),
                height=settings.height,
                width=settings.width,
                num_frames=settings.frames,
                num_inference_steps=settings.source_steps if source else len(self.sampler.times),
                guidance_scale=settings.source_guidance if source else settings.target_guidance,
                callback_on_step_end=keep,
                output_type="latent",
            )
        return states, [float(sigma) for sigma in pipe.scheduler.sigmas]

    def _noise(self, clips: Clips) -> Tensor:
        settings = self.settings
        time, space = folds(self.places["source"])
        shape = (
            channels(self.places["source"]),
            (settings.frames - 1) // time + 1,
            settings.height // space,
            settings.width // space,
        )
        return torch.stack([torch.randn(shape, generator=generator) for generator in clips.generators("noise")])

    def _text(self, role: str, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Return embeddings of the prompts and of the empty one, each computed once by the role's own text encoder."""
        pipe = self._opened(role)
        for prompt in dict.fromkeys(("", *prompts)):
            if f"{role} {prompt}" not in self.embedded:
                encoded = pipe.encode_prompt(
                    prompt, do_classifier_free_guidance=False, device=self.settings.device, max_sequence_length=512
                )  # 512 as in the pipeline's own call: its padding is seen
                self.embedded[f"{role} {prompt}"] = encoded[0].cpu()
        text = torch.cat([self.embedded[f"{role} {prompt}"] for prompt in prompts]).to(self.settings.device)
        nothing = self.embedded[f"{role} "].repeat(len(prompts), 1, 1).to(self.settings.device)
        guidance = self.settings.source_guidance if role == "source" else self.settings.target_guidance
        return text, nothing if guidance > 1 else None

    def _opened(self, role: str) -> Any:
        """Return the role's pipeline; the other one leaves the memory first."""
        if self.open is not None and self.open[0] == role:
            return self.open[1]
        self.open = None
        gc.collect()
        dtype = torch.float32 if torch.device(self.settings.device).type == "cpu" else torch.bfloat16
        pipe = open_pipeline(self.models[role], dtype)
        bake(pipe.transformer, self.acceleration[role], None)
        if self.settings.offload:
            pipe.enable_model_cpu_offload(device=self.settings.device)
        else:
            pipe.to(self.settings.device)
        self.open, self.own = (role, pipe), pipe.scheduler
        return pipe


NO_ACCELERATION = Acceleration({}, {}, ())


def flow_map_velocity(network: nn.Module, state: Tensor, now: float, then: float, text: Tensor) -> Tensor:
    """Return a flow map's mean velocity between two timesteps: its network takes frames before channels."""
    times = (torch.full(state.shape[:1] + state.shape[2:3], time, device=state.device) for time in (now, then))
    timestep, r_timestep = times
    velocity: Tensor = network(
        state.transpose(1, 2), timestep=timestep, r_timestep=r_timestep, encoder_hidden_states=text, return_dict=False
    )[0]
    return velocity.transpose(1, 2)


def at_levels(states: Tensor, levels: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """Return the states [n, steps + 1, …] of a trajectory at other noise levels, interpolated between its own."""
    interpolated = []
    for level in wanted:
        after = next((i for i, own in enumerate(levels) if own <= level), len(levels) - 1)
        before = max(after - 1, 0)
        width = levels[before] - levels[after]
        share = (levels[before] - level) / width if width else 0.0
        share = min(max(share, 0.0), 1.0)
        interpolated.append((1 - share) * states[:, before] + share * states[:, after])
    return torch.stack(interpolated, dim=1)


def _notes(target: str, gates: int) -> tuple[str, ...]:
    if not gates:
        return ()
    return (
        f"{target}: its {gates} gates of video sparse attention are left out, which diffusers' network does not have; "
        "every token attends to all others instead, which is not quite what FastVideo samples",
    )
