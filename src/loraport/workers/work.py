"""One worker: it takes layers of a plan, makes the parts that are missing, and gathers what is whole.

Nothing that it does depends on other workers: whatever it finds done it leaves, whatever is missing it may make.
"""

from __future__ import annotations

import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from loraport.batches.checks import AT_ONCE, fault_of_ours
from loraport.batches.results import JobRow
from loraport.digests import text_digest
from loraport.errors import InputError, UnreadableError
from loraport.estimates.layer_cost import layer_seconds
from loraport.objects.store import ObjectStore
from loraport.workers.claims import Claims, Lease
from loraport.workers.fingerprint import PARTS, layer_prefix
from loraport.workers.gather import PartMissingError, UnwritableJobError, gather_job
from loraport.workers.models import OpenJob, OpenModels, OpenWave, shared_seconds
from loraport.workers.parts import Part, run_part
from loraport.workers.plan import RunPlan
from loraport.workers.records import LEASES, JobEnd, Records
from loraport.workers.share import Share, longest_first

TRIES = 3
"""How often a part is tried, by one worker or by several that died, before its LoRA is put aside."""
MOST_LOSSES = 10
"""How often parts of one job may be gone or damaged when it is gathered."""
Tell = Callable[..., None]


@dataclass(frozen=True)
class Unit:
    """One layer for the jobs of a wave: what a worker takes at a time."""

    wave: int
    layer: str
    seconds: float
    """What is left of it, on the machine where layers were measured."""


def tell_nobody(event: str, **facts: Any) -> None:
    """Ignore an event."""


class Worker:
    """Works at a plan in a store. `tell` gets an event with facts whenever something is done."""

    def __init__(
        self, store: ObjectStore, plan: RunPlan, models: OpenModels, *, share: Share | None = None,
        prefer: Share | None = None, claims: Claims | None = None, tell: Tell = tell_nobody,
        stop: threading.Event | None = None,
    ) -> None:  # fmt: skip
        """Begin no work yet.

        `share`: it takes only these layers, and those at which another worker has died; None takes all.
        `prefer`: with which it begins, so that workers of one machine keep their layers from wave to wave.
        """
        self.store, self.plan, self.models, self.tell = store, plan, models, tell
        self.records, self.share, self.prefer = Records(store), share or Share(), prefer or Share()
        self.claims = claims or Claims(store)
        self.stop, self.busy = stop or threading.Event(), False
        self.ended: set[int] = set()
        self._present: set[str] = set()
        self._lost: Counter[int] = Counter()

    # what is to be done

    def look(self) -> None:
        """Look in the store what is done by now, by whomever."""
        self._present = set(self.store.names(PARTS))
        self.ended = self.records.ended(self.plan)  # after the parts, which are removed when a job has ended

    def open(self, number: int) -> OpenWave:
        """Open a wave, and put aside what cannot be opened."""
        wave = self.models.wave(number, self.ended)
        for job, reason in wave.refused.items():
            if job not in self.ended:
                self.put_aside(job, reason)
        return wave

    def units(self, number: int) -> list[Unit]:
        """Return the units of a wave in which something is missing, the longest first."""
        wave = self.open(number)
        card = self.models.torch_device.type == "cuda"
        seconds: dict[str, float] = {}
        for name in wave.names:
            if missing := self._missing(wave, name):
                shape = missing[0].layers[name].shape
                seconds[name] = shared_seconds(shape, missing, card=card) + sum(job.seconds[name] for job in missing)
        return [Unit(number, name, seconds[name]) for name in longest_first(seconds)]

    def whole(self, number: int) -> list[int]:
        """Return the jobs of a wave of which all parts are there."""
        jobs = self.open(number).jobs.values()
        return [
            job.number
            for job in jobs
            if job.number not in self.ended and all(job.parts[name] in self._present for name in job.layers)
        ]

    def _missing(self, wave: OpenWave, layer: str) -> list[OpenJob]:
        return [
            job for job in wave.having(layer) if job.number not in self.ended and job.parts[layer] not in self._present
        ]

    # doing it

    def do(self, unit: Unit, *, careful: bool = False) -> int:
        """Make what is missing of a unit, and return how many parts that were.

        `careful`: a worker has died with it, so that each part is noted before it is begun.
        Raises UnreadableError where this worker cannot read the models any more, OutputError for the store.
        """
        wave = self.open(unit.wave)
        self._present.update(self.store.names(layer_prefix(unit.layer)))
        self.ended |= self.records.ended(self.plan)
        made = 0
        for job in self._missing(wave, unit.layer):
            if self.stop.is_set():
                break
            if job.parts[unit.layer] not in self._present:  # a twin may have made it
                made += self._make(job, unit.layer, careful)
        return made

    def _make(self, job: OpenJob, layer: str, careful: bool) -> bool:
        """Make one part and write it; put its job aside where that cannot be."""
        start, name = time.perf_counter(), job.parts[layer]
        if careful and not self._dared(job, layer, name):
            return False
        self.busy = True
        try:
            content = self._tried(job, layer)
            self.store.write(name, content)
        except _GivenUpError as error:
            self.put_aside(job.number, str(error), error.tries)
            return False
        finally:
            self.busy = False
        self._present.add(name)
        if careful:
            self.records.try_ends(name)
        self.tell("part", job=job.number, layer=layer, bytes=len(content), seconds=time.perf_counter() - start,
                  share=job.seconds[layer] / (sum(job.seconds.values()) or 1.0))  # fmt: skip
        return True

    def _tried(self, job: OpenJob, layer: str) -> bytes:
        """Return a part's bytes. Raises _GivenUpError when trying is over, UnreadableError for the models."""
        try:
            weights = self.models.layer(job, layer)
        except UnreadableError:
            raise
        except InputError as error:
            raise _GivenUpError(layer, error, 1) from error
        self.records.check_layer(job.identities[layer], layer, weights.facts)
        for number in range(1, TRIES + 1):
            try:
                return run_part(self.plan, Part(job.number, layer), self.models)
            except Exception as error:
                lasting = isinstance(error, InputError) and not isinstance(error, UnreadableError)
                if lasting or number == TRIES:
                    raise _GivenUpError(layer, error, number) from error
                self.models.make_room(error)
                self.tell("retried", job=job.number, layer=layer, reason=str(error), tries=number)
        raise AssertionError

    def _dared(self, job: OpenJob, layer: str, name: str) -> bool:
        """Note that a part is begun; False where workers have died at it too often: then the job is put aside."""
        tries = self.records.tries(name)
        if tries >= TRIES:
            self.put_aside(
                job.number, f"{tries} workers died while they had it in work, at layer {layer}: too little memory, or "
                "a fault of a library; try it alone with `loraport transfer`", tries,
            )  # fmt: skip
            return False
        self.records.try_begins(name, tries, self.claims.who)
        return True

    def put_aside(self, number: int, reason: str, tries: int = 1) -> None:
        """Give a job up, with the reason; the others go on."""
        planned = self.plan.jobs[number]
        config = planned.config
        row = JobRow(config.lora, config.method, planned.name, "failed", reason, config.source, config.target)
        self.records.put_end(planned, JobEnd(planned.name, planned.id, self.plan.machine.key, row, tries=tries))
        self.ended.add(number)
        self.tell("failed", job=number, reason=reason, tries=tries)

    def gather(self, number: int) -> JobEnd | None:
        """Write a job's output of its parts; None where parts are missing, which are known to be missing then."""
        self.busy = True
        try:
            end = gather_job(self.store, self.models, self._opened(number))
        except PartMissingError as error:
            self._lost[number] += 1
            if self._lost[number] >= MOST_LOSSES:
                self.put_aside(number, f"{error}, though it was made {MOST_LOSSES} times; is the store in order?")
            self.look()
            return None
        except UnwritableJobError as error:
            self.put_aside(number, str(error))
            return None
        finally:
            self.busy = False
        self.ended.add(number)
        self.tell("made", job=number, row=end.row.as_json(), lost=end.lost, notes=list(end.notes))
        return end

    def _opened(self, number: int) -> OpenJob:
        try:
            return self.models.job(number)
        except InputError as error:
            raise UnwritableJobError(str(error)) from error

    # by itself, beside others

    def run(self, *, wait: float | None = 0.5) -> bool:
        """Work until all is done, or the stop is set; return whether all is done.

        `wait`: how long to wait before looking again where others have all that is left; None leaves then.
        """
        self.models.set_threads()
        while not self.stop.is_set():
            self.look()
            if len(self.ended) == len(self.plan.jobs):
                return True
            moved = sum(self._wave(wave.number) for wave in self.plan.waves)
            if moved or self.stop.is_set():
                continue
            self.look()
            if len(self.ended) == len(self.plan.jobs):
                return True
            if wait is None:
                return False
            self.tell("waiting")
            self.stop.wait(wait)
        return False

    def _wave(self, number: int) -> int:
        """Do what can be done of a wave now; return how much that was."""
        done = 0
        if self.stop.is_set() or all(job in self.ended for job in self.plan.waves[number].jobs):
            return done
        self._tell_opened(number)
        for unit, lease in self._claimed(number):
            try:
                done += self.do(unit, careful=lease.after_death)
            finally:
                self.claims.release(lease)
        if self.stop.is_set():
            return done
        self.look()
        for job in self.whole(number):
            if self.stop.is_set():
                break
            done += self._gather_claimed(job)
        return done

    def _claimed(self, number: int) -> Iterator[tuple[Unit, Lease]]:
        """Yield units with their leases, first those that it prefers; of other shares those that the dead have left."""
        seconds = self._seconds_of_layers(number)
        own = self.share.own(seconds)
        preferred = self.prefer.own({name: seconds[name] for name in seconds if name in own})
        tried: set[str] = set()
        while not self.stop.is_set():
            units = [unit for unit in self.units(number) if unit.layer not in tried]
            taken = set(self.store.names(f"{LEASES}{self.plan.id}-{number}-"))
            for unit in sorted(units, key=lambda unit: (unit.layer not in preferred, unit.layer not in own)):
                name = self._lease_of_layer(number, unit.layer)
                tried.add(unit.layer)
                if unit.layer not in own and name not in taken:
                    continue
                if (lease := self.claims.take(name)) is not None:
                    yield unit, lease
                    break
            else:
                return

    def _seconds_of_layers(self, number: int) -> dict[str, float]:
        """Return what the layers of a wave's models take: of all, so that shares stay the same from wave to wave."""
        wave = self.open(number)
        first = next(iter(wave.jobs.values()), None)
        if first is None:
            return {}
        target = first.inputs.target
        recipe = first.inputs.config.recipe
        shapes = {name: target.shape(f"{name}.weight") for name in {*target.layers, *wave.names}}
        costs = {name: layer_seconds((shape[0], math.prod(shape[1:])), recipe) for name, shape in shapes.items()}
        return {name: cost.shared + AT_ONCE * cost.own for name, cost in costs.items()}

    def _gather_claimed(self, job: int) -> int:
        lease = self.claims.take(f"{LEASES}{self.plan.id}-gather-{job}.json")
        if lease is None:
            return 0
        try:
            if self.records.end(self.plan.jobs[job]) is not None:
                self.ended.add(job)
                return 0
            return int(self.gather(job) is not None)
        finally:
            self.claims.release(lease)

    def _lease_of_layer(self, number: int, layer: str) -> str:
        return f"{LEASES}{self.plan.id}-{number}-{text_digest(layer)[:16]}.json"

    def _tell_opened(self, number: int) -> None:
        wave = self.open(number)
        there = {
            job.number: sum(job.seconds[name] for name in job.layers if job.parts[name] in self._present)
            / (sum(job.seconds.values()) or 1.0)
            for job in wave.jobs.values()
        }
        self.tell("opened", wave=number, there=there)


class _GivenUpError(InputError):
    """A part that cannot be made."""

    def __init__(self, layer: str, error: Exception, tries: int) -> None:
        known = error if isinstance(error, InputError) else fault_of_ours(error)
        super().__init__(str(known) if layer in str(known) else f"layer {layer}: {known}")
        self.tries = tries
