"""A LoRA transferred onto the weights of a MODEL, without a file: its tensors, kept by what they were made of."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

import loraport
from loraport import OutputError, TransferConfig, transfer_state
from loraport.diagnosis.diagnose import Named
from loraport.diagnosis.recommend import recommended
from loraport.inputs.config import RankRule
from loraport.store.keyed import Entry, KeyedStore

from .jobs import RECOMMEND, check_method
from .model_target import ModelTarget
from .progress import NodeProgress
from .words import transfer_words

_OF_A_FILE = "load the result beside"
"""How a note begins that is for the user of a file: here accelerators are loaded already."""
KEPT = 8
"""Results that stay on the disk; the one that was used longest ago goes first."""
_ADAPTER, _COUNTER = "adapter", "counter-drift"
"""Stand before the names of a kept result's tensors."""


@dataclass(frozen=True)
class Wanted:
    """What is to be transferred, from where, and how."""

    lora: Path
    source: str
    method: str
    rank: str
    device: str
    cache: str | None
    separate: bool
    """Whether what is left of the LoRA and what is taken back of the drift are wanted apart."""
    lora_part: str | None = None
    """Which of several LoRAs in the file."""

    def digest(self, target: ModelTarget) -> str:
        """Return the same text for the same contents and settings; the source counts by its path, size and time."""
        source = [_state(path) for path in _files_of(self.source)]
        own = hashlib.sha256(self.lora.read_bytes()).hexdigest()
        facts = [loraport.__version__, own, self.source, source, target.digest]
        return hashlib.sha256(
            json.dumps([*facts, self.method, self.rank, self.separate, self.lora_part]).encode()
        ).hexdigest()


@dataclass(frozen=True)
class Applied:
    """The parts of a transferred LoRA by ComfyUI's names, and what to say of them."""

    adapter: Mapping[str, Tensor]
    """The whole update, or what is left of the LoRA where the counter-drift is apart."""
    counter_drift: Mapping[str, Tensor]
    text: str


def applied(wanted: Wanted, target: ModelTarget, folder: Path, progress: NodeProgress) -> Applied:
    """Return a LoRA for a MODEL: as it was made before of the same contents, or made now.

    Raises InputError as a transfer does, and where the LoRA does not belong to these models.
    """
    store, key = KeyedStore(folder, flat=True), wanted.digest(target)
    if (found := _recalled(store, key)) is not None:
        return found
    made = _made(wanted, target, progress)
    _keep(store, key, made, progress)
    return made


def _made(wanted: Wanted, target: ModelTarget, progress: NodeProgress) -> Applied:
    check_method(wanted.method)
    progress.make_room(wanted.device)
    config, advice = _configured(wanted, target, progress)
    settings: dict[str, Any] = {
        "method": config.method, "rank": config.rank, "format": "comfy", "device": config.device,
        "cache": config.cache, "advised": advice, "lora_part": config.lora_part,
    }  # fmt: skip
    has_parts = config.recipe.method.parts is not None
    first = "adapter" if wanted.separate and has_parts else "whole"
    state = transfer_state(wanted.lora, wanted.source, target.place, part=first, progress=progress, **settings)
    counter: Mapping[str, Tensor] = {}
    if first == "adapter":
        other = transfer_state(
            wanted.lora, wanted.source, target.place, part="counter-drift", progress=progress, **settings
        )
        counter = other.tensors
    if wanted.separate and not has_parts:
        progress.note(
            f"{config.method} takes nothing back of the target's drift, so counter_drift_strength changes nothing"
        )
    if target.patched:
        progress.note(
            f"what was loaded before this node changes {target.patched} weights, and counts as a part of the target"
        )
    warnings, notes = ([one for one in said if not one.startswith(_OF_A_FILE)] for said in (
        state.result.warnings, progress.notes,
    ))  # fmt: skip
    result = replace(state.result, lora=str(wanted.lora), warnings=tuple(warnings))
    return Applied(state.tensors, counter, transfer_words(result, advice, notes, "It is in the MODEL now."))


def _configured(wanted: Wanted, target: ModelTarget, progress: NodeProgress) -> tuple[TransferConfig, str]:
    """Return the transfer with its method, and the verdict that chose it, "" where the user did."""
    method = "casa" if wanted.method == RECOMMEND else wanted.method
    config = TransferConfig(
        str(wanted.lora), wanted.source, target.place, "", method=method, rank=RankRule.parse(wanted.rank),
        device=wanted.device, cache=wanted.cache, format="comfy", lora_part=wanted.lora_part,
    )  # fmt: skip
    if wanted.method != RECOMMEND:
        return config, ""
    named = Named(str(wanted.lora), wanted.source, str(target.place), config)
    config, told = recommended(config, named=named, progress=progress)
    return config, told.line()


def _recalled(store: KeyedStore, key: str) -> Applied | None:
    """Return what was kept; None where nothing was, or what is left of it is damaged."""
    entry = store.get(key)
    if entry is None:
        return None
    os.utime(store.path(key))
    parts: dict[str, dict[str, Tensor]] = {_ADAPTER: {}, _COUNTER: {}}
    for name, tensor in entry.tensors.items():
        part, _, own = name.partition("/")
        parts[part][own] = tensor
    return Applied(parts[_ADAPTER], parts[_COUNTER], str(entry.facts["text"]))


def _keep(store: KeyedStore, key: str, made: Applied, progress: NodeProgress) -> None:
    """Keep a result, and remove what was used longest ago. What cannot be kept is said: it is made again then."""
    parts = {_ADAPTER: made.adapter, _COUNTER: made.counter_drift}
    tensors = {f"{part}/{name}": tensor for part, own in parts.items() for name, tensor in own.items()}
    try:
        store.put(key, Entry(tensors, {"text": made.text}))
    except (OutputError, OSError) as error:
        progress.note(f"the result is not kept for the next time: {error}")
        return
    entries = sorted(store.folder.glob("*.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    for old in entries[:-KEPT]:
        old.unlink(missing_ok=True)


def _files_of(place: str) -> list[Path]:
    """Return the files of a place on this disk; a preset or a Hub id has none here."""
    path = Path(place)
    if path.is_dir():
        return sorted(found for found in path.rglob("*") if found.is_file())
    return [path] if path.is_file() else []


def _state(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def unplaced(tensors: Mapping[str, Tensor], known: Mapping[str, object]) -> list[str]:
    """Return the keys of a LoRA for which a MODEL has no weight, by ComfyUI's map of names."""
    return [key for key in tensors if not any(key[:at] in known for at, letter in enumerate(key) if letter == ".")]
