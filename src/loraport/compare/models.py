"""The two models of a comparison, found and checked before the work, and the prompts that both get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from loraport.compare.grid.columns import SOURCE, TARGET, Column
from loraport.compare.grid.requests import ClipModel, Comparison, Course, Prompt
from loraport.compare.loras import Making
from loraport.compare.pair_model import ROLE, PairModel
from loraport.compare.pipelines.pipeline_model import PipelineModel
from loraport.compare.trigger import find_trigger, with_trigger
from loraport.errors import MismatchError, SettingsError
from loraport.files.lora.locate import local_lora, open_lora
from loraport.sampling.pair import Clips, ShownPair
from loraport.sampling.places import find_model
from loraport.sampling.prompts import built_in_prompts, read_prompts
from loraport.sampling.providers import PairProvider, owner_of


@dataclass(frozen=True)
class OpenedModels:
    """Both models, and what clips of both have in common."""

    by_role: Mapping[str, ClipModel]
    prompts: tuple[Prompt, ...]
    trigger: str | None
    lora_sha256: str
    making: Making
    same_noise: bool
    images: bool
    notes: tuple[str, ...]


def open_models(asked: Comparison, columns: Sequence[Column]) -> OpenedModels:
    """Find both models. Raises InputError for what cannot be sampled, or not be compared."""
    owner = owner_of(Path(asked.source))
    return _pipelines(asked, columns) if owner is None else _pair(asked, columns, owner)


def _pair(asked: Comparison, columns: Sequence[Column], owner: PairProvider) -> OpenedModels:
    if asked.prompts is not None or asked.trigger or asked.course != Course(device=asked.course.device):
        raise SettingsError(
            "options of prompts and sampling would do nothing here: the embedded family has prompts and ways of its "
            "own; leave them out"
        )
    pair = owner.open(Path(asked.source), Path(asked.target.removeprefix("source+")))
    if not isinstance(pair, ShownPair):
        raise MismatchError(f"{asked.source} and {asked.target} can be sampled, but not be shown as clips")
    names = {SOURCE: asked.source, TARGET: asked.target}
    models = {role: PairModel(pair, role, Path(name).name, columns) for role, name in names.items()}
    count = asked.first or len(built_in_prompts())
    texts = pair.prompts(Clips(ROLE, 0, count, prompt_seed=0))
    making = Making(
        asked.lora, asked.source, asked.target, asked.folder, False, asked.lora_part, asked.preset, "cpu", asked.cache
    )
    files = open_lora(local_lora(asked.lora))
    return OpenedModels(models, _numbered(texts), None, files.sha256, making, True, False, ())


def _pipelines(asked: Comparison, columns: Sequence[Column]) -> OpenedModels:
    if owner_of(Path(asked.target)) is not None:
        raise MismatchError(f"{asked.target} is of the embedded family and {asked.source} is not; give its base, too")
    course = asked.course
    found = {
        SOURCE: find_model(asked.source, pipeline=course.pipeline, whole=True),
        TARGET: find_model(asked.target, source=asked.source, pipeline=course.pipeline, whole=True),
    }
    models = {role: PipelineModel(one, role, course, columns) for role, one in found.items()}
    source, target = models[SOURCE], models[TARGET]
    if source.kind.images != target.kind.images:
        raise MismatchError(f"of {asked.source} and {asked.target} one makes images and one clips; give two of a kind")
    if len(source.networks) != len(target.networks):
        raise MismatchError(f"of {asked.source} and {asked.target} only one has two experts; give two of a kind")
    if (source.frames, source.height, source.width) != (target.frames, target.height, target.width):
        raise SettingsError(
            f"the source makes clips of {source.frames} frames of {source.height}x{source.width} and the target of "
            f"{target.frames} of {target.height}x{target.width} by default; name one size for both: --frames and --size"
        )
    notes = list(dict.fromkeys((*source.notes, *target.notes)))
    same = source.noise_shape() == target.noise_shape()
    if not same:
        shapes = " and ".join(" × ".join(map(str, model.noise_shape())) for model in models.values())
        notes.append(f"latents are {shapes}: source and target do not start from the same noise, the columns of one do")
    files = open_lora(local_lora(asked.lora))
    trigger = _trigger(asked, files.metadata, files.path, notes)
    texts = read_prompts(asked.prompts)[: asked.first]
    making = Making(
        asked.lora, source.transfer_place(asked.source), target.transfer_place(asked.target), asked.folder,
        len(source.networks) > 1, asked.lora_part, asked.preset, str(course.device), asked.cache,
    )  # fmt: skip
    prompts = _numbered([with_trigger(text, trigger) for text in texts])
    return OpenedModels(models, prompts, trigger, files.sha256, making, same, source.kind.images, tuple(notes))


def _trigger(asked: Comparison, metadata: Mapping[str, str], place: Path, notes: list[str]) -> str | None:
    """Return the word that goes before every prompt, and note where it comes from, or that there is none."""
    if asked.trigger is not None:
        return asked.trigger.strip() or None
    word = find_trigger(metadata, place)
    if word is None:
        notes.append(
            f"{place.name} names no trigger word; if it has one, give it (--trigger WORD), else it may show no effect"
        )
    else:
        notes.append(f"prompts begin with {word!r}, the trigger word that the LoRA names; --trigger '' leaves it out")
    return word


def _numbered(texts: Sequence[str]) -> tuple[Prompt, ...]:
    digits = max(2, len(str(len(texts))))
    return tuple(Prompt(f"{number + 1:0{digits}}", text, number) for number, text in enumerate(texts))
