"""Add LoRAs to the weights of a model, for inference code that cannot load them."""

from __future__ import annotations

import json
import os
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport.errors import InputError, SettingsError
from loraport.files.accelerator_names import files_of
from loraport.files.additions import Addition, Additions, additions
from loraport.files.formats.safetensors_read import read_safetensors
from loraport.files.formats.safetensors_write import OWN_PREFIX
from loraport.files.lora.header import shown_fields
from loraport.files.lora.key_account import KeyAccount
from loraport.files.lora.provenance import own_header
from loraport.files.lora.read import Lora, read_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.encoders import with_encoders
from loraport.files.models.layout import assumed_layout, parse_layouts
from loraport.files.models.locate import INNER_FOLDERS
from loraport.files.models.presets import open_model
from loraport.files.models.shards import SAFETENSORS
from loraport.files.models.write import check_output_path, is_folder, write_model
from loraport.files.names.families import Layout
from loraport.files.strength import split_strength
from loraport.files.whole_weights import as_differences
from loraport.progress import NO_PROGRESS, Progress, counter, observer

MERGED = f"{OWN_PREFIX}merged"


@dataclass(frozen=True)
class Ingredient:
    """One LoRA of a merge: its name, content, strength, and what it adds to the model."""

    place: str
    strength: float
    lora: Lora
    adds: Additions

    def provenance(self) -> dict[str, Any]:
        """Return what the written file says of it."""
        words = shown_fields(self.lora.metadata)
        own = {"lora": self.lora.path.name, "sha256": self.lora.sha256, "strength": self.strength}
        return own | ({"words": words} if words else {})


@dataclass(frozen=True)
class Merge:
    """A finished merge."""

    output: str
    files: int
    parameters: int
    """Tensors of the model."""
    changed: int
    """How many of them a LoRA was added to."""
    loras: tuple[Mapping[str, Any], ...]
    keys: KeyAccount
    notes: tuple[str, ...]

    @property
    def lost(self) -> bool:
        """Whether some key of a LoRA has no place in the model."""
        return bool(self.keys.dropped)

    def as_json(self) -> dict[str, Any]:
        """Return the one object that `--json` prints."""
        return {**vars(self), "loras": list(self.loras), "keys": self.keys.as_json(), "notes": list(self.notes)}


def merge(
    model_place: str | os.PathLike[str],
    loras: str | os.PathLike[str] | Sequence[str | os.PathLike[str]],
    output: str | os.PathLike[str],
    *,
    part: str | None = None,
    lora_part: str | None = None,
    qkv: Sequence[str] = (),
    progress: Progress = NO_PROGRESS,
) -> Merge:
    """Add LoRAs (`LORA` or `LORA*STRENGTH`) to a model: sums in float32, rounded once, one tensor in memory at a time.

    LORA may also be an accelerator's name from `loraport presets`, which has a strength of its own.

    A path is a text or a `Path`; one LoRA may stand without a list. The model keeps its names, dtypes and shards.

    `qkv`: how the rows of fused q, k and v lie where names do not tell: `interleaved`, `lora=stacked`, `model=stacked`.

        loraport.merge("wan2.1_t2v_1.3B_fp16.safetensors", "accelerator.safetensors*0.8", "fast.safetensors")

    Raises InputError for what cannot be read or does not belong together, OutputError for what cannot be written.
    """
    places = [os.fspath(one) for one in ((loras,) if isinstance(loras, str | os.PathLike) else loras)]
    if not places:
        raise SettingsError("there is no LoRA to merge; give at least one")
    places = [file for text in places for file in files_of(text, os.fspath(model_place))]
    model_place, output = os.fspath(model_place), os.path.expanduser(os.fspath(output))
    asked = parse_layouts(qkv, ("lora", "model"))
    model = with_encoders(assumed_layout(open_model(model_place, part=part), asked.get("model"), "model"))
    check_output_path(Path(output), model, [model_place, *(split_strength(text)[0] for text in places)])
    parts = [_ingredient(text, model, lora_part, asked.get("lora")) for text in places]
    check_output_path(Path(output), model, [one.lora.path for one in parts])
    terms: dict[str, list[Addition]] = {}
    for one in parts:
        for name, added in one.adds.by_parameter.items():
            terms.setdefault(name, []).extend(added)
    _refuse_quantized(model, terms)
    reports = counter(observer(progress), "merging", model.bytes)
    changed = {name: partial(summed, model, name, added) for name, added in terms.items()}
    write_model(Path(output), model, changed, _metadata(model, parts), reports)
    return Merge(
        output,
        len(model.paths),
        len(model.stored),
        sum(any(name in changed for name, _ in pieces) for _, pieces in model.stored.values()),
        tuple(one.provenance() | {"keys": one.adds.keys.as_json()} for one in parts),
        KeyAccount.joined([(one.lora.path.name, one.adds.keys) for one in parts]),
        (*model.notes, *_notes_on(parts), *_notes(model, output)),
    )


def _refuse_quantized(model: Checkpoint, changed: Container[str]) -> None:
    """Raise InputError if a parameter is stored in a quantized format and would change, or cannot be copied."""
    for stored, pieces in model.stored.values():
        if stored.quantization is None:
            continue
        if stored.path.suffix not in SAFETENSORS or any(name in changed for name, _ in pieces):
            raise InputError(
                f"{model.where}: {stored.key} is stored as {stored.quantization.format}, to which nothing can be added "
                "exactly; merge into its bf16, fp16 or fp32 file and quantise the result"
            )


def summed(model: Checkpoint, name: str, terms: Sequence[Addition]) -> Tensor:
    """Return a parameter with everything added to it, in its own dtype; summed in float32, or float64 if stored so.

    Raises InputError if nothing can be added to the parameter, or the sum does not fit its dtype.
    """
    stored = model.tensor(name)
    if not stored.dtype.is_floating_point or stored.dtype.itemsize == 1:
        raise InputError(f"{model.where}: {name} is stored as {stored.dtype}, to which nothing can be added exactly")
    # a DoRA is relative to the weight before anything is added to it: that one is kept apart
    own = any(term.needs_weight for term in terms)
    W = stored.to(torch.promote_types(stored.dtype, torch.float32), copy=own).contiguous()
    for term in terms:
        term.add_to(W, stored)
    rounded = W.to(stored.dtype)
    if not torch.isfinite(rounded).all():
        raise InputError(f"{model.where}: {name} with the LoRAs is not finite in {stored.dtype}; lower the strength")
    return rounded


def _ingredient(text: str, model: Checkpoint, part: str | None, qkv: Layout | None) -> Ingredient:
    place, strength = split_strength(text)
    lora = as_differences(read_lora(place, dense=True, keep=False, part=part, qkv=qkv), model)
    return Ingredient(place, strength, lora, additions(lora, strength, model))


def _metadata(model: Checkpoint, parts: Sequence[Ingredient]) -> dict[str, str]:
    """Names without folders, contents by hash; what an earlier merge wrote stays true."""
    base = {"model": Path(model.where).name, "identity": model.identity()}
    steps = [*_earlier(model), {**base, "loras": [part.provenance() for part in parts]}]
    return own_header(merged=steps)


def _earlier(model: Checkpoint) -> list[Any]:
    path = model.paths[0]
    text = read_safetensors(path).metadata.get(MERGED, "[]") if path.suffix in SAFETENSORS else "[]"
    try:
        steps = json.loads(text)
    except ValueError:
        return []
    return steps if isinstance(steps, list) else []


def _notes_on(parts: Sequence[Ingredient]) -> list[str]:
    """Return the LoRAs' notes; each names its LoRA if there are several."""
    return [note if len(parts) == 1 else f"{part.lora.path.name}: {note}" for part in parts for note in part.lora.notes]


def _notes(model: Checkpoint, output: str) -> list[str]:
    path = model.paths[0]
    folder = path.parent.name
    if path.suffix not in SAFETENSORS:
        part = f", part {model.part!r}" if model.part else ""
        return [f"{path.name}{part} is now a safetensors file with the same keys; other parts are not in it"]
    if is_folder(model) and folder in INNER_FOLDERS and not model.where.rstrip("/").endswith(folder):
        return [f"{output} takes the place of {folder}/ in the pipeline"]
    return []
