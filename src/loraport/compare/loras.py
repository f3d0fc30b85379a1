"""The adapter files of all columns: the LoRA itself, those that users name, and those that methods make of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from loraport._version import __version__
from loraport.compare.grid.columns import SOURCE, Column
from loraport.digests import text_digest
from loraport.errors import InputError
from loraport.files.disk.user_paths import expand_home
from loraport.files.lora.locate import local_lora, open_lora
from loraport.inputs.config import RankRule, TransferConfig
from loraport.inputs.experts import adapters_of_both, experts
from loraport.inputs.recipes import chosen_recipes
from loraport.plain_json import json_text
from loraport.progress import Progress
from loraport.transfers.passes import Pass, transfer_passes

LORAS = "loras"


@dataclass(frozen=True)
class Making:
    """Between which models adapters are made, as a transfer names them, and how."""

    lora: str
    source: str
    target: str
    folder: Path
    two_experts: bool = False
    lora_part: str | None = None
    preset: str | None = None
    device: str = "auto"
    cache: str | None = None


@dataclass(frozen=True)
class FilledColumns:
    """The columns with their files, and what was lost on the way there."""

    columns: tuple[Column, ...]
    made_from: Mapping[str, str]
    """Column -> a hash of what its files were made from."""
    notes: tuple[str, ...]
    lost: tuple[str, ...]


def fill_columns(
    columns: Sequence[Column],
    making: Making,
    earlier: Mapping[str, Mapping[str, Any]],
    identity: str,
    progress: Progress,
) -> FilledColumns:
    """Return the columns with their files; what an earlier start has made of the same inputs is taken as it is.

    `earlier`: the rows of a manifest by column; `identity`: of both models. Raises what a transfer raises.
    """
    sha = open_lora(local_lora(making.lora)).sha256
    made_from = {
        column.name: text_digest(
            __version__, sha, identity, str(column.method), str(making.preset), str(making.lora_part)
        )
        for column in columns
        if column.lora == "made"
    }
    notes: list[str] = []
    lost: list[str] = []
    wanted = [one for one in columns if one.name in made_from and not _is_made(one, making, earlier, made_from)]
    if wanted:
        progress.step("transferring " + ", ".join(str(column.method) for column in wanted), 0, 3)
        batch = transfer_passes(_passes(wanted, making), progress=progress)
        for run in batch.runs:
            notes += run.warnings
            if run.lost:
                lost.append(f"{run.output}: {len(run.keys.dropped)} keys of the LoRA are not in it")
        if batch.not_written:
            one = batch.not_written[0]
            raise InputError(f"{one.output} is not made: {one.reason}; leave its method out of --with")
    filled = tuple(_filled(column, making) for column in columns)
    return FilledColumns(filled, made_from, tuple(dict.fromkeys(notes)), tuple(lost))


def _is_made(
    column: Column, making: Making, earlier: Mapping[str, Mapping[str, Any]], made_from: Mapping[str, str]
) -> bool:
    """Return whether the files of a column are there, unchanged, and made of the same inputs."""
    row = earlier.get(column.name, {})
    files = _outputs(column, making)
    if row.get("made_from") != made_from[column.name] or not all(Path(file).is_file() for file in files):
        return False
    return row.get("file") == _sha(files)


def _outputs(column: Column, making: Making) -> list[str]:
    path = making.folder / LORAS / f"{column.folder}.safetensors"
    if not making.two_experts:
        return [str(path)]
    return [str(path.with_name(f"{path.stem}-{word}{path.suffix}")) for word in ("high_noise", "low_noise")]


def _passes(columns: Sequence[Column], making: Making) -> tuple[Pass, ...]:
    (making.folder / LORAS).mkdir(parents=True, exist_ok=True)
    recipes = chosen_recipes([str(column.method) for column in columns], making.preset)
    template = TransferConfig(
        making.lora, making.source, making.target, str(making.folder), lora_part=making.lora_part, format="diffusers",
        device=making.device, cache=making.cache,
    )  # fmt: skip
    both = experts([making.lora], making.source, making.target) if making.two_experts else (None,)
    passes = []
    for number, expert in enumerate(both):
        own = template
        if expert is not None:
            own = replace(
                template, lora=expert.lora, source=expert.source, target=expert.target,
                lora_part=expert.lora_part or making.lora_part, accelerator_part=expert.accelerator_part,
            )  # fmt: skip
        configs = tuple(
            replace(
                own, method=recipe.name, settings=recipe.settings, rank=RankRule.of(recipe),
                output=_outputs(column, making)[number],
            )
            for column, recipe in zip(columns, recipes, strict=True)
        )  # fmt: skip
        passes.append(Pass(configs, expert.title if expert else "", expert.notes if expert else ()))
    return tuple(passes)


def _filled(column: Column, making: Making) -> Column:
    """Return a column with what is to be loaded for each of its model's networks."""
    if column.lora is None:
        return column
    if column.lora == "made":
        files: list[str] = _outputs(column, making)
        parts: list[str | None] = [None] * len(files)
    else:
        part = making.lora_part if column.model == SOURCE else None
        place = str(column.place)
        pairs = adapters_of_both(place) if making.two_experts else ((place, None),)
        files = [str(local_lora(one)) for one, _ in pairs]
        parts = [own or part for _, own in pairs]
    return replace(column, files=tuple(files), parts=tuple(parts), sha256=_sha(files))


def _sha(files: Sequence[str]) -> str:
    digests = [open_lora(expand_home(file)).sha256 for file in files]
    return digests[0] if len(digests) == 1 else text_digest(*digests)


def columns_json(filled: FilledColumns) -> list[dict[str, Any]]:
    """Return the manifest's rows of the columns."""
    return [{**column.as_json(), "made_from": filled.made_from.get(column.name)} for column in filled.columns]


def identity_of(source: Mapping[str, Any], target: Mapping[str, Any]) -> str:
    """Return a hash of both models, wherever they lie."""
    rows = [{key: value for key, value in one.items() if key != "name"} for one in (source, target)]
    return text_digest(json_text(rows, sort_keys=True))
