"""Pipelines of diffusers that clips are made with: what each is called with, and how its latents become pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from loraport.errors import InputError, MismatchError
from loraport.sampling.pipeline_files import CAUSAL, FASTVIDEO, folds, pipeline_class, read_json, whole

Texts = Mapping[str, Tensor]
"""What a pipeline is called with in place of a prompt: embeddings, one row a prompt."""


@dataclass(frozen=True)
class Geometry:
    """How clips and latents are related: a latent stands for `time` frames (but the first) of space × space pixels."""

    channels: int
    time: int
    space: int
    unit: tuple[int, int]
    """Pixels in which height and width have to be given."""

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Return the shape of one clip's latents; of an image, without a time."""
        shape = (height // self.space, width // self.space)
        return (self.channels, *shape) if self.time == 0 else (self.channels, (frames - 1) // self.time + 1, *shape)


@dataclass(frozen=True)
class Kind:
    """One class of pipelines."""

    pipeline: str
    """Its name in diffusers."""
    networks: tuple[str, ...]
    encoders: tuple[str, ...]
    """The parts with weights that prompts need, and nothing else."""
    geometry: Callable[[Path], Geometry]
    encode: Callable[[Any, str, str, bool, torch.device], Texts]
    """(pipeline, prompt, negative prompt, guided, device)."""
    rescale: Callable[[Any, Tensor], Tensor]
    """(VAE, latents) -> what the VAE decodes."""
    size: tuple[int, int]
    frames: int
    fps: float
    steps: int
    guidance: float
    few_steps: int
    """Of a distilled model, where the user names none."""
    few_guidance: float
    batched_guidance: bool = False
    """Whether guidance takes one pass of twice the size."""
    own_guidance: bool = True
    """Whether the strength of guidance is an argument of the call; else the pipeline has a guider."""

    @property
    def images(self) -> bool:
        """Whether it makes images."""
        return self.fps == 0

    def passes(self, steps: int, guidance: float) -> int:
        """Return how many passes of its network one clip takes."""
        return steps * (2 if guidance > 1 and not self.batched_guidance else 1)


def find_kind(folder: Path, name: str) -> Kind:
    """Return the kind of a pipeline in a folder. Raises MismatchError for one that is not sampled here."""
    own = pipeline_class(folder)
    own = "WanPipeline" if own == FASTVIDEO else own
    if own == CAUSAL:
        raise MismatchError(
            f"{name} is a {CAUSAL}, which no pipeline of diffusers runs: write the merged model (loraport merge), make "
            "clips with its own program, and give their folder to loraport evaluate"
        )
    if own not in KINDS:
        raise MismatchError(
            f"{name} is a {own}, and clips are made with {', '.join(KINDS)} and {FASTVIDEO}; for any other, write the "
            "merged model (loraport merge), make clips with its own program, and give their folder to loraport evaluate"
        )
    return KINDS[own]


def check_size(kind: Kind, geometry: Geometry, frames: int, height: int, width: int, name: str) -> None:
    """Raise InputError for a size of clips that a pipeline would change without being asked."""
    rows, columns = geometry.unit
    if height < rows or width < columns or height % rows or width % columns:
        raise InputError(
            f"size {height}x{width} is not a multiple of the {rows} × {columns} pixels in which {name} works; give "
            "multiples of them"
        )
    if kind.images and frames != 1:
        raise InputError(f"{name} makes images, which have one frame; leave --frames out")
    if not kind.images and (frames - 1) % geometry.time:
        fitting = (frames - 1) // geometry.time * geometry.time + 1
        raise InputError(
            f"{frames} frames are not {geometry.time}·n + 1, in which {name} works; give {fitting} or "
            f"{fitting + geometry.time}"
        )


def decode(kind: Kind, pipe: Any, vae: Any, latents: Tensor) -> NDArray[np.uint8]:
    """Return the pictures of latents: [clips, frames, height, width, 3]."""
    pictures = vae.decode(kind.rescale(vae, latents.to(vae.device, vae.dtype)), return_dict=False)[0]
    if kind.images:
        values = pipe.image_processor.postprocess(pictures, output_type="np", do_denormalize=[True] * len(latents))[
            :, None
        ]
    else:
        values = pipe.video_processor.postprocess_video(pictures, output_type="np")
    return as_bytes(values)


def as_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Return values from 0 to 1 as bytes, rounded to the nearest."""
    return np.ascontiguousarray((np.asarray(values, np.float32) * 255).round().clip(0, 255).astype(np.uint8))


def _wan_geometry(folder: Path) -> Geometry:
    time, space = folds(folder)
    place = folder / "transformer" / "config.json"
    config = read_json(place)
    taken, given = (whole(config, f"{side}_channels", 16, place) for side in ("in", "out"))
    if taken != given:
        raise MismatchError(
            f"{folder}: its network takes {taken} channels and gives {given}, so it needs more than noise and a "
            "prompt, such as an image; only models that make clips from text alone are compared"
        )
    patch = config.get("patch_size", (1, 2, 2))
    return Geometry(taken, time, space, (space * int(patch[1]), space * int(patch[2])))


def _hunyuan_geometry(folder: Path) -> Geometry:
    place = folder / "vae" / "config.json"
    config = read_json(place)
    channels, time, space = (
        whole(config, key, default, place)
        for key, default in (
            ("latent_channels", 32), ("temporal_compression_ratio", 4), ("spatial_compression_ratio", 16)
        )
    )  # fmt: skip
    own = folder / "transformer" / "config.json"
    patch = whole(read_json(own), "patch_size", 1, own)
    return Geometry(channels, time, space, (space * patch, space * patch))


def _unet_geometry(folder: Path) -> Geometry:
    place = folder / "vae" / "config.json"
    widths = read_json(place).get("block_out_channels", (1, 1, 1, 1))
    own = folder / "unet" / "config.json"
    config = read_json(own)
    space = 2 ** (len(widths) - 1)
    halvings = 2 ** (len(config.get("block_out_channels", (1, 1, 1))) - 1)
    return Geometry(whole(config, "in_channels", 4, own), 0, space, (space * halvings, space * halvings))


def _encode_t5(pipe: Any, prompt: str, negative: str, guided: bool, device: torch.device) -> Texts:
    text, nothing = pipe.encode_prompt(
        prompt, negative_prompt=negative, do_classifier_free_guidance=guided, device=device, max_sequence_length=512
    )  # 512 as in the pipeline's own call: the padding is seen
    return {"prompt_embeds": text} | ({"negative_prompt_embeds": nothing} if guided else {})


_HUNYUAN_TEXTS = ("prompt_embeds", "prompt_embeds_mask", "prompt_embeds_2", "prompt_embeds_mask_2")


def _encode_hunyuan(pipe: Any, prompt: str, negative: str, guided: bool, device: torch.device) -> Texts:
    texts = dict(zip(_HUNYUAN_TEXTS, pipe.encode_prompt(prompt, device=device), strict=True))
    if guided:
        nothing = pipe.encode_prompt(negative or None, device=device)
        texts |= {f"negative_{name}": value for name, value in zip(_HUNYUAN_TEXTS, nothing, strict=True)}
    return texts


def _encode_sdxl(pipe: Any, prompt: str, negative: str, guided: bool, device: torch.device) -> Texts:
    encoded = pipe.encode_prompt(
        prompt, device=device, do_classifier_free_guidance=guided, negative_prompt=negative or None
    )
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: value for name, value in zip(names, encoded, strict=True) if value is not None}


def _denormalised(vae: Any, latents: Tensor) -> Tensor:
    mean, std = (
        torch.tensor(values).view(1, vae.config.z_dim, 1, 1, 1).to(latents.device, latents.dtype)
        for values in (vae.config.latents_mean, vae.config.latents_std)
    )
    return latents / (1.0 / std) + mean  # in the pipeline's own order of roundings


def _scaled(vae: Any, latents: Tensor) -> Tensor:
    mean, std = (getattr(vae.config, f"latents_{name}", None) for name in ("mean", "std"))
    if mean is None or std is None:
        return latents / vae.config.scaling_factor
    mean, std = (torch.tensor(one).view(1, -1, 1, 1).to(latents.device, latents.dtype) for one in (mean, std))
    return latents * std / vae.config.scaling_factor + mean


_T5 = ("text_encoder",)
_TWO = ("text_encoder", "text_encoder_2")
_WAN = ("transformer", "transformer_2")
KINDS: Mapping[str, Kind] = {
    kind.pipeline: kind
    for kind in (
        Kind("WanPipeline", _WAN, _T5, _wan_geometry, _encode_t5, _denormalised, (480, 832), 81, 16, 50, 5.0, 4, 1.0),
        Kind("AnyFlowPipeline", ("transformer",), _T5, _wan_geometry, _encode_t5, _denormalised,
             (480, 832), 81, 16, 50, 1.0, 4, 1.0, batched_guidance=True),
        Kind("HunyuanVideo15Pipeline", ("transformer",), _TWO, _hunyuan_geometry, _encode_hunyuan, _scaled,
             (480, 832), 121, 24, 50, 6.0, 50, 1.0, own_guidance=False),
        Kind("StableDiffusionXLPipeline", ("unet",), _TWO, _unet_geometry, _encode_sdxl, _scaled,
             (1024, 1024), 1, 0, 30, 5.0, 30, 5.0, batched_guidance=True),
    )
}  # fmt: skip
