"""Make jobs of what was asked for: each LoRA by each method between its models, with a place for its output."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraport.batches.find import FoundLora, find_loras
from loraport.batches.manifest import ManifestRow, folder_of, is_manifest, read_manifest
from loraport.batches.names import NameTemplate, same_place
from loraport.diagnosis.recommend import recommended
from loraport.diagnosis.rule.advice import is_recommended
from loraport.errors import LoraportError, SettingsError, unknown_name
from loraport.files.accelerator_names import fitted
from loraport.files.disk.user_paths import expand_home
from loraport.inputs.batch import becomes_folder, in_parts
from loraport.inputs.config import RankRule, TransferConfig, chosen_format, chosen_output
from loraport.inputs.open import SHARED_SETTINGS
from loraport.inputs.recipes import chosen_recipes
from loraport.methods.settings import KINDS, Changes, flagged_settings
from loraport.progress import NO_PROGRESS, Progress
from loraport.transfers.results import NotWritten

Pass = tuple[TransferConfig, ...]
"""Jobs that can go through the layers together: between the same models, on the same device."""


@dataclass(frozen=True)
class Request:
    """What the options of a command say of every job; a manifest's row wins over them."""

    template: TransferConfig
    """Everything but the LoRA, the method and the output, which is the folder of the results. Models may be missing."""
    methods: tuple[str, ...] = ("casa",)
    preset: str | None = None
    changes: Changes | None = None
    rank: RankRule | None = None
    """None takes the rank of each method's preset."""
    names: NameTemplate = NameTemplate()  # noqa: RUF009  # a frozen value
    split: bool = False


@dataclass(frozen=True)
class JobPlan:
    """All jobs, by passes, and what of the request makes no job, with the reason."""

    passes: tuple[Pass, ...]
    refused: tuple[NotWritten, ...] = ()

    @property
    def jobs(self) -> tuple[TransferConfig, ...]:
        """All jobs, in the order of their passes."""
        return tuple(job for one in self.passes for job in one)


def plan_jobs(words: Sequence[str], request: Request, *, progress: Progress = NO_PROGRESS) -> JobPlan:
    """Return the jobs of LoRAs, folders, globs and manifests. What is wrong with one of them is in `refused`.

    Raises SettingsError for options that no job can have.
    """
    root = expand_home(request.template.output)
    loras = find_loras([word for word in words if not is_manifest(word)], leave=root)
    refused: list[NotWritten] = []
    jobs: list[TransferConfig] = _jobs(loras, request, refused, progress) if loras else []
    for word in filter(is_manifest, words):
        rows, wrong = read_manifest(word)
        refused += [NotWritten("", str(error), where) for where, error in wrong]
        for row in rows:
            try:
                own = _with_row(request, row)
                found = find_loras([row.lora], below=folder_of(word), leave=root)
                jobs += _jobs(found, own, refused, progress)
            except LoraportError as error:
                reason = str(error) if row.where in str(error) else f"{row.where}: {error}"
                refused.append(NotWritten("", reason, row.lora))
    kept, twice = _without_collisions(jobs)
    return JobPlan(tuple(_passes(kept)), (*refused, *twice))


def _with_row(request: Request, row: ManifestRow) -> Request:
    """Return the request with what a row of a manifest says. Raises SettingsError for values out of range."""
    values = dict(row.fields)
    folder = Path(row.where.rpartition(":")[0])
    if "target" in values:
        values["target"] = fitted(values["target"], values.get("source", request.template.source))
    for name in ("source", "target"):
        if name in values:
            values[name] = placed(values[name], folder_of(str(folder)))
    own = request
    if "output" in values:
        own = replace(own, names=NameTemplate(values.pop("output")))
    if "rank" in values:
        own = replace(own, rank=RankRule.parse(str(values.pop("rank"))))
    if "preset" in values:
        own = replace(own, preset=values.pop("preset"))
    if row.settings:
        own = replace(own, changes={**(own.changes or {}), **_settings(row.settings)})
    if "as" in values:
        values["as_diff"] = chosen_output(values.pop("as")) == "diff"
    if "format" in values:
        values["format"] = chosen_format(values["format"])
    return replace(own, methods=row.methods or own.methods, template=replace(own.template, **values))


def _settings(given: Mapping[str, Any]) -> Changes:
    """Return settings by the names of their options, with or without dashes. Raises SettingsError for wrong ones."""
    known = {row.name: row for kind in KINDS for row in flagged_settings(kind)}
    changes: dict[str, float | int | bool | str] = {}
    for name, value in given.items():
        row = known.get(name.replace("-", "_"))
        if row is None:
            raise unknown_name("setting", name, sorted(known))
        number = row.type is float and type(value) is int
        if type(value) is not row.type and not number:
            raise SettingsError(f"the setting {name} is {value!r}, but it must be {_KINDS_OF_VALUES[row.type]}")
        changes[row.name] = float(value) if number else value
    return changes


_KINDS_OF_VALUES: Mapping[type, str] = {
    float: "a number", int: "a whole number", bool: "true or false", str: "a text",
}  # fmt: skip


def placed(text: str, folder: Path) -> str:
    """Return a place as it is found from a folder, such as a manifest's: a path from there where there is one, else as
    it is written. Of a model with accelerators, each place.
    """
    from loraport.inputs.accelerator import SOURCE, split_target

    for spelled in dict.fromkeys((text, text.replace("\\", "/"))):
        if (folder / expand_home(spelled)).exists():
            return str(folder / expand_home(spelled))
    pieces = split_target(text)
    if pieces is None:
        return text
    model, *accelerators = pieces
    found = [model if model == SOURCE else placed(model, folder)]
    for accelerator in accelerators:
        place, star, strength = accelerator.rpartition("*")
        found.append(placed(place, folder) + star + strength if star else placed(accelerator, folder))
    return "+".join(found)


def _jobs(
    loras: Iterable[FoundLora], request: Request, refused: list[NotWritten], progress: Progress
) -> list[TransferConfig]:
    """Return a job for each LoRA by each method, or by the one that is recommended for it; else it is `refused`."""
    template = request.template
    for name in ("source", "target"):
        if not getattr(template, name):
            raise SettingsError(f"nothing says the {name}; give --{name} MODEL, or {name!r} in the manifest")
    advised = is_recommended(request.methods, request.preset, request.changes)
    named = () if advised else chosen_recipes(request.methods, request.preset, request.changes or {})
    jobs: list[TransferConfig] = []
    for lora in loras:
        template, recipes = request.template, named
        if advised:
            try:
                template, _ = recommended(replace(template, lora=lora.place), progress=progress)
            except LoraportError as error:
                refused.append(NotWritten("", str(error), lora.place))
                continue
            recipes = (template.recipe,)
        for recipe in recipes:
            place = request.names.place(template.output, lora, recipe.name, template.source, template.target)
            job = replace(
                template, lora=lora.place, method=recipe.name, settings=recipe.settings, output=place,
                rank=request.rank or RankRule.of(recipe),
            )  # fmt: skip
            if not becomes_folder(job) and not place.endswith(".safetensors"):
                job = replace(job, output=f"{place}.safetensors")
            jobs += in_parts(job) if request.split else [job]
    return jobs


def _without_collisions(jobs: Iterable[TransferConfig]) -> tuple[list[TransferConfig], list[NotWritten]]:
    """Return the jobs without those that would write over an earlier one's output; the same job twice counts once."""
    kept: dict[str, TransferConfig] = {}
    twice = []
    for job in jobs:
        other = kept.setdefault(same_place(job.output), job)
        if other != job:
            reason = (
                f"{other.lora} by {other.method} would be written to {other.output}, too; tell them apart with --name, "
                'such as --name "{folder}/{name}-{method}-{target}"'
            )
            twice.append(NotWritten(job.output, reason, job.lora, job.method))
    return list(kept.values()), twice


def _passes(jobs: Iterable[TransferConfig]) -> Iterable[Pass]:
    """Return the jobs by what all runs of one pass share, each in the order in which it came first."""
    passes: dict[tuple[object, ...], list[TransferConfig]] = {}
    for job in jobs:
        passes.setdefault(tuple(getattr(job, name) for name in SHARED_SETTINGS), []).append(job)
    return [tuple(own) for own in passes.values()]
