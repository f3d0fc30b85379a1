"""Which pair of models a source and a target mean, for commands that sample from them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from loraport.cli.options import need
from loraport.errors import InputError, MismatchError, SettingsError
from loraport.sampling.providers import known_place, owner_of

if TYPE_CHECKING:
    from loraport.sampling.pair import Pair

SAMPLED = "a diffusers pipeline (folder or Hub id), or toy:base and toy:STUDENT of the embedded family, or its folders"
SampledSource = Annotated[
    str, typer.Option("--source", metavar="MODEL", help=f"What the LoRA was trained on: {SAMPLED}.")
]
SampledTarget = Annotated[str, typer.Option("--target", metavar="MODEL", help="The distilled model, likewise.")]
Clips = Annotated[int, typer.Option(min=2, help="How many clips are drawn for each purpose.")]


@dataclass(frozen=True)
class Sampling:
    """The flags that say how pipelines are sampled; the embedded family has its own ways."""

    prompts: Annotated[
        str | None, typer.Option(metavar="FILE", help="Pipelines: prompts, one a line; a built-in list without it.")
    ] = None
    frames: Annotated[int, typer.Option(min=1, help="Pipelines: frames of a clip.")] = 17
    size: Annotated[str, typer.Option(metavar="HEIGHTxWIDTH", help="Pipelines: size of a clip in pixels.")] = "256x448"
    source_steps: Annotated[int, typer.Option(min=1, help="Pipelines: steps of the source.")] = 30
    source_guidance: Annotated[float, typer.Option(help="Pipelines: guidance of the source.")] = 5.0
    target_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Pipelines: steps of the target; 4, or as many as its own timesteps (FastWan's 3)."),
    ] = None
    target_timesteps: Annotated[
        str | None,
        typer.Option(
            metavar="T,T,...",
            help="Pipelines that re-noise: the timesteps at which the target looks, of 1000; "
            "FastWan's are 1000,757,522.",
        ),
    ] = None
    target_guidance: Annotated[float, typer.Option(help="Pipelines: guidance of the target; 1 is none.")] = 1.0
    batch: Annotated[int, typer.Option(min=1, help="Pipelines: clips sampled at once.")] = 1
    offload: Annotated[bool, typer.Option("--offload", help="Pipelines: keep on the device only what computes.")] = (
        False
    )


BY_DEFAULT = Sampling()


def sampled(command: Callable[..., None]) -> Callable[..., None]:
    """The command with a flag for each field of its parameter `sampling`, in that one's place."""
    own = inspect.signature(command, eval_str=True)
    flags = inspect.signature(Sampling, eval_str=True).parameters

    @wraps(command)
    def run(**given: Any) -> None:
        sampling = Sampling(**{name: given.pop(name) for name in flags})
        command(**given, sampling=sampling)

    shown: list[inspect.Parameter] = []
    for name, parameter in own.parameters.items():
        shown += flags.values() if name == "sampling" else [parameter]
    run.__signature__ = own.replace(parameters=shown)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    return run


def open_pair(source: str, target: str, sampling: Sampling, device: str) -> Pair:
    """The pair, each model's weights opened when it is first sampled.

    Raises InputError where the two cannot be sampled.
    """
    source, target = known_place(source), known_place(target)
    need("diffusers", "peft", "transformers", extra="sample")
    if (owner := owner_of(Path(source))) is not None:
        _refuse_sampling(sampling)
        return owner.open(Path(source), Path(target.removeprefix("source+")))
    if owner_of(Path(target)) is not None:
        raise MismatchError(f"{target} is of the embedded family and {source} is not; give its base as the source")
    if "+" in target and not Path(target).exists():
        raise MismatchError(f"{target}: bake the accelerator into its model first (loraport merge), then score that")
    return _pipelines(_repository(source), _repository(target), sampling, device)


def _refuse_sampling(sampling: Sampling) -> None:
    """Raise SettingsError for flags of pipelines beside the embedded family, which would not look at them."""
    if given := [field.name for field in fields(sampling) if getattr(sampling, field.name) != field.default]:
        words = ", ".join(name.replace("_", "-") for name in given)
        raise SettingsError(f"{words} would do nothing here: the embedded family has its own ways; leave it out")


def _repository(text: str) -> str:
    """The whole pipeline that a preset's transformer lies in; any other place as it is."""
    from loraport.files.models.presets import location

    return location(text).removesuffix(":transformer")


def _pipelines(source: str, target: str, sampling: Sampling, device: str) -> Pair:
    from loraport.compute import find_device
    from loraport.sampling.prompts import read_prompts
    from loraport.sampling.wan_pipelines import PipelinePair, PipelineSettings

    height, _, width = sampling.size.partition("x")
    if not (height.isdecimal() and width.isdecimal()):
        raise InputError(f"size {sampling.size!r} is not HEIGHTxWIDTH, 256x448 for one")
    settings = PipelineSettings(
        prompts=read_prompts(sampling.prompts), frames=sampling.frames, height=int(height), width=int(width),
        source_steps=sampling.source_steps, source_guidance=sampling.source_guidance,
        target_steps=sampling.target_steps, target_timesteps=_numbers(sampling.target_timesteps),
        target_guidance=sampling.target_guidance,
        offload=sampling.offload, device=find_device(device), batch=sampling.batch,
    )  # fmt: skip
    return PipelinePair(source, target, settings)


def _numbers(text: str | None) -> tuple[float, ...]:
    try:
        return () if text is None else tuple(float(word) for word in text.split(","))
    except ValueError as error:
        raise SettingsError(f"target timesteps {text!r} are no numbers; write 1000,757,522 for one") from error
