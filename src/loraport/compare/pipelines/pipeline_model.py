"""A diffusers pipeline that makes clips: prompts first, then all latents, then pictures; one part on the device."""

from __future__ import annotations

import gc
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import diffusers
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from loraport.clips.clip import Clip
from loraport.compare.grid.columns import SOURCE, Column
from loraport.compare.grid.requests import OFFLOADS, Course, Emit, Request, groups
from loraport.compare.pipelines.column_adapters import ColumnAdapters
from loraport.compare.pipelines.kinds import Texts, check_size, decode, find_kind
from loraport.compare.pipelines.opened_networks import OpenNetworks, processors
from loraport.compare.pipelines.out_of_memory import no_memory_left
from loraport.compare.pipelines.texts import embed_prompts
from loraport.compute import is_out_of_memory
from loraport.errors import InputError
from loraport.files.disk.atomic import write_whole
from loraport.files.models.checkpoint import Checkpoint, open_checkpoint
from loraport.inputs.experts import both
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport.sampling.network import open_part, quiet
from loraport.sampling.pipeline_files import FASTVIDEO, check_parts, has_two_experts, pipeline_class
from loraport.sampling.places import SampledModel
from loraport.sampling.schedules import Renoising, find_sampler, own_scheduler

TILED = "decoded in tiles"


class PipelineModel:
    """One role of a comparison; see `requests.ClipModel` for what each member means. Opening reads headers only."""

    def __init__(self, found: SampledModel, role: str, course: Course, columns: Sequence[Column]) -> None:
        """Look at the configurations.

        Raises InputError for a pipeline that clips are not made with, and for sizes that it does not take.
        """
        self.found, self.role, self.course, self.columns = found, role, course, columns
        self.name = found.name
        self.kind = find_kind(found.folder, found.name)
        is_source = role == SOURCE
        self.geometry = self.kind.geometry(found.folder)
        self.frames = self.kind.frames if course.frames is None else course.frames
        self.height = course.height or self.kind.size[0]
        self.width = course.width or self.kind.size[1]
        check_size(self.kind, self.geometry, self.frames, self.height, self.width, found.name)
        self.sampler = self._sampler() if self.kind.pipeline == "WanPipeline" else None
        usual = self.kind.steps if is_source else self.kind.few_steps
        asked = course.source_steps if is_source else course.target_steps
        self.steps = len(self.sampler.times) if self.sampler else asked or usual
        guidance = course.source_guidance if is_source else course.target_guidance
        self.guidance = (
            guidance if guidance is not None else self.kind.guidance if is_source else self.kind.few_guidance
        )
        self.cost = self.kind.passes(self.steps, self.guidance)
        self.device = torch.device(course.device)
        self.dtype = torch.float32 if self.device.type == "cpu" else torch.bfloat16
        self.batch, self.offload = course.batch, course.offload
        check_parts(found.folder, ("vae", "scheduler", *self.kind.encoders, *self.networks))
        self.checkpoints: Mapping[str, Checkpoint] = {
            part: open_checkpoint(self._weights(number)) for number, part in enumerate(self.networks)
        }
        self.adapters = ColumnAdapters((), self.checkpoints)
        self.dropped: list[str] = []
        self.notes = found.notes

    def _sampler(self) -> Any:
        """Return the sampler of a model that adds noise again at each step; of any other, None: its own scheduler's."""
        folder, times = self.found.folder, () if self.role == SOURCE else self.course.target_timesteps
        if pipeline_class(folder) != FASTVIDEO and not times:
            scheduler = own_scheduler(folder)
            if not (isinstance(scheduler, diffusers.FlowMatchLCMScheduler) or _is_stochastic(scheduler)):
                return None
        steps = self.course.source_steps if self.role == SOURCE else self.course.target_steps
        return find_sampler(folder, steps, times)

    def as_json(self, progress: Progress = NO_PROGRESS) -> dict[str, Any]:
        return self.found.as_json(progress)

    def sampling(self) -> dict[str, Any]:
        """Return how it is sampled, for the manifest."""
        scheduler = self.sampler.as_json() if self.sampler else type(own_scheduler(self.found.folder)).__name__
        return {
            "pipeline": self.kind.pipeline, "steps": self.steps, "guidance": self.guidance, "scheduler": scheduler,
            "negative": self.course.negative if self.guidance > 1 else None, "size": [self.height, self.width],
            "frames": self.frames, "dtype": str(self.dtype).removeprefix("torch."), "device": str(self.device),
            "batch": self.course.batch,
        }  # fmt: skip

    def noise_shape(self) -> tuple[int, ...]:
        return self.geometry.latent_shape(self.frames, self.height, self.width)

    def transfer_place(self, asked: str) -> str:
        """Return the model as a transfer takes it for its source or target."""
        found = self.found
        if found.network is not None:
            place = found.network
        else:
            place = str(found.folder if len(self.networks) > 1 else found.folder / self.networks[0])
        if asked.startswith("source+"):
            place = "source"
        return "+".join([place, *(f"{one}*{strength:g}" for one, strength in found.accelerators)])

    def _weights(self, number: int) -> str:
        """Return where the weights of one of the networks are."""
        found = self.found
        if found.network is None:
            return str(found.folder / self.networks[number])
        return found.network if len(self.networks) == 1 else both(found.network)[number]

    def prepare(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        self.adapters = ColumnAdapters(columns, self.checkpoints)
        self.dropped = list(self.adapters.notes)

    def make(
        self, requests: Sequence[Request], wanted: Collection[str], kept: Path, emit: Emit, progress: Progress
    ) -> None:
        quiet()
        latents = {request.key: kept / f"{request.key}.safetensors" for request in requests if request.key in wanted}
        missing = {key for key, place in latents.items() if not place.is_file()}
        vae = open_part(self.found.folder, "vae", "VAE", torch.float32)
        if missing:
            used = [request for group in groups(requests, self.batch, missing) for request in group]
            texts = embed_prompts(self.found.folder, self.kind, vae, used, self.adapters, self)
            self._sample_all(requests, missing, latents, vae, texts, progress)
        self._decode_all([one for one in requests if one.key in wanted], latents, vae, emit, progress)

    @property
    def guided(self) -> bool:
        """Whether what a prompt is to avoid counts, too."""
        return self.guidance > 1

    @property
    def networks(self) -> tuple[str, ...]:
        """The parts of the pipeline that are sampled, in the order of their columns' files."""
        return self.kind.networks if has_two_experts(self.found.folder) else self.kind.networks[:1]

    def _sample_all(
        self, requests: Sequence[Request], missing: set[str], places: Mapping[str, Path], vae: Any,
        texts: Mapping[tuple[str, str], Texts], progress: Progress,
    ) -> None:  # fmt: skip
        """Sample the missing latents; out of memory, with smaller batches and more offload."""
        done = counter(progress, f"sampling the {self.role}", len(missing) * self.cost)
        while missing:
            try:
                self._sample_open(requests, missing, places, vae, texts, done)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                progress.note(self._give_way(error))
                gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()

    def _give_way(self, error: BaseException) -> str:
        """Ask for less memory from here on, and return the sentence that says so. Raises InputError for no less."""
        if self.batch > 1:
            self.batch = -(-self.batch // 2)
            return f"out of memory: {self.batch} clips at once from here on"
        further = OFFLOADS.index(self.offload) + 1
        if further == len(OFFLOADS):
            raise no_memory_left(self.found.name, error) from error
        self.offload = OFFLOADS[further]
        return f"out of memory: --offload {self.offload} from here on"

    def _sample_open(
        self, requests: Sequence[Request], missing: set[str], places: Mapping[str, Path], vae: Any,
        texts: Mapping[tuple[str, str], Texts], done: Any,
    ) -> None:  # fmt: skip
        with OpenNetworks(self, vae, self.adapters) as opened:
            self.dropped += [note for note in opened.notes if note not in self.dropped]
            for group in list(groups(requests, self.batch, missing)):
                opened.use(group[0].column)
                counted = 0

                def passed(clips: int = len(group)) -> None:
                    nonlocal counted
                    if counted < self.cost:
                        counted += 1
                        done(clips)

                with opened.counting(passed):
                    words = [texts[one.prompt.text, self.adapters.encoded_with(one.column)] for one in group]
                    latents = self._sample(opened.pipe, group, words)
                done((self.cost - counted) * len(group), f"{group[0].column.name} {group[-1].name}")
                for request, own in zip(group, latents, strict=True):
                    if request.key in missing:
                        _keep(places[request.key], own)
                        missing.discard(request.key)

    def _sample(self, pipe: Any, group: Sequence[Request], texts: Sequence[Texts]) -> Tensor:
        """Return latents as the pipeline itself makes them from these generators."""
        generators = [request.generator() for request in group]
        noise = torch.cat([torch.randn((1, *self.noise_shape()), generator=one) for one in generators])
        if self.sampler is not None:
            pipe.scheduler = Renoising.of(self.sampler, generators)
        words: dict[str, Any] = {
            name: torch.cat([one[name] for one in texts]).to(self.device, _dtype_for(texts[0][name], self.dtype))
            for name in texts[0]
        }
        words |= {"num_frames": self.frames} if not self.kind.images else {}
        words |= {"guidance_scale": self.guidance} if self.kind.own_guidance else {}
        if not self.kind.own_guidance:
            pipe.guider = pipe.guider.new(guidance_scale=self.guidance)
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(group[0].noise)  # for schedulers that draw noise without a generator
            made = pipe(
                **words, latents=noise.to(self.device), height=self.height, width=self.width,
                num_inference_steps=self.steps, generator=generators[0] if len(group) == 1 else generators,
                output_type="latent",
            )  # fmt: skip
        latents: Tensor = (made.images if self.kind.images else made.frames).detach()
        if not torch.isfinite(latents.float()).all():
            raise InputError(
                f"{group[0].column.name}: the {self.role} gave values that are not finite, for the prompt "
                f"{group[0].prompt.text!r:.80}; is the adapter, or the precision, the reason? leave the column out, or "
                "lower its strength"
            )
        return latents

    def _decode_all(
        self, requests: Sequence[Request], places: Mapping[str, Path], vae: Any, emit: Emit, progress: Progress
    ) -> None:
        vae.to(self.device)
        pipe = processors(self.found.folder, self.kind, vae)
        done = counter(progress, f"decoding the {self.role}'s clips", len(requests))
        for request in requests:
            latents = load_file(places[request.key])["latents"][None]
            frames = None
            while frames is None:
                try:
                    frames = decode(self.kind, pipe, vae, latents)[0]
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error):
                        raise
                    if getattr(vae, "use_tiling", True):
                        raise no_memory_left(self.found.name, error) from error
                    progress.note("out of memory: the VAE decodes in tiles from here on, which may show faint seams")
                    vae.enable_tiling()
            notes = (TILED,) if getattr(vae, "use_tiling", False) else ()
            emit(request, Clip(frames, self.kind.fps or 1.0, notes))
            places[request.key].unlink(missing_ok=True)
            done(1, f"{request.column.name} {request.name}")


def _keep(place: Path, latents: Tensor) -> None:
    write_whole(place, save({"latents": latents.cpu().contiguous()}))


def _dtype_for(text: Tensor, dtype: torch.dtype) -> torch.dtype:
    return dtype if text.is_floating_point() else text.dtype


def _is_stochastic(scheduler: Any) -> bool:
    return bool(scheduler.config.get("stochastic_sampling"))
