"""The plan of a run: its jobs in an order that all workers know, in waves that go through the layers together.

A plan holds what was asked for and no contents, so that a thousand LoRAs are planned without opening them; every worker
reads the same plan, or makes the same one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from loraport.batches.checks import AT_ONCE
from loraport.batches.jobs import JobPlan, placed
from loraport.digests import text_digest
from loraport.errors import FileFormatError
from loraport.files.disk.user_paths import expand_home
from loraport.inputs.config import RankRule, TransferConfig
from loraport.lazy_property import lazy_property
from loraport.methods.recipes import find_recipe
from loraport.plain_json import json_text
from loraport.transfers.results import NotWritten
from loraport.workers.machine import Machine

FORM = 1
"""Of a plan's text; another program's plan is refused."""
_OF_A_WORKER: Mapping[str, Any] = {"cache": None, "device": "auto"}
"""What every worker has of its own."""


@dataclass(frozen=True)
class PlannedJob:
    """One LoRA by one method between its models."""

    name: str
    """Of its output, below the place of the results; words joined by slashes."""
    config: TransferConfig
    """Its output is the name, its places are absolute."""

    @lazy_property
    def id(self) -> str:
        """A text that differs for jobs that differ in anything, where their inputs lie included."""
        return text_digest(json_text(config_json(self.config), sort_keys=True))


@dataclass(frozen=True)
class Wave:
    """Jobs between the same models that go through the layers together: weights are read once for all of them."""

    number: int
    jobs: tuple[int, ...]
    """By their numbers in the plan."""


@dataclass(frozen=True)
class RunPlan:
    """All that a run will do."""

    passes: tuple[tuple[PlannedJob, ...], ...]
    """Jobs between the same models."""
    machine: Machine
    refused: tuple[NotWritten, ...] = ()
    """What of the request makes no job."""

    @lazy_property
    def jobs(self) -> tuple[PlannedJob, ...]:
        """All jobs, by which parts and waves number them."""
        return tuple(job for one in self.passes for job in one)

    @lazy_property
    def waves(self) -> tuple[Wave, ...]:
        """All waves, in the order of the jobs."""
        waves: list[Wave] = []
        first = 0
        for one in self.passes:
            for start in range(0, len(one), AT_ONCE):
                count = min(AT_ONCE, len(one) - start)
                waves.append(Wave(len(waves), tuple(range(first + start, first + start + count))))
            first += len(one)
        return tuple(waves)

    @lazy_property
    def wave_of(self) -> Mapping[int, int]:
        """Job -> the number of its wave."""
        return {job: wave.number for wave in self.waves for job in wave.jobs}

    @lazy_property
    def id(self) -> str:
        """A short text that differs for other jobs; on whatever machine."""
        return text_digest(*(f"{number} {job.id}" for number, one in enumerate(self.passes) for job in one))[:16]

    def text(self) -> str:
        """Return it as JSON Lines: a line about the run, then one a job."""
        head = {"plan": FORM, "jobs": len(self.jobs), "machine": self.machine.as_json(),
                "refused": [one._asdict() for one in self.refused]}  # fmt: skip
        rows = (
            {"pass": number, "name": job.name, "config": config_json(job.config)}
            for number, one in enumerate(self.passes)
            for job in one
        )
        return "".join(f"{json_text(row)}\n" for row in (head, *rows))

    @classmethod
    def read(cls, text: str, where: str) -> RunPlan:
        """Return the plan in a text. Raises FileFormatError for what is none, or another version's."""
        try:
            head, *rows = (json.loads(line) for line in text.splitlines())
            if head["plan"] != FORM or head["jobs"] != len(rows):
                raise ValueError(f"form {head['plan']}, {len(rows)} of {head['jobs']} jobs")
            passes: dict[int, list[PlannedJob]] = {}
            for row in rows:
                passes.setdefault(int(row["pass"]), []).append(PlannedJob(row["name"], config_from(row["config"])))
            refused = tuple(NotWritten(**one) for one in head["refused"])
            return cls(tuple(map(tuple, passes.values())), Machine.from_json(head["machine"]), refused)
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
            raise FileFormatError(
                f"{where} is no plan of this version ({type(error).__name__}: {error}); begin anew with --fresh"
            ) from error


def make_plan_of_run(jobs: JobPlan, folder: str, machine: Machine) -> RunPlan:
    """Return the plan of jobs whose outputs were named below a folder, or below a URL."""
    root, here = Path(expand_home(folder)), Path.cwd()
    return RunPlan(
        tuple(tuple(_planned(job, root, here) for job in one) for one in jobs.passes), machine, tuple(jobs.refused)
    )


def _planned(job: TransferConfig, root: Path, here: Path) -> PlannedJob:
    name = Path(job.output).relative_to(root).as_posix()
    places: dict[str, Any] = {place: placed(getattr(job, place), here) for place in ("lora", "source", "target")}
    return PlannedJob(name, replace(job, **places, **_OF_A_WORKER, output=name))


def config_json(config: TransferConfig) -> dict[str, Any]:
    """Return a configuration as plain values; `config_from` makes the same one of them."""
    return {**asdict(config), "settings": asdict(config.recipe.settings)}


def config_from(value: Mapping[str, Any]) -> TransferConfig:
    """Return the configuration of plain values. Raises SettingsError, TypeError and KeyError for what is none."""
    kind = type(find_recipe(value["method"]).settings)
    several = {name: tuple(value[name]) for name in ("include", "exclude", "qkv")}
    return TransferConfig(
        **{**value, **several, "settings": kind(**value["settings"]), "rank": RankRule(**value["rank"])}
    )


def lora_state(place: str) -> list[list[Any]]:
    """Return size and time of the files of a LoRA; empty where its place is no path, or holds more than one LoRA would.

    The same state means the same content, as it does for a run that goes on after an interruption.
    """
    path = expand_home(place)
    try:
        files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
        return [[one.name, one.stat().st_size, one.stat().st_mtime_ns] for one in files]
    except OSError:
        return []


def conflict(mine: RunPlan, other: RunPlan) -> str:
    """Return a job that another run makes otherwise, in words; an empty text where both go together."""
    theirs = {job.name: job for job in other.jobs}
    for job in mine.jobs:
        twin = theirs.get(job.name)
        if twin is not None and twin.id != job.id:
            return f"{job.name}: {_difference(job.config, twin.config)}"
    return ""


def _difference(mine: TransferConfig, other: TransferConfig) -> str:
    ours, theirs = config_json(mine), config_json(other)
    for name, value in ours.items():
        if value != theirs[name]:
            return f"{name} is {_short(theirs[name])} there, {_short(value)} here"
    return "it differs"


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json_text(value)
    return text if len(text) < 80 else f"{text[:77]}…"
