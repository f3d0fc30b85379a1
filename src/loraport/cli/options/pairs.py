"""The options of commands that sample two models, and the pair of models that they mean."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar

import typer

from loraport.cli.options import FILES, NEEDED, PairOptions, need
from loraport.errors import InputError, SettingsError
from loraport.sampling.providers import known_place, owner_of, pair_at

if TYPE_CHECKING:
    from loraport.sampling.pair import Pair
    from loraport.sampling.wan_pipelines import PipelineSettings

SAMPLED = (
    "a diffusers pipeline (folder, Hub id or preset), a network alone with --pipeline for the rest, or toy:base and "
    "toy:STUDENT of the embedded family"
)
SAMPLING = "Sampling"
Clips = Annotated[
    int,
    typer.Option(
        min=2, metavar="INT", help="How many clips are drawn for each purpose; at least 8 to be sure of anything.",
        rich_help_panel=SAMPLING,
    ),
]  # fmt: skip
Adapter = Annotated[
    str,
    typer.Option("--lora", metavar="LORA", help="The adapter, as it was trained on the source.", rich_help_panel=FILES),
]


@dataclass(frozen=True)
class SampledModels(PairOptions):
    """Two models that can be sampled."""

    source: Annotated[
        str,
        typer.Option(metavar="MODEL", help=f"What the LoRA was trained on: {SAMPLED}. {NEEDED}", show_default=False),
    ] = ""
    target: Annotated[
        str,
        typer.Option(
            metavar="MODEL",
            help="The distilled model, likewise; or MODEL+ACCELERATOR[*STRENGTH]+..., where MODEL may be the word "
            f"source, and ACCELERATOR a name from `loraport presets`. {NEEDED}",
            show_default=False,
        ),
    ] = ""


@dataclass(frozen=True)
class SamplingOptions:
    """How pipelines are sampled; the embedded family has its own ways."""

    heading: ClassVar[str] = "Sampling of pipelines (the embedded family has its own settings)"
    prompts: Annotated[
        str | None,
        typer.Option(metavar="FILE", help="Prompts, one a line.", show_default="a built-in list"),
    ] = None
    frames: Annotated[int, typer.Option(min=1, metavar="INT", help="Frames of a clip.")] = 17
    size: Annotated[str, typer.Option(metavar="HEIGHTxWIDTH", help="Size of a clip in pixels.")] = "256x448"
    source_steps: Annotated[int, typer.Option(min=1, metavar="INT", help="Steps of the source.")] = 30
    source_guidance: Annotated[float, typer.Option(metavar="NUMBER", help="Guidance of the source.")] = 5.0
    target_steps: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="INT", help="Steps of the target.",
            show_default="4, or as many as its own timesteps: FastWan's 3",
        ),
    ] = None  # fmt: skip
    target_timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...", help="Of a target that adds noise again at each step: its timesteps, of 1000; FastWan's "
            "are 1000,757,522.",
            show_default="the scheduler's own",
        ),
    ] = None  # fmt: skip
    target_guidance: Annotated[float, typer.Option(metavar="NUMBER", help="Guidance of the target; 1 is none.")] = 1.0
    pipeline: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL", help="The pipeline with text encoder and scheduler for a network that is named alone.",
            show_default="the source",
        ),
    ] = None  # fmt: skip
    batch: Annotated[int, typer.Option(min=1, metavar="INT", help="Clips sampled at once.")] = 1
    offload: Annotated[bool, typer.Option("--offload", help="Keep only what computes on the device.")] = False


BY_DEFAULT = SamplingOptions()


def open_pair(source: str, target: str, sampling: SamplingOptions, device: str) -> Pair:
    """Return the pair, each model's weights opened when it is first sampled.

    Raises InputError where the two cannot be sampled.
    """
    need("diffusers", "peft", "transformers", extra="sample")
    if owner_of(Path(known_place(source))) is not None:
        _refuse_sampling(sampling)
    return pair_at(source, target, lambda: _settings(sampling, device))


def _refuse_sampling(sampling: SamplingOptions) -> None:
    """Raise SettingsError for flags of pipelines beside the embedded family, which would not look at them."""
    if given := [field.name for field in fields(sampling) if getattr(sampling, field.name) != field.default]:
        words = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise SettingsError(f"{words} would do nothing here: the embedded family has its own ways; leave it out")


def _settings(sampling: SamplingOptions, device: str) -> PipelineSettings:
    from loraport.compute import find_device
    from loraport.sampling.prompts import read_prompts
    from loraport.sampling.wan_pipelines import PipelineSettings

    height, width = size_of(sampling.size)
    return PipelineSettings(
        prompts=read_prompts(sampling.prompts), frames=sampling.frames, height=height, width=width,
        source_steps=sampling.source_steps, source_guidance=sampling.source_guidance,
        target_steps=sampling.target_steps, target_timesteps=numbers(sampling.target_timesteps),
        target_guidance=sampling.target_guidance,
        offload=sampling.offload, pipeline=sampling.pipeline, device=find_device(device), batch=sampling.batch,
    )  # fmt: skip


def size_of(text: str) -> tuple[int, int]:
    """Return height and width. Raises InputError for a text that is not HEIGHTxWIDTH."""
    height, _, width = text.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"size {text!r} is not HEIGHTxWIDTH, such as 256x448")
    return int(height), int(width)


def numbers(text: str | None) -> tuple[float, ...]:
    """Return numbers with commas between them. Raises SettingsError for anything else."""
    try:
        return () if text is None else tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise SettingsError(f"target timesteps {text!r} are not numbers; write for example 1000,757,522") from error
