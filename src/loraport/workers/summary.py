"""What became of a run: its rows at the end, how far it is meanwhile, and what is removed when it is over."""

from __future__ import annotations

import statistics
import time
from collections.abc import Collection
from dataclasses import asdict, dataclass, replace
from typing import Any

from loraport.batches.results import JobRow
from loraport.errors import InputError
from loraport.files.disk.ownership import HOST, is_running
from loraport.objects.store import ObjectStore
from loraport.workers.claims import PATIENCE
from loraport.workers.fingerprint import PARTS
from loraport.workers.note import WorkerNote, worker_notes
from loraport.workers.plan import RunPlan
from loraport.workers.records import LEASES, WORKERS, Records


def rows_of(store: ObjectStore, plan: RunPlan, already: Collection[int] = ()) -> list[JobRow]:
    """Return the rows of the jobs that have ended, in the order of the plan, and of what made no job.

    Outputs are where they lie in the store.
    """
    records, rows = Records(store), []
    for number, job in enumerate(plan.jobs):
        end = records.end(job)
        if end is None:
            continue
        row = replace(end.row, output=f"{store.url}/{job.name}")
        rows.append(replace(row, status="there already") if number in already else row)
    names = {job.name for job in plan.jobs}
    return [*rows, *(JobRow.failed(one) for one in plan.refused if one.output not in names)]


def close_run(store: ObjectStore, plan: RunPlan) -> None:
    """Note that a run is over, and remove what only its workers needed."""
    records = Records(store)
    if all(run.ended or run.id == plan.id for run in records.runs()):
        for prefix in (PARTS, LEASES, WORKERS):
            records.forget(store.names(prefix))
        records.forget_tries()
    rows = rows_of(store, plan)
    records.close(plan.id, {"made": sum(row.status == "made" for row in rows),
                            "failed": sum(row.status == "failed" for row in rows)})  # fmt: skip


@dataclass(frozen=True)
class RunStatus:
    """How far a run is."""

    url: str
    run: str
    state: str
    """running, over, or stopped: begun, not over, and nobody works at it."""
    jobs: int
    made: int
    failed: int
    parts: int
    """That are made and not gathered yet."""
    progress: float
    """Share of the work that is done."""
    jobs_per_hour: float | None
    seconds_left: float | None
    workers: tuple[WorkerNote, ...]
    failures: tuple[JobRow, ...]
    machine: str

    @property
    def left(self) -> int:
        """Jobs that have not ended."""
        return self.jobs - self.made - self.failed

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return {
            **{name: value for name, value in asdict(self).items() if name not in ("workers", "failures")},
            "left": self.left,
            "workers": [asdict(one) for one in self.workers],
            "failures": [
                {"lora": row.lora, "method": row.method, "output": row.output, "reason": row.reason}
                for row in self.failures
            ],
        }


def run_status(store: ObjectStore) -> RunStatus:
    """Return how far the run in a store is: the one that is not over, else the last. Raises InputError for none."""
    records = Records(store)
    runs = sorted(records.runs(), key=lambda run: run.ended)
    if not runs:
        raise InputError(f"{store.url} has no run; begin one: loraport batch LORAS -o {store.url}")
    run = runs[0]
    rows = rows_of(store, run.plan)
    made, failed = ([row for row in rows if row.status == status] for status in ("made", "failed"))
    parts = len(store.names(PARTS))
    workers = tuple(_as_it_is(note) for note in worker_notes(store, run.id))
    jobs = len(run.plan.jobs) + len(run.plan.refused) - len({one.output for one in run.plan.refused} & _names(run.plan))
    rate = sum(note.shares / max(note.seen - note.began, 1e-3) for note in workers if _works(note))
    each = statistics.median([row.transferred or 0 for row in made]) if made else 0
    begun = parts / each if each else max(0.0, sum(note.shares for note in workers) - len(made))
    done = min(len(made) + len(failed) + begun, jobs)
    state = "over" if run.ended else "running" if any(map(_works, workers)) else "stopped"
    return RunStatus(
        store.url, run.id, state, jobs, len(made), len(failed), parts, done / jobs if jobs else 1.0,
        3600 * rate if rate else None, (jobs - done) / rate if rate else None, workers, tuple(failed),
        f"{run.plan.machine.device}, loraport {run.plan.machine.version}",
    )  # fmt: skip


def _names(plan: RunPlan) -> set[str]:
    return {job.name for job in plan.jobs}


def _works(note: WorkerNote) -> bool:
    return note.state in ("working", "waiting for others")


def _as_it_is(note: WorkerNote) -> WorkerNote:
    """Return a note; of a worker that died without a word, or has said nothing for long, that."""
    if not _works(note):
        return note
    if note.host == HOST and not is_running(note.process):
        return replace(note, state="dead")
    quiet = time.time() - note.seen
    return replace(note, state=f"silent for {quiet:.0f} s") if quiet > PATIENCE else note
