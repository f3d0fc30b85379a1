"""Recognise outputs that an earlier start has finished: by what their header says of settings and contents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from loraport._version import __version__
from loraport.errors import InputError
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.files.disk.user_paths import expand_home
from loraport.files.formats.safetensors_read import read_safetensors
from loraport.files.formats.safetensors_write import OWN_PREFIX
from loraport.inputs.identity import work_digest
from loraport.inputs.open import TransferInputs
from loraport.transfers.layer_source import StoredLayer
from loraport.transfers.output import combined_hash


def earlier_header(output: str) -> Mapping[str, str] | None:
    """Return what a file of ours under an output's name says of itself; None where there is none, or it is another's.

    A damaged file counts as none of ours.
    """
    place = expand_home(output)
    if place.is_dir() and not (place / CONFIG_NAME).is_file():
        return None
    file = place / WEIGHTS_NAME if place.is_dir() else place
    try:
        metadata = read_safetensors(file).metadata
    except (InputError, OSError):
        return None
    return metadata if f"{OWN_PREFIX}target" in metadata else None


@dataclass
class WeightHashes:
    """The hashes of the layers' weights in one pair of models, each read when it is first asked for."""

    known: dict[str, tuple[str, str]] = field(default_factory=dict)

    def of(self, layer: str, inputs: TransferInputs) -> tuple[str, str]:
        """Return those of the source's weight and of the target's."""
        if layer not in self.known:
            stored = StoredLayer.load(layer, inputs.source, inputs.target)
            self.known[layer] = stored.before.fingerprint, stored.target_hash
        return self.known[layer]


def is_finished(inputs: TransferInputs, header: Mapping[str, str], hashes: WeightHashes | None) -> bool:
    """Return whether a file with this header is what the run would write: the same LoRA, settings and weights.

    The weights are read only where all else agrees; without `hashes` they are not looked at. What another version of
    this program made is made again.
    """
    config = inputs.config
    expected = {
        "version": __version__,
        "method": config.method,
        "lora_sha256": inputs.lora.sha256,
        "work": work_digest(config),
    }
    if any(header.get(f"{OWN_PREFIX}{name}") != value for name, value in expected.items()):
        return False
    if hashes is None:
        return True
    layers = [job.name for job in inputs.plan.of("transfer")]
    pairs = {layer: hashes.of(layer, inputs) for layer in layers}
    return all(
        header.get(f"{OWN_PREFIX}{name}_hash") == combined_hash((layer, pair[at]) for layer, pair in pairs.items())
        for at, name in enumerate(("source", "target"))
    )


def is_unfinished(output: str) -> bool:
    """Return whether an interrupted run has left finished layers beside an output."""
    return Path(f"{expand_home(output)}.partial").is_dir()
