"""What names a part: contents of the LoRA, settings, machine, and the layer's weights in both models.

A layer's weights are known before they are read by where they stand in which file, and a file by its size and samples
of its bytes: the same on every machine that has a copy. What is read is hashed whole, and compared with what the other
workers of the run have read (`records.check_layer`).
"""

from __future__ import annotations

from pathlib import Path

from loraport.digests import content_hash, text_digest
from loraport.files.disk.identity import FileIdentity
from loraport.files.models.checkpoint import Checkpoint
from loraport.inputs.accelerator import AcceleratedModel
from loraport.inputs.identity import work_digest
from loraport.inputs.open import TransferInputs
from loraport.inputs.rank import common_rank
from loraport.plain_json import json_text
from loraport.workers.machine import Machine

PART_FORM = 1
"""Of the parts' content and names."""
PARTS = ".batch/parts/"
SAMPLES, SAMPLE = 64, 4096
"""Places in a file that are looked at, and bytes at each."""


class FileSamples:
    """Digests of files by samples, each made once while the file stays as it is."""

    def __init__(self) -> None:
        self._known: dict[Path, tuple[FileIdentity, str]] = {}

    def of(self, path: Path) -> str:
        """Return the digest of a file's size and samples. Raises OSError, UnreadableError."""
        identity = FileIdentity.at(path)
        known = self._known.get(path)
        if known is None or known[0] != identity:
            hashed = content_hash(f"loraport samples {identity.size}")
            last = max(0, identity.size - SAMPLE)
            with identity.open(path) as file:
                for place in sorted({last * at // (SAMPLES - 1) for at in range(SAMPLES)}):
                    file.seek(place)
                    hashed.update(file.read(SAMPLE))
            self._known[path] = known = identity, hashed.hexdigest()
        return known[1]


def job_key(inputs: TransferInputs, machine: Machine) -> str:
    """Return what all parts of a job share in their names."""
    layers = [[job.name, job.action, list(job.shape), job.rank, job.aim] for job in inputs.plan.jobs]
    rank = common_rank(inputs.config, inputs.plan)
    return text_digest(
        f"loraport part {PART_FORM}", machine.key, inputs.lora.sha256, work_digest(inputs.config), str(rank),
        json_text(layers),
    )[:32]  # fmt: skip


def layer_identity(inputs: TransferInputs, layer: str, samples: FileSamples) -> str:
    """Return a text that differs where a layer's weights are others, in either model."""
    lines = [layer, _stored(inputs.source, layer, samples)]
    target = inputs.target
    if isinstance(target, AcceleratedModel):
        lines.append(
            target.content_hash(layer, "source" if target.on_source else _stored(target.model, layer, samples))
        )
    else:
        lines.append(_stored(target, layer, samples))
    return text_digest(*lines)[:32]


def _stored(model: Checkpoint, layer: str, samples: FileSamples) -> str:
    name = f"{layer}.weight"
    where = [samples.of(model.path(name)), model.key(name), list(model.shape(name)), model.format(name), model.part]
    return json_text(where)


def part_name(key: str, identity: str, layer: str) -> str:
    """Return the name of a part: a digest of all that its bytes follow from. Parts of a layer lie together."""
    return f"{layer_prefix(layer)}{text_digest(key, identity)[:32]}.safetensors"


def layer_prefix(layer: str) -> str:
    """Return how the names of all parts of a layer begin."""
    return f"{PARTS}{text_digest(layer)[:16]}/"
