"""What a run notes beside its results: plans, how jobs ended, what layers were read, who died at which part.

All of it lies below `.batch/` in the place of the results, one object a fact, each written whole: workers that meet at
one write the same, or lose nothing by the other's.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from loraport.batches.results import JobRow
from loraport.digests import text_digest
from loraport.errors import FileFormatError, UnreadableError
from loraport.objects.store import MissingObjectError, ObjectStore
from loraport.plain_json import json_text
from loraport.transfers.layer_source import LayerFacts
from loraport.workers.plan import PlannedJob, RunPlan

STATE = ".batch/"
RUNS, JOBS, LEASES, WORKERS = (f"{STATE}{name}/" for name in ("runs", "jobs", "leases", "workers"))
_LAYERS, _TRIES = f"{STATE}layers/", f"{STATE}tries/"
_PLAN, _ENDED = ".jsonl", ".ended.json"


@dataclass(frozen=True)
class JobEnd:
    """How a job ended."""

    name: str
    job: str
    """The planned job's id."""
    machine: str
    row: JobRow
    files: Mapping[str, int] = field(default_factory=dict)
    """What was written: name -> bytes."""
    contents: str = ""
    """What LoRA and models were, by what is in them."""
    seen: list[Any] = field(default_factory=list)
    """What LoRA and models were, by their files' sizes and times on the machine that gathered."""
    lost: bool = False
    """Whether something of the LoRA is gone without the user having asked for it."""
    tries: int = 1
    """How often it was tried before it was given up."""
    notes: tuple[str, ...] = ()

    @property
    def made(self) -> bool:
        """Whether there is a result."""
        return self.row.status == "made"

    @classmethod
    def read(cls, raw: bytes, where: str) -> JobEnd:
        """Return what a record says. Raises FileFormatError."""
        try:
            value = json.loads(raw)
            lost = tuple((str(key), str(reason)) for key, reason in value["row"].pop("lost_keys"))
            row = JobRow(**value.pop("row"), lost_keys=lost)
            return cls(**{**value, "notes": tuple(value["notes"])}, row=row)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise FileFormatError(f"{where} is no record of this version; begin anew with --fresh") from error

    def text(self) -> bytes:
        """Return it as a record."""
        return json_text(asdict(self), indent=1).encode()


@dataclass(frozen=True)
class RunState:
    """A run that was begun in a store."""

    id: str
    ended: bool
    plan: RunPlan


@dataclass(frozen=True)
class Records:
    """The records in one store."""

    store: ObjectStore

    # runs

    def runs(self) -> list[RunState]:
        """Return the runs that were begun here. Raises FileFormatError for one of another version."""
        names = self.store.names(RUNS)
        ids = [name.removeprefix(RUNS).removesuffix(_PLAN) for name in names if name.endswith(_PLAN)]
        return [RunState(one, f"{RUNS}{one}{_ENDED}" in names, self.plan(one)) for one in ids]

    def plan(self, run: str) -> RunPlan:
        """Return a run's plan. Raises FileFormatError, MissingObjectError."""
        name = f"{RUNS}{run}{_PLAN}"
        return RunPlan.read(self.store.read(name).decode(), f"{self.store.url}/{name}")

    def begin(self, plan: RunPlan) -> None:
        """Write a plan."""
        self.store.write(f"{RUNS}{plan.id}{_PLAN}", plan.text().encode())
        self.store.delete(f"{RUNS}{plan.id}{_ENDED}")

    def close(self, run: str, summary: Mapping[str, Any]) -> None:
        """Note that a run is over."""
        self.store.write(f"{RUNS}{run}{_ENDED}", json_text(summary, indent=1).encode())

    def is_closed(self, run: str) -> bool:
        """Return whether a run is over, or was given up."""
        return f"{RUNS}{run}{_ENDED}" in self.store.names(f"{RUNS}{run}")

    # jobs

    def ended(self, plan: RunPlan) -> set[int]:
        """Return the jobs that are made or given up."""
        there = set(self.store.names(JOBS))
        return {number for number, job in enumerate(plan.jobs) if _of_job(job) in there}

    def end(self, job: PlannedJob) -> JobEnd | None:
        """Return how a job ended; None where it has not. Raises FileFormatError."""
        name = _of_job(job)
        try:
            return JobEnd.read(self.store.read(name), f"{self.store.url}/{name}")
        except MissingObjectError:
            return None

    def put_end(self, job: PlannedJob, end: JobEnd) -> None:
        """Note how a job ended."""
        self.store.write(_of_job(job), end.text())

    def forget_end(self, job: PlannedJob) -> None:
        """Let a job be done again."""
        self.store.delete(_of_job(job))

    # layers

    def check_layer(self, identity: str, layer: str, facts: LayerFacts) -> None:
        """Raise UnreadableError where another worker has read other weights in a layer that passes for the same."""
        name = f"{_LAYERS}{identity}.json"
        mine = {"layer": layer, "source": facts.source_hash, "target": facts.target_hash}
        content = json_text(mine).encode()
        if self.store.create(name, content):
            return
        try:
            theirs = json.loads(self.store.read(name))
        except (MissingObjectError, ValueError):  # gone, or not ours: what is read now counts
            self.store.write(name, content)
            return
        for model in ("source", "target"):
            if theirs.get(model) != mine[model]:
                raise UnreadableError(
                    f"the {model}'s weights of {layer} are not those that another worker of this run has read: the "
                    "copies of the model differ, though not in size; compare them, or begin anew with --fresh"
                )

    # tries

    def tries(self, part: str) -> int:
        """Return how often a part was begun by workers that died."""
        return len(self.store.names(_tries(part)))

    def try_begins(self, part: str, number: int, who: str) -> None:
        """Note that a part is begun, where a worker has died before."""
        self.store.create(f"{_tries(part)}{number}.json", json_text({"part": part, "worker": who}).encode())

    def try_ends(self, part: str) -> None:
        """Forget the tries of a part: it was made, or stopped on purpose."""
        self.forget(self.store.names(_tries(part)))

    def forget(self, names: Iterable[str]) -> None:
        """Remove objects."""
        for one in names:
            self.store.delete(one)

    def forget_tries(self) -> None:
        """Remove all tries, and what layers were: both count for one run."""
        for prefix in (_TRIES, _LAYERS):
            self.forget(self.store.names(prefix))


def _of_job(job: PlannedJob) -> str:
    return f"{JOBS}{text_digest(job.name)[:32]}.json"


def _tries(part: str) -> str:
    return f"{_TRIES}{text_digest(part)[:32]}/"
