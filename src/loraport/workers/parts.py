"""Parts: the result of one layer for one job, a safetensors file with the factors and the row of the report.

Any worker may make any part again: its bytes follow from its name. Seconds are in no part, since they differ.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from loraport.compute import TORCH_DTYPES
from loraport.digests import content_hash
from loraport.errors import FileFormatError
from loraport.files.formats.safetensors_read import tensors_in
from loraport.files.formats.safetensors_write import Pending, safetensors_bytes
from loraport.objects.store import MissingObjectError, ObjectStore
from loraport.store.keyed import Entry
from loraport.transfers.journal import LayerStore
from loraport.workers.models import OpenJob, OpenModels
from loraport.workers.plan import RunPlan

AT_ONCE = 16
"""Requests to a store on the network that wait at the same time."""
Made = TypeVar("Made")


@dataclass(frozen=True)
class Part:
    """One layer of one job of a plan."""

    job: int
    layer: str


def run_part(plan: RunPlan, part: Part, models: OpenModels) -> bytes:
    """Make a part: the one code that every worker runs, whoever gave it the work.

    Raises InputError where the LoRA or the models cannot be used in this layer.
    """
    models.set_threads()
    job = models.job(part.job)
    weights = models.layer(job, part.layer)
    transfer = job.run.transfer_layer
    written, result = transfer(job.layers[part.layer], job.inputs.lora.updates[part.layer], weights)
    packed = _Packed(TORCH_DTYPES[plan.jobs[part.job].config.dtype], job.parts[part.layer])
    packed.keep(written, replace(result, seconds=0.0))
    return packed.content


class _Packed(LayerStore):
    """Packs one layer."""

    def __init__(self, dtype: torch.dtype, name: str) -> None:
        self.dtype, self.where, self.content = dtype, name, b""

    def put(self, name: str, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Pack the tensors and facts of the layer."""
        pending = {key: Pending.of(tensor) for key, tensor in tensors.items()}
        text = json.dumps(facts, sort_keys=True)  # which keeps every number
        metadata = {"part": self.where, "facts": text, "seal": _seal(self.where, tensors, text)}
        self.content = safetensors_bytes(pending, metadata)


def _seal(name: str, tensors: Mapping[str, Tensor], facts: str) -> str:
    hashed = content_hash(f"{name}\n{facts}")
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        hashed.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        hashed.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


class StoredParts(LayerStore):
    """The parts of one job as the finished layers of its transfer, each read once."""

    def __init__(self, store: ObjectStore, job: OpenJob) -> None:
        self._store, self._job = store, job
        self._read: dict[str, Entry] = {}
        self.dtype = TORCH_DTYPES[job.inputs.config.dtype]
        self.where = store.url

    def read_all(self) -> None:
        """Read all parts that are there: from a store on the network several at a time."""
        for name, entry in zip(self._job.layers, each(self._store, self._entry, self._job.layers), strict=True):
            if entry is not None:
                self._read[name] = entry

    def get(self, name: str) -> Entry | None:
        """Return a part, or None where there is none; what is damaged counts as absent, and is removed."""
        if name not in self._read and (entry := self._entry(name)) is not None:
            self._read[name] = entry
        return self._read.get(name)

    def _entry(self, name: str) -> Entry | None:
        where = self._job.parts[name]
        try:
            raw = self._store.read(where)
        except MissingObjectError:
            return None
        try:
            return unpacked(raw, where)
        except FileFormatError:
            self._store.delete(where)
            return None


def each(store: ObjectStore, do: Callable[[str], Made], names: Iterable[str]) -> list[Made]:
    """Do something with each of several objects, at once where requests take long."""
    if store.folder is not None:
        return [do(name) for name in names]
    with ThreadPoolExecutor(AT_ONCE, "loraport-objects") as pool:
        return list(pool.map(do, names))


def unpacked(raw: bytes, name: str) -> Entry:
    """Return the layer in a part. Raises FileFormatError for one that is damaged, or another's."""
    tensors, metadata = tensors_in(raw, name)
    facts = metadata.get("facts", "")
    if metadata.get("part") != name or metadata.get("seal") != _seal(name, tensors, facts):
        raise FileFormatError(f"{name} does not match its seal; remove it")
    return Entry(tensors, json.loads(facts))
