"""Run many transfers: check all of them, then move them through the layers, a portion at a time."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loraport.batches.checks import CheckedPlan, Portion, check_plan, fault_of_ours
from loraport.batches.events import EventLog, EventProgress
from loraport.batches.jobs import JobPlan
from loraport.batches.names import same_place
from loraport.batches.results import JobRow, ManyResult, failure_line
from loraport.compute import peak_rss_bytes
from loraport.digests import text_digest
from loraport.errors import InputError, OutputError
from loraport.files.disk.ownership import Lock
from loraport.files.disk.user_paths import expand_home
from loraport.inputs.open import TransferInputs
from loraport.progress import NO_PROGRESS, Progress, observer
from loraport.transfers.results import NotWritten, TransferResult
from loraport.transfers.run import transfer_prepared

SHOWN = 10
"""Outputs that are named in a note about many."""


class RefusedJobsError(InputError):
    """Jobs that cannot be done, all of them listed; `failures` has them one by one."""

    def __init__(self, text: str, failures: Sequence[NotWritten]) -> None:
        lines = dict.fromkeys(failure_line(one.lora, one.reason) for one in failures)  # methods may share a reason
        super().__init__("\n  ".join([text, *lines]))
        self.failures = tuple(failures)


def run_many(
    plan: JobPlan,
    folder: str,
    *,
    keep_going: bool = False,
    overwrite: bool = False,
    keep: int | None = 0,
    events: EventLog | None = None,
    progress: Progress = NO_PROGRESS,
) -> ManyResult:
    """Do all jobs of a plan, whose outputs lie in the folder; what an earlier start has finished stays as it is.

    What is wrong with some is found before the work, and all of it is listed: it is raised, unless `keep_going`, which
    does the others. A second process with the same jobs is refused while this one runs. `keep`: how many whole results
    are held, None for all of them; the rows are of every job.
    Raises RefusedJobsError also where no job at all can be done, OutputError where another process does the same jobs.
    """
    start, events = time.perf_counter(), events or EventLog(None)
    root = expand_home(folder)
    place = root / f".jobs-{_identity(plan)}.partial"
    made = [place, *(one for one in (root, *root.parents) if not one.exists())]
    lock = Lock(place / "lock")
    lock.take(f"{folder}, by the same transfers,")
    try:
        work = _Work(keep_going, keep, events, EventProgress(observer(progress), events))
        events.tell("planned", jobs=len(plan.jobs) + len(plan.refused), folder=folder)
        checked = check_plan(plan, overwrite=overwrite, progress=work.progress, keep_going=keep_going)
        stop_or_note(plan, checked, keep_going, work.progress)
        for job in checked.finished:
            work.add(JobRow.finished(job))
        for one in checked.refused:
            work.end(one)
        for number, portion in enumerate(checked.portions):
            if len(checked.portions) > 1:
                work.progress.step(f"{len(portion.jobs)} transfers", number, len(checked.portions))
            work.do(portion)
        counts = {status: sum(row.status == status for row in work.rows) for status in ("made", "failed")}
        seconds = time.perf_counter() - start
        events.tell("ended", **counts, there_already=len(checked.finished), seconds=round(seconds, 3))
    finally:
        lock.release()
        _remove_empty(made)
    lost = work.lost or counts["failed"] > 0
    return ManyResult(_in_order(work.rows, plan), tuple(work.runs), lost, {"total": seconds}, peak_rss_bytes())


@dataclass
class _Work:
    """What is done so far, and how to go on."""

    keep_going: bool
    keep: int | None
    events: EventLog
    progress: Progress
    rows: list[JobRow] = field(default_factory=list)
    runs: list[TransferResult] = field(default_factory=list)
    lost: bool = False

    def do(self, portion: Portion) -> None:
        """Move some jobs through the layers; a fault of their models ends these, and with `keep_going` no others."""
        opened, refused = portion.open(self.progress, keep_going=self.keep_going)
        if refused and not self.keep_going:
            raise RefusedJobsError("these LoRAs have changed since they were checked; start again:", refused)
        for one in refused:
            self.end(one)
        for inputs in opened:
            config = inputs.config
            self.events.tell(
                "started", lora=config.lora, method=config.method, output=config.output, source=config.source,
                target=config.target,
            )  # fmt: skip
        ended = len(self.rows)
        try:
            if opened:
                transfer_prepared(opened, progress=self.progress, keep_going=self.keep_going, each=self.end)
        except Exception as error:
            if not self.keep_going or isinstance(error, OutputError | OSError):
                raise
            done = {row.output for row in self.rows[ended:]}
            self._after(error, [inputs for inputs in opened if inputs.config.output not in done])

    def _after(self, error: Exception, left: Sequence[TransferInputs]) -> None:
        """End what is left of a portion: all for an error of its models, else the one that the program fails on."""
        for inputs in left:
            reason = error if isinstance(error, InputError) else fault_of_ours(error)
            if not isinstance(error, InputError) and len(left) > 1:
                try:  # what is finished of its layers is found again
                    transfer_prepared([inputs], progress=self.progress, keep_going=True, each=self.end)
                    continue
                except (OutputError, OSError):
                    raise
                except Exception as own:
                    reason = own if isinstance(own, InputError) else fault_of_ours(own)
            self.end(NotWritten.of(inputs.config, reason))

    def end(self, one: TransferResult | NotWritten) -> None:
        """Note the end of a job."""
        if isinstance(one, NotWritten):
            self.add(JobRow.failed(one))
            return
        self.add(JobRow.of(one))
        self.lost = self.lost or one.lost
        if self.keep is None or len(self.runs) < self.keep:
            self.runs.append(one)

    def add(self, row: JobRow) -> None:
        """Add a row, and tell about it."""
        self.rows.append(row)
        event = {"made": "finished"}.get(row.status, row.status)
        facts = {
            name: value
            for name, value in row.as_json().items()
            if name not in ("status", "lost_keys") and value not in (None, "")
        }
        self.events.tell(event, **facts)


def _identity(plan: JobPlan) -> str:
    """Name these jobs: others may go into the same folder meanwhile, and every output has a lock of its own."""
    return text_digest(*sorted(same_place(job.output) for job in plan.jobs))[:16]


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made for results, the inner ones first, where none has come."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return  # it holds results


def stop_or_note(plan: JobPlan, checked: CheckedPlan, keep_going: bool, progress: Progress) -> None:
    """Raise RefusedJobsError unless something can be done in spite of what is refused."""
    refused, count = checked.refused, len(plan.jobs) + len(plan.refused)
    nothing_left = not checked.jobs and not checked.finished
    if refused and (nothing_left or not keep_going):
        advice = "" if nothing_left else " (--keep-going does the others)"
        raise RefusedJobsError(f"{len(refused)} of {count} transfers are refused, and none was begun{advice}:", refused)
    if checked.replaced:
        more = f" and {len(checked.replaced) - SHOWN} more" if len(checked.replaced) > SHOWN else ""
        names = ", ".join(checked.replaced[:SHOWN])
        progress.note(f"of other settings, inputs or another version, so made again: {names}{more}")
    if refused:
        progress.note(f"{len(refused)} of {count} transfers are refused; the others are done")


def _in_order(rows: Sequence[JobRow], plan: JobPlan) -> tuple[JobRow, ...]:
    """Return the rows in the order of the jobs; what made no job comes last."""
    order = {job.output: number for number, job in enumerate(plan.jobs)}
    return tuple(sorted(rows, key=lambda row: order.get(row.output, len(order))))
