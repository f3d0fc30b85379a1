"""Which pair of models a source and a target mean, for commands that sample from them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from loraport.cli.options import need
from loraport.errors import InputError, MismatchError, SettingsError

if TYPE_CHECKING:
    from loraport.effect.pair import Pair

SAMPLED = "a diffusers pipeline (folder or Hub id), or toy:base and toy:STUDENT of the embedded family, or its folders"
SampledSource = Annotated[
    str, typer.Option("--source", metavar="MODEL", help=f"What the LoRA was trained on: {SAMPLED}.")
]
SampledTarget = Annotated[str, typer.Option("--target", metavar="MODEL", help="The distilled model, likewise.")]
Clips = Annotated[int, typer.Option(min=1, help="How many clips are drawn for each purpose.")]
Prompts = Annotated[
    str | None, typer.Option(metavar="FILE", help="Pipelines: prompts, one a line; a built-in list without it.")
]
Frames = Annotated[int, typer.Option(min=1, help="Pipelines: frames of a clip.")]
Size = Annotated[str, typer.Option(metavar="HEIGHTxWIDTH", help="Pipelines: size of a clip in pixels.")]
SourceSteps = Annotated[int, typer.Option(min=1, help="Pipelines: steps of the source.")]
SourceGuidance = Annotated[float, typer.Option(help="Pipelines: guidance of the source.")]
TargetSteps = Annotated[
    int | None,
    typer.Option(min=1, help="Pipelines: steps of the target; 4, or as many as its own timesteps (FastWan's 3)."),
]
TargetTimesteps = Annotated[
    str | None,
    typer.Option(
        metavar="T,T,...",
        help="Pipelines that re-noise: the timesteps at which the target looks, of 1000; FastWan's are 1000,757,522.",
    ),
]
TargetGuidance = Annotated[float, typer.Option(help="Pipelines: guidance of the target; 1 is none.")]
Offload = Annotated[bool, typer.Option("--offload", help="Pipelines: keep on the device only what computes.")]
Batch = Annotated[int, typer.Option(min=1, help="Pipelines: clips sampled at once.")]


@dataclass(frozen=True)
class Sampling:
    """The flags that say how pipelines are sampled; the embedded family has its own ways."""

    prompts: str | None = None
    frames: int = 17
    size: str = "256x448"
    source_steps: int = 30
    source_guidance: float = 5.0
    target_steps: int | None = None
    target_timesteps: str | None = None
    target_guidance: float = 1.0
    offload: bool = False
    batch: int = 1
    device: str = "auto"


def known_place(text: str) -> str:
    """The text, or the place in the embedded family that `toy:NAME` means."""
    from loraport.toy.family import embedded_place

    return embedded_place(text) or text


def open_pair(source: str, target: str, sampling: Sampling) -> Pair:
    """The pair, each model's weights opened when it is first sampled.

    Raises InputError where the two cannot be sampled.
    """
    source, target = known_place(source), known_place(target)
    need("diffusers", "peft", "transformers", extra="toy")
    from loraport.toy.pair import is_embedded, open_embedded

    if is_embedded(Path(source)):
        accelerator = target.removeprefix("source+")
        return open_embedded(Path(source), Path(accelerator))
    if is_embedded(Path(target)):
        raise MismatchError(f"{target} is of the embedded family and {source} is not; give its base as the source")
    if "+" in target and not Path(target).exists():
        raise MismatchError(f"{target}: bake the accelerator into its model first (loraport merge), then score that")
    return _pipelines(_repository(source), _repository(target), sampling)


def _repository(text: str) -> str:
    """The whole pipeline that a preset's transformer lies in; any other place as it is."""
    from loraport.runs.presets import place

    return place(text).removesuffix(":transformer")


def _pipelines(source: str, target: str, sampling: Sampling) -> Pair:
    from loraport.effect.pipelines import PipelinePair, PipelineSettings
    from loraport.effect.prompts import read_prompts
    from loraport.runs.prepare import find_device

    height, _, width = sampling.size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"size {sampling.size!r} is not HEIGHTxWIDTH, 256x448 for one")
    settings = PipelineSettings(
        prompts=read_prompts(sampling.prompts), frames=sampling.frames, height=int(height), width=int(width),
        source_steps=sampling.source_steps, source_guidance=sampling.source_guidance,
        target_steps=sampling.target_steps, target_timesteps=_numbers(sampling.target_timesteps),
        target_guidance=sampling.target_guidance,
        offload=sampling.offload, device=find_device(sampling.device), batch=sampling.batch,
    )  # fmt: skip
    return PipelinePair(source, target, settings)


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return () if text is None else tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise SettingsError(f"target timesteps {text!r} are no numbers; write 1000,757,522 for one") from error
