"""Run a batch from this machine: begin or join the run, start workers, listen to them, and sum up at the end."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from loraport.batches.events import EventLog, EventProgress
from loraport.batches.results import JobRow, ManyResult
from loraport.compute import peak_rss_bytes, weights_device
from loraport.errors import SettingsError
from loraport.objects.store import ObjectStore
from loraport.progress import NO_PROGRESS, Progress, observer
from loraport.transfers.run import TRANSFERRING
from loraport.workers.begin import BegunRun, begin_run
from loraport.workers.local.process import Orders
from loraport.workers.local.processes import run_workers
from loraport.workers.models import OpenModels
from loraport.workers.on_ray.run import run_on_ray
from loraport.workers.plan import RunPlan
from loraport.workers.records import Records
from loraport.workers.share import Share
from loraport.workers.summary import close_run, rows_of

_OF_A_JOB = 1000
"""What one job counts on the bar."""
_OF_A_ROW = {
    *("source", "target", "layers", "transferred", "rank", "size", "cosine", "kept_energy"),
    *("kept_correction", "dropped", "advice"),
}
"""What is told of a result beside its place; seconds are told of parts."""


@dataclass(frozen=True)
class Crew:
    """The workers that this machine gives to a run."""

    workers: int | None = None
    """Processes; None for one a card, or one a core."""
    share: Share | None = None
    """Of a run that is divided in advance; None takes whatever is left."""
    device: str = "auto"
    cache: str | None = None
    beat: float = 15.0
    patience: float = 75.0
    ray: str | None = None
    """The address of a Ray cluster whose cards do the work instead; `local` for one of this machine."""

    def orders(self, store: ObjectStore, run: str, threads: int) -> list[Orders]:
        """Return what each of them is told. Raises SettingsError for too few of them."""
        devices = self.devices(threads)
        shard = None if self.share is None else str(self.share)
        return [
            Orders(
                store.url, run, number, len(devices), shard, 0.5 if shard is None else None, device, self.cache,
                devices.count(device), self.beat, self.patience,
            )
            for number, device in enumerate(devices)
        ]  # fmt: skip

    def devices(self, threads: int) -> list[str]:
        """Return the device of each worker."""
        if self.workers is not None and self.workers < 1:
            raise SettingsError(f"--workers is {self.workers}, but a run needs at least one")
        device = weights_device(self.device)
        if device.type == "cuda":
            cards = [self.device] if ":" in self.device else [f"cuda:{at}" for at in range(torch.cuda.device_count())]
            return [cards[number % len(cards)] for number in range(self.workers or len(cards))]
        return ["cpu"] * (self.workers or max(1, _cores() // threads))


def _cores() -> int:
    """Return the cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def run_batch(
    store: ObjectStore, plan: RunPlan, crew: Crew, *, keep_going: bool = False, overwrite: bool = False,
    fresh: bool = False, events: EventLog | None = None, progress: Progress = NO_PROGRESS,
) -> tuple[ManyResult, bool]:  # fmt: skip
    """Do the jobs of a plan with a crew; return their rows, and whether the run is over.

    It is not over where a share is done and others are not. Raises as `begin_run`, and InputError where no worker can
    work.
    """
    start, events = time.perf_counter(), events or EventLog(None)
    told = EventProgress(observer(progress), events)
    events.tell("planned", jobs=len(plan.jobs) + len(plan.refused), folder=store.url, run=plan.id)
    models = OpenModels(plan, device=crew.device, cache=crew.cache)
    begun = begin_run(store, plan, models, keep_going=keep_going, overwrite=overwrite, fresh=fresh, progress=told)
    plan, records = begun.plan, Records(store)
    listener = Listener(begun, store.url, told, events)
    if over := len(records.ended(plan)) == len(plan.jobs):
        close_run(store, plan)
    else:
        if crew.ray is not None:
            over = run_on_ray(store, plan, address=crew.ray, hear=listener.hear, device=crew.device, cache=crew.cache)
        else:
            over = run_workers(crew.orders(store, plan.id, plan.machine.threads), listener.hear)
        if over:
            close_run(store, plan)
    rows = [listener.timed(row) for row in rows_of(store, begun.plan, begun.already)]
    seconds = time.perf_counter() - start
    counts = {status: sum(row.status == status for row in rows) for status in ("made", "failed")}
    events.tell("ended", **counts, there_already=len(begun.already), over=over, seconds=round(seconds, 3))
    lost = listener.lost or counts["failed"] > 0
    return ManyResult(tuple(rows), (), lost, {"total": seconds}, peak_rss_bytes()), over


@dataclass
class Listener:
    """Turns what workers tell into a bar, notes and events."""

    begun: BegunRun
    url: str
    progress: Progress
    events: EventLog
    lost: bool = False
    _done: dict[int, float] = field(default_factory=dict)
    _seconds: dict[str, float] = field(default_factory=dict)
    _opened: set[int] = field(default_factory=set)

    def hear(self, event: str, facts: dict[str, Any]) -> None:
        """Take in what a worker tells."""
        jobs = self.begun.plan.jobs
        job = jobs[facts["job"]] if "job" in facts else None
        if event == "opened":
            self._open(facts["wave"], {int(number): share for number, share in facts["there"].items()})
        elif event == "part" and job is not None:
            self._done[facts["job"]] = min(1.0, self._done.get(facts["job"], 0.0) + facts["share"])
            self._seconds[job.name] = self._seconds.get(job.name, 0.0) + facts["seconds"]
            self._advance(f"{job.name}: {facts['layer']}: {facts['seconds']:.2f} s")
            self._tell("part", facts, layer=facts["layer"], seconds=round(facts["seconds"], 4), bytes=facts["bytes"])
        elif event in ("made", "failed") and job is not None:
            self._done[facts["job"]] = 1.0
            self.lost = self.lost or event == "failed" or facts["lost"]
            self._advance(f"{job.name}: {'made' if event == 'made' else 'put aside'}")
            if event == "made":
                row = {name: value for name, value in facts["row"].items() if value not in (None, "")}
                self._tell("finished", facts, **{name: row[name] for name in row.keys() & _OF_A_ROW})
            else:
                self._tell("failed", facts, reason=facts["reason"], tries=facts["tries"])
        elif event == "retried":
            self._tell("retried", facts, layer=facts["layer"], reason=facts["reason"], tries=facts["tries"])
        elif event == "died" and "reason" in facts:
            self.progress.note(f"worker {facts['worker']}: {facts['reason']}")
            self._tell("died", facts, reason=facts["reason"])
        elif event == "note":
            self.progress.note(facts["text"])
        elif event == "died":
            self.progress.note(
                f"worker {facts['worker']} died (exit {facts['code']}) and is started again; others take its layers"
            )
            self._tell("died", facts, code=facts["code"])
        elif event in ("error", "fault"):
            self.progress.note(f"worker {facts['worker']} cannot go on: {facts['reason']}")
            self._tell(event, facts, reason=facts["reason"])

    def timed(self, row: JobRow) -> JobRow:
        """Return a row with the seconds of the parts that were made here."""
        name = row.output.removeprefix(f"{self.url}/")
        own = self._seconds.get(name)
        return row if own is None else replace(row, seconds=(row.seconds or 0.0) + own)

    def _open(self, wave: int, there: dict[int, float]) -> None:
        """Begin a wave, of which another start or another machine may have made a part."""
        if wave in self._opened:
            return
        self._opened.add(wave)
        if len(self._opened) == 1:
            self._done |= dict.fromkeys(self.begun.already, 1.0)
        for number, share in there.items():
            self._done[number] = max(share, self._done.get(number, 0.0))
            config = self.begun.plan.jobs[number].config
            self.events.tell(
                "started", lora=config.lora, method=config.method, output=config.output, source=config.source,
                target=config.target,
            )  # fmt: skip
        self._advance("")

    def _advance(self, part: str) -> None:
        done = int(_OF_A_JOB * sum(self._done.values()))
        self.progress.advance(TRANSFERRING, done, _OF_A_JOB * len(self.begun.plan.jobs), part)

    def _tell(self, event: str, facts: dict[str, Any], **more: Any) -> None:
        job = self.begun.plan.jobs[facts["job"]] if "job" in facts else None
        named = {} if job is None else {"lora": job.config.lora, "method": job.config.method, "output": job.name}
        self.events.tell(event, worker=facts["worker"], **named, **more)
