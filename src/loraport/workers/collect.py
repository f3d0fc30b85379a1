"""Collect the results of a run from where they lie: gather what is whole, copy what is made."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loraport.errors import InputError
from loraport.files.adapters.peft_fields import WEIGHTS_NAME
from loraport.files.disk.atomic import write_whole
from loraport.objects.store import ObjectStore
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport.workers.models import OpenModels
from loraport.workers.outputs import Outputs
from loraport.workers.plan import RunPlan
from loraport.workers.records import JobEnd, Records
from loraport.workers.work import Worker


@dataclass(frozen=True)
class Collected:
    """What became of the results of a run."""

    url: str
    made: tuple[str, ...]
    """Results that are there."""
    gathered: tuple[str, ...]
    """Those of them that were written now."""
    copied: tuple[str, ...] = ()
    """Files in the folder that was named."""
    missing: Mapping[str, str] = field(default_factory=dict)
    """Output -> why there is none."""

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return {"url": self.url, "made": list(self.made), "gathered": list(self.gathered),
                "copied": list(self.copied), "missing": dict(self.missing)}  # fmt: skip

    def line(self) -> str:
        """Return it in a line."""
        copied = f", {len(self.copied)} files copied" if self.copied else ""
        return (
            f"{len(self.made)} of {len(self.made) + len(self.missing)} results are there, {len(self.gathered)} of them "
            f"gathered now{copied}"
        )


def collect(store: ObjectStore, folder: Path | None = None, progress: Progress = NO_PROGRESS) -> Collected:
    """Gather what is whole and not gathered in the run that is not over, else in the last; copy results into a folder.

    Raises InputError where there is no run.
    """
    records = Records(store)
    runs = sorted(records.runs(), key=lambda run: run.ended)
    if not runs:
        raise InputError(f"{store.url} has no run; begin one: loraport batch LORAS -o {store.url}")
    plan = runs[0].plan
    gathered = _gathered(store, plan, progress)
    made, copied, missing = [], [], {one.output or one.lora: one.reason for one in plan.refused}
    report = counter(progress, "copying", len(plan.jobs)) if folder is not None else None
    for job in plan.jobs:
        end = records.end(job)
        if end is None or not end.made:
            missing[job.name] = "not all of its parts are there yet" if end is None else end.row.reason
            continue
        made.append(job.name)
        if folder is not None and report is not None:
            copied += _copy(store, end, folder)
            report(1, job.name)
    return Collected(store.url, tuple(made), tuple(gathered), tuple(copied), missing)


def _gathered(store: ObjectStore, plan: RunPlan, progress: Progress) -> list[str]:
    """Gather what is whole, and return the names."""
    worker = Worker(store, plan, OpenModels(plan, device="cpu"))
    try:
        worker.look()
        names = []
        left = [wave.number for wave in plan.waves if any(job not in worker.ended for job in wave.jobs)]
        report = counter(progress, "gathering", len(left))
        for number in left:
            names += [end.name for job in worker.whole(number) if (end := worker.gather(job)) is not None]
            report(1)
        return names
    finally:
        worker.claims.close()


def _copy(store: ObjectStore, end: JobEnd, folder: Path) -> list[str]:
    """Copy the files of one result, weights last, and return their names."""
    own = Outputs(store).folder
    for name in (names := sorted(end.files, key=lambda name: name.endswith(f"/{WEIGHTS_NAME}"))):
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if own is None:
            write_whole(place, store.read(name))
        elif own.resolve() != folder.resolve():
            shutil.copyfile(own / name, place)
    return names
