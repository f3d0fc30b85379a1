"""Gather the parts of a job: the same output, byte for byte, that `transfer` writes, and a record of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from loraport.batches.results import JobRow
from loraport.digests import text_digest
from loraport.errors import InputError, UnreadableError
from loraport.objects.store import ObjectStore
from loraport.store.bases import BasisCache
from loraport.store.basis_source import BasisSource
from loraport.transfers.run import finished_result
from loraport.workers.models import OpenJob, OpenModels
from loraport.workers.outputs import Outputs
from loraport.workers.parts import StoredParts, each
from loraport.workers.plan import lora_state
from loraport.workers.records import JobEnd, Records


class UnwritableJobError(InputError):
    """A job of which all parts are there, and yet no result can be made: its LoRA has changed, or has nothing left."""


class PartMissingError(UnreadableError):
    """A part is not there, or damaged, so that it has to be made again."""


def gather_job(store: ObjectStore, models: OpenModels, job: OpenJob) -> JobEnd:
    """Write a job's output and its record, and remove its parts, unless another job of the wave waits for the same.

    Raises PartMissingError; UnwritableJobError where the job is at fault, UnreadableError and OutputError where the
    store is.
    """
    planned, parts = models.plan.jobs[job.number], StoredParts(store, job)
    parts.read_all()
    recalled = {}
    for name in job.layers:
        part = parts.recall(name)
        if part is None:
            raise PartMissingError(f"{store.url} has no whole part of {name} for {planned.name}")
        recalled[name] = part[1]
    run = replace(job.run, journal=parts, results=recalled)
    files: dict[str, int] = {}
    bases = BasisSource(BasisCache(None), models.torch_device)
    try:
        result = finished_result(run, bases, lambda contents: files.update(Outputs(store).save(planned.name, contents)))
    except InputError as error:
        raise UnwritableJobError(str(error)) from error
    row = replace(JobRow.of(result), lora=planned.config.lora, output=planned.name)
    end = JobEnd(
        planned.name, planned.id, models.plan.machine.key, row, files, contents_of(job), seen_files(job),
        result.lost, notes=tuple(result.warnings),
    )  # fmt: skip
    records = Records(store)
    records.put_end(planned, end)
    if all(records.end(models.plan.jobs[twin]) is not None for twin in models.twins(job)):
        each(store, store.delete, job.parts.values())
    return end


def contents_of(job: OpenJob) -> str:
    """Return a text that differs where the LoRA, the settings or a weight that was used is another."""
    return text_digest(job.key, *(job.identities[name] for name in job.layers))


def seen_files(job: OpenJob) -> list[Any]:
    """Return how the files of LoRA and models stand on this machine's disk: the same state is the same content."""
    models = sorted({*job.inputs.source.paths, *job.inputs.target.paths})
    states = [[str(path), path.stat().st_size, path.stat().st_mtime_ns] for path in models]
    return [lora_state(job.inputs.config.lora), states]
