"""Diffusers' Wan pipelines as a pair: each with its own scheduler, latents only, one in memory at a time."""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import SchedulerMixin, WanPipeline, WanTransformer3DModel
from torch import Tensor, nn

from loraport.effect.pair import Chain, Clips, Look, Passes, Updates
from loraport.effect.updates import adapted, linear_layers
from loraport.errors import InputError, MismatchError
from loraport.weights.hub import fetch_pipeline

RENOISING = ("FlowMatchLCMScheduler", "LCMScheduler")


@dataclass(frozen=True)
class PipelineSettings:
    """How both pipelines are sampled."""

    prompts: tuple[str, ...]
    frames: int = 17
    height: int = 256
    width: int = 448
    source_steps: int = 30
    source_guidance: float = 5.0
    target_steps: int = 4
    target_guidance: float = 1.0
    offload: bool = False
    device: str | torch.device = "cpu"
    batch: int = 1


class PipelinePair:
    """Two folders of `WanPipeline`; see `loraport.effect.pair.Pair` for what each member means.

    The source's states at the target's levels are read off its own trajectory, which is straight between two steps.
    """

    def __init__(self, source: str, target: str, settings: PipelineSettings) -> None:
        """Reads configurations only. Raises InputError for what is no pipeline, MismatchError for another class."""
        self.settings, self.batch = settings, settings.batch
        self.places = {"source": pipeline_folder(source), "target": pipeline_folder(target)}
        self.open: tuple[str, Any] | None = None
        self.embedded: dict[str, Tensor] = {}
        self.levels = _levels(self.places["target"], settings.target_steps)
        renoising = _scheduler_name(self.places["target"]) in RENOISING
        guided = settings.target_guidance > 1
        self.no_looks = _why_not(renoising, guided)
        widths = list(zip(self.levels, self.levels[1:], strict=False))
        self.looks = tuple(Look(j, now, abs(then - now), 1.0) for j, (now, then) in enumerate(widths))
        self.looks = () if self.no_looks else self.looks
        steps = settings.source_steps * (2 if settings.source_guidance > 1 else 1)
        self.passes = Passes(steps, settings.target_steps * (2 if guided else 1), len(self.looks))
        shown = {key: str(value) for key, value in asdict(settings).items() if key not in ("batch", "offload")}
        self.source_identity = f"{_identity(self.places['source'])} {self.levels} {json.dumps(shown)}"
        self.target_identity = f"{_identity(self.places['target'])} {json.dumps(shown)}"

    def prompts(self, clips: Clips) -> tuple[str, ...]:
        known = self.settings.prompts
        return tuple(known[number % len(known)] for number in range(clips.start, clips.stop))

    def layers(self) -> Mapping[str, tuple[int, int]]:
        config = _read_json(self.places["target"] / "transformer" / "config.json")
        with torch.device("meta"):
            network = WanTransformer3DModel.from_config(config)
        return {name: (layer.out_features, layer.in_features) for name, layer in linear_layers(network).items()}

    @torch.no_grad()
    def source(self, clips: Clips, updates: Updates) -> Chain:
        states, levels = self._sample("source", clips, updates)
        kept = at_levels(torch.stack(states, dim=1), levels, self.levels)
        widths = torch.tensor(self.levels).diff().reshape(1, -1, *(1 for _ in kept.shape[2:]))
        return Chain(kept, kept.diff(dim=1) / widths)

    @torch.no_grad()
    def target(self, clips: Clips, updates: Updates) -> Tensor:
        return self._sample("target", clips, updates)[0][-1]

    @torch.no_grad()
    def velocity(self, look: Look, clips: Clips, chain: Chain) -> Tensor:
        network: Any = self.network()
        device, dtype = self.settings.device, network.dtype
        state = chain.states[:, look.step].to(device, dtype)
        scale = self._opened("target").scheduler.config.num_train_timesteps
        time = torch.full((len(clips),), look.level * scale, device=device)
        text = self._text("target", self.prompts(clips))[0].to(device, dtype)
        return network(state, timestep=time, encoder_hidden_states=text, return_dict=False)[0].float().cpu()

    def network(self) -> nn.Module:
        return self._opened("target").transformer

    def seen(self, latents: Tensor) -> Tensor:
        return latents

    def _sample(self, role: str, clips: Clips, updates: Updates) -> tuple[list[Tensor], Sequence[float]]:
        """The states of a run of the pipeline itself, the noise first, and their levels."""
        settings, pipe = self.settings, self._opened(role)
        start = self._noise(clips, pipe)
        states = [start]

        def keep(_: Any, step: int, time: Any, values: dict[str, Tensor]) -> dict[str, Tensor]:
            states.append(values["latents"].float().cpu())
            return {}

        text, nothing = self._text(role, self.prompts(clips))
        source = role == "source"
        with adapted(pipe.transformer, updates), torch.random.fork_rng():
            torch.manual_seed(next(clips.generators("steps")).initial_seed())  # for schedulers that draw noise
            pipe(
                prompt_embeds=text,
                negative_prompt_embeds=nothing,
                latents=start.to(settings.device),
                height=settings.height,
                width=settings.width,
                num_frames=settings.frames,
                num_inference_steps=settings.source_steps if source else settings.target_steps,
                guidance_scale=settings.source_guidance if source else settings.target_guidance,
                callback_on_step_end=keep,
                output_type="latent",
            )
        return states, [float(sigma) for sigma in pipe.scheduler.sigmas]

    def _noise(self, clips: Clips, pipe: Any) -> Tensor:
        settings, channels = self.settings, pipe.transformer.config.in_channels
        time, space = _folds(self.places["source"])
        shape = (channels, (settings.frames - 1) // time + 1, settings.height // space, settings.width // space)
        return torch.stack([torch.randn(shape, generator=generator) for generator in clips.generators("noise")])

    def _text(self, role: str, prompts: Sequence[str]) -> tuple[Tensor, Tensor | None]:
        """Embeddings of the prompts and of the empty one, each computed once by the role's own text encoder."""
        pipe = self._opened(role)
        for prompt in dict.fromkeys(("", *prompts)):
            if f"{role} {prompt}" not in self.embedded:
                found = pipe.encode_prompt(prompt, do_classifier_free_guidance=False, device=self.settings.device)[0]
                self.embedded[f"{role} {prompt}"] = found.cpu()
        text = torch.cat([self.embedded[f"{role} {prompt}"] for prompt in prompts]).to(self.settings.device)
        nothing = self.embedded[f"{role} "].repeat(len(prompts), 1, 1).to(self.settings.device)
        guidance = self.settings.source_guidance if role == "source" else self.settings.target_guidance
        return text, nothing if guidance > 1 else None

    def _opened(self, role: str) -> Any:
        """The role's pipeline; the other one leaves the memory first."""
        if self.open is not None and self.open[0] == role:
            return self.open[1]
        self.open = None
        gc.collect()
        dtype = torch.float32 if torch.device(self.settings.device).type == "cpu" else torch.bfloat16
        pipe = WanPipeline.from_pretrained(self.places[role], vae=None, torch_dtype=dtype)
        pipe.set_progress_bar_config(disable=True)
        if self.settings.offload:
            pipe.enable_model_cpu_offload(device=self.settings.device)
        else:
            pipe.to(self.settings.device)
        self.open = (role, pipe)
        return pipe


def at_levels(states: Tensor, levels: Sequence[float], wanted: Sequence[float]) -> Tensor:
    """The states [n, steps + 1, …] of a trajectory at other noise levels, on the straight lines between its own."""
    found = []
    for level in wanted:
        after = next((i for i, own in enumerate(levels) if own <= level), len(levels) - 1)
        before = max(after - 1, 0)
        width = levels[before] - levels[after]
        share = (levels[before] - level) / width if width else 0.0
        share = min(max(share, 0.0), 1.0)
        found.append((1 - share) * states[:, before] + share * states[:, after])
    return torch.stack(found, dim=1)


def pipeline_folder(place: str) -> Path:
    """The folder of a `WanPipeline`, fetched where it is a Hub id.

    Raises InputError for what is no pipeline, MismatchError for one of another class, or with two transformers.
    """
    folder = Path(place) if Path(place).exists() else fetch_pipeline(place)
    index = folder / "model_index.json"
    if not index.is_file():
        raise InputError(
            f"{place} has no model_index.json: to sample from it, give a diffusers pipeline, with its scheduler, "
            "tokenizer and text encoder"
        )
    facts = _read_json(index)
    if facts.get("_class_name") != WanPipeline.__name__:
        raise MismatchError(
            f"{place} is a {facts.get('_class_name')}; what is sampled here is WanPipeline only: where the networks "
            "are Wan's, make a folder of them with a scheduler of diffusers that samples as it does, and give that"
        )
    if (facts.get("transformer_2") or [None])[0] is not None:
        raise MismatchError(f"{place} has two transformers, of which one run samples both; that is not supported yet")
    return folder


def _why_not(renoising: bool, guided: bool) -> str | None:
    if renoising:
        return "the target's scheduler re-noises between its steps, and a pipeline's run cannot be entered there"
    return "the target runs with guidance, which mixes two passes; use --target-guidance 1" if guided else None


def _levels(folder: Path, steps: int) -> tuple[float, ...]:
    """The target's noise levels, from its own scheduler: from 1 down to 0."""
    kind: Any = getattr(diffusers, _scheduler_name(folder), None)
    if kind is None or not issubclass(kind, SchedulerMixin):
        raise MismatchError(f"{folder} has a scheduler that diffusers does not know: {_scheduler_name(folder)}")
    scheduler: Any = kind.from_pretrained(folder, subfolder="scheduler")
    scheduler.set_timesteps(steps)
    sigmas = [float(sigma) for sigma in getattr(scheduler, "sigmas", ())]
    if len(sigmas) != steps + 1 or not 0.9 <= sigmas[0] <= 1 or sigmas[-1] > 0.05:
        raise MismatchError(f"the noise levels of {_scheduler_name(folder)} in {folder} do not run from 1 to 0")
    return (*sigmas[:-1], 0.0)


def _scheduler_name(folder: Path) -> str:
    return str(_read_json(folder / "scheduler" / "scheduler_config.json").get("_class_name", "none"))


def _folds(folder: Path) -> tuple[int, int]:
    """How many frames and pixels one latent stands for; Wan's 4 and 8 where the folder does not say."""
    place = folder / "vae" / "config.json"
    config = _read_json(place) if place.is_file() else {}
    return int(config.get("scale_factor_temporal", 4)), int(config.get("scale_factor_spatial", 8))


def _read_json(path: Path) -> dict[str, Any]:
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read: {error}; is the folder a whole pipeline?") from error
    if not isinstance(facts, dict):
        raise InputError(f"{path} is no configuration; is the folder a whole pipeline?")
    return facts


def _identity(folder: Path) -> str:
    """Of a pipeline as it lies on the disk: every file's name, size and time; a changed file is another pipeline."""
    stats = [(path.relative_to(folder).as_posix(), path.stat()) for path in sorted(folder.rglob("*")) if path.is_file()]
    lines = [f"{name} {stat.st_size} {stat.st_mtime_ns}" for name, stat in stats]
    return "pipeline " + hashlib.sha256("\n".join([str(folder.resolve()), *lines]).encode()).hexdigest()
