"""Begin a run in a store, or join it: what is there already, what stands in the way, what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from loraport.batches.results import JobRow
from loraport.batches.run import RefusedJobsError
from loraport.errors import OutputError
from loraport.objects.store import ObjectStore
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport.transfers.results import NotWritten
from loraport.workers.gather import contents_of
from loraport.workers.models import OpenModels
from loraport.workers.outputs import Outputs
from loraport.workers.plan import RunPlan, conflict, lora_state
from loraport.workers.records import STATE, JobEnd, Records


@dataclass(frozen=True)
class BegunRun:
    """A run as its workers find it."""

    plan: RunPlan
    joined: bool = False
    """Whether it was begun before, by another process or an earlier start."""
    already: frozenset[int] = frozenset()
    """Jobs whose results were there before the run began."""


def begin_run(
    store: ObjectStore, plan: RunPlan, models: OpenModels, *, keep_going: bool = False, overwrite: bool = False,
    fresh: bool = False, progress: Progress = NO_PROGRESS,
) -> BegunRun:  # fmt: skip
    """Begin the run of a plan, or join it where it was begun and is not over.

    Before it begins all LoRAs are opened, unless `keep_going`, and nothing is begun if any is refused. Results that are
    there, made of the same contents with the same settings, stay; others of ours are made again. `overwrite`: whatever
    is there is replaced. `fresh`: what was begun here is forgotten.
    Raises RefusedJobsError; OutputError where another run, not over, makes one of the outputs otherwise; SettingsError
    where the run was begun on another kind of machine.
    """
    records = Records(store)
    if fresh:
        forget_runs(store)
    for other in records.runs():
        if other.ended:
            continue
        if other.id == plan.id:
            plan.machine.check(other.plan.machine, f"the run in {store.url}")
            progress.note(f"the run in {store.url} goes on where it was left")
            return BegunRun(replace(plan, refused=other.plan.refused), joined=True)
        if told := conflict(plan, other.plan):
            raise OutputError(
                f"{store.url} has a run that is not over and makes the same outputs otherwise ({told}); finish that "
                "one first, name another place, or give it up with --fresh"
            )
    stay, refused = _reviewed(store, plan, models, overwrite, progress)
    refused += plan.refused
    if not keep_going:
        refused += _unusable(plan, models, stay, progress)
        if refused:
            count = len(plan.jobs) + len(plan.refused)
            raise RefusedJobsError(
                f"{len(refused)} of {count} transfers are refused, and none was begun (--keep-going does the others):",
                refused,
            )
    plan = replace(plan, refused=tuple(refused))
    unmade = {one.output: one for one in refused}
    for number, job in enumerate(plan.jobs):
        if number not in stay:
            records.forget_end(job)
        if job.name in unmade:
            row = replace(JobRow.failed(unmade[job.name]), output=job.name)
            records.put_end(job, JobEnd(job.name, job.id, plan.machine.key, row))
    records.forget_tries()
    records.begin(plan)
    return BegunRun(plan, already=frozenset(stay))


def forget_runs(store: ObjectStore) -> None:
    """Remove all that was noted and half done in a store; results stay."""
    for name in store.names(STATE):
        store.delete(name)


def _reviewed(
    store: ObjectStore, plan: RunPlan, models: OpenModels, overwrite: bool, progress: Progress
) -> tuple[list[int], list[NotWritten]]:
    """Return the jobs whose results are as they should be, and those in whose place something else lies."""
    records, outputs = Records(store), Outputs(store)
    noted = records.ended(plan)
    stay: list[int] = []
    refused: list[NotWritten] = []
    again: list[str] = []
    report = counter(progress, "looking at what is there", len(plan.jobs))
    for number, job in enumerate(plan.jobs):
        end = records.end(job) if number in noted else None
        if end is not None and end.made and not overwrite and _stands(store, plan, models, number, end):
            stay.append(number)
        elif not overwrite:
            lies = outputs.lies(job.name)
            if lies == "ours":
                again.append(job.name)
            elif lies:
                reason = (
                    f"{job.name} is there already and is no transfer; give --overwrite to replace it, or another name"
                )
                refused.append(NotWritten(job.name, reason, job.config.lora, job.config.method))
        report(1, job.name)
    if again:
        progress.note(f"of other settings, inputs or another version, so made again: {_some(again)}")
    return stay, refused


def _stands(store: ObjectStore, plan: RunPlan, models: OpenModels, number: int, end: JobEnd) -> bool:
    """Return whether a result is what the job would write, of the same LoRA and models."""
    job = plan.jobs[number]
    if end.job != job.id or end.machine != plan.machine.key:
        return False
    outputs = Outputs(store)
    if not all(outputs.have(name, size) for name, size in end.files.items()):
        return False
    lora, files = end.seen
    if lora and lora == lora_state(job.config.lora) and all(_as_seen(*one) for one in files):
        return True
    opened = models.wave(plan.wave_of[number]).jobs.get(number)
    return opened is not None and contents_of(opened) == end.contents


def _as_seen(path: str, size: int, time: int) -> bool:
    try:
        facts = os.stat(path)
    except OSError:
        return False
    return (facts.st_size, facts.st_mtime_ns) == (size, time)


def _unusable(plan: RunPlan, models: OpenModels, stay: Sequence[int], progress: Progress) -> list[NotWritten]:
    """Open every LoRA, and return those that cannot be used."""
    refused: list[NotWritten] = []
    report: Callable[..., None] = counter(progress, "checking", len(plan.jobs) - len(stay))
    for wave in plan.waves:
        if left := [number for number in wave.jobs if number not in stay]:
            for number, reason in models.wave(wave.number, stay).refused.items():
                config = plan.jobs[number].config
                refused.append(NotWritten(plan.jobs[number].name, reason, config.lora, config.method))
            report(len(left), f"{plan.jobs[left[-1]].config.lora}: checked")
    models.close_wave()
    return refused


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
