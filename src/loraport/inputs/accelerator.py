"""Targets that are a model with an accelerator LoRA: the drift is the accelerator's own update, known exactly.

`MODEL+ACCELERATOR.safetensors[*STRENGTH]`; MODEL may be the word `source`. The result of such a transfer is loaded
beside the accelerator, at the strength that was given here.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loraport.digests import text_digest
from loraport.errors import SettingsError
from loraport.files.additions import Addition, additions
from loraport.files.disk.user_paths import expand_home
from loraport.files.lora.parts import lora_parts_in
from loraport.files.lora.read import Lora, read_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.presets import PRESETS, Opener, open_model
from loraport.files.models.weight import StoredWeight, Weight
from loraport.files.strength import split_strength
from loraport.files.whole_weights import as_differences
from loraport.inputs.drift import Drift, drift_between
from loraport.spectral.kernels import norm

SOURCE = "source"
"""The word for the source itself; a folder of this name is written ./source."""


class AcceleratedPlace(str):
    """A model with an accelerator beside it, where either may be in memory, in the place of MODEL+ACCELERATOR.

    As a text it is the model's name, as messages use it.
    """

    model: str
    accelerator: str
    strength: float

    def __new__(cls, model: str, accelerator: str, strength: float = 1.0) -> AcceleratedPlace:
        """Return the place of a model and an accelerator."""
        place = super().__new__(cls, model)
        place.model, place.accelerator, place.strength = model, accelerator, strength
        return place

    def __deepcopy__(self, memo: object) -> AcceleratedPlace:
        return self


@dataclass(frozen=True)
class AcceleratedModel:
    """A model with an accelerator beside it, as a target of a transfer: names and shapes are the model's."""

    model: Checkpoint
    accelerator: Lora
    strength: float
    on_source: bool
    """Whether the model is the source of the same transfer, so that the accelerator is the whole drift."""
    weights: dict[str, tuple[Addition, ...]]
    """Canonical layer -> what the accelerator adds to its weight."""
    dropped: tuple[tuple[str, str], ...]

    def __iter__(self) -> Iterator[str]:
        return iter(self.model)

    def __contains__(self, name: object) -> bool:
        return name in self.model

    @property
    def where(self) -> str:
        """What messages call it."""
        return f"{self.model.where}+{self.accelerator.path.name}"

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of both."""
        return (*self.model.paths, self.accelerator.path)

    @property
    def part(self) -> str | None:
        """The entry of a pickle that was taken."""
        return self.model.part

    @property
    def extra(self) -> tuple[str, ...]:
        """The model's names outside its family's table; empty on the source, which has notes of its own."""
        return () if self.on_source else self.model.extra

    @property
    def quantized(self) -> tuple[str, ...]:
        """The quantized formats that the model is stored in; empty on the source, which has notes of its own."""
        return () if self.on_source else self.model.quantized

    @property
    def layers(self) -> tuple[str, ...]:
        """The model's layers."""
        return self.model.layers

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter of the model."""
        return self.model.shape(name)

    def load(self, layer: str, *, pinned: bool = False) -> StoredWeight | None:
        """Read the bytes of the model's weight; None on the source, whose own are read anyway."""
        return None if self.on_source else self.model.load(layer, pinned=pinned)

    def content_hash(self, layer: str, model_hash: str) -> str:
        """Return a hash of the weight that both make together; the model's own where the layer is left alone."""
        return self._hash(model_hash) if self.weights.get(layer) else model_hash

    def drift(self, layer: str, source: Weight, stored: StoredWeight | None) -> Drift:
        """Return the layer's drift in float32.

        On the source it is strength · B·A: nothing is subtracted, so it has no rounding error. On another model
        W_m − W_s is added to it; where that is zero, the model is the source in this layer.
        """
        terms = self.weights.get(layer, ())
        if stored is None:
            drift, W = Drift(torch.zeros_like(source.matrix), 0.0), source.matrix
        else:
            model = stored.on(source.matrix.device)
            own = any(term.needs_weight for term in terms)  # they look at the model's weight itself
            W = model.matrix.clone() if own else model.matrix
            drift = drift_between(source, model, in_place=True)
            if not drift.norm:
                drift = replace(drift, floor=0.0)
        for term in terms:
            term.add_to(drift.matrix, W)
        if terms:
            drift = replace(drift, norm=norm(drift.matrix))
        return drift

    def notes(self, layers: Container[str], count: int) -> list[str]:
        """Return what the user should know before the transfer of a LoRA with `count` layers."""
        name = self.accelerator.path.name
        notes = [f"load the result beside {name} at strength {self.strength:g}: the accelerator is not in it"]
        notes += [f"{name}: {note}" for note in self.accelerator.notes]
        touched = sum(layer in layers for layer in self.weights)
        if self.on_source and touched < count:
            notes.append(
                f"{name} leaves {count - touched} of the LoRA's {count} layers alone: their drift is zero, so direct "
                "reuse is exact there"
            )
        if self.dropped:
            notes.append(
                f"{len(self.dropped)} keys of {name} have no place in {self.model.where}, so they are not in the "
                f"drift: {self.dropped[0][0]}, for one ({self.dropped[0][1]})"
            )
        return notes

    def provenance(self) -> dict[str, str]:
        """Return what a written file says of its target."""
        return {
            "target": f"{Path(self.model.where).name}+{self.accelerator.path.name}",
            "accelerator": self.accelerator.path.name,
            "accelerator_sha256": self.accelerator.sha256,
            "accelerator_strength": repr(self.strength),
            "load": "beside the accelerator, which is not in this file",
        }

    def _hash(self, model_hash: str) -> str:
        text = f"{model_hash} {self.accelerator.sha256} {self.strength!r}"
        return text_digest(text)


Target = Checkpoint | AcceleratedModel


def open_target(
    text: str,
    source: Checkpoint,
    *,
    part: str | None = None,
    layers: Collection[str] | None = None,
    lora_part: str | None = None,
    open_model: Opener = open_model,
) -> Target:
    """Open a target: a model (of which `layers` will be read), or a model with an accelerator.

    `lora_part`: which of several LoRAs in the accelerator's file, if there are several. `open_model`: how a model is
    opened.

    Raises InputError for what cannot be read, MismatchError for an accelerator of another model, SettingsError for an
    invalid strength.
    """
    if isinstance(text, AcceleratedPlace):
        place, strength, on_source = text.accelerator, text.strength, False
        model = open_model(text.model, part=part)
    elif (pair := split_target(text)) is None:
        return open_model(text, part=part, layers=layers)
    else:
        place, strength = split_strength(pair[1])
        on_source = pair[0] == SOURCE
        model = source if on_source else open_model(pair[0], part=part)
    several = lora_part is not None and lora_parts_in(place)
    accelerator = as_differences(read_lora(place, dense=True, keep=False, part=lora_part if several else None), model)
    adds = additions(accelerator, strength, model)
    weights = {
        name.removesuffix(".weight"): terms for name, terms in adds.by_parameter.items() if name.endswith(".weight")
    }
    return AcceleratedModel(model, accelerator, strength, on_source, weights, adds.keys.dropped)


def split_target(text: str) -> tuple[str, str] | None:
    """Return (MODEL, ACCELERATOR[*STRENGTH]); None for a single model: without a plus sign, or a path that exists.

    Of several plus signs the one between two existing paths divides. Raises SettingsError if a half is empty, and for
    several accelerators.
    """
    if "+" not in text or expand_home(text).exists():
        return None
    cuts = [(text[:at], text[at + 1 :]) for at, letter in enumerate(text) if letter == "+"]
    known = [
        cut for cut in cuts if cut[0] == SOURCE or cut[0] in PRESETS or _exists(cut[0]) or looks_like_hub_id(cut[0])
    ]
    both = [cut for cut in known if _exists(cut[1]) or _exists(cut[1].rpartition("*")[0])]
    _refuse_several(text)
    chosen = (both or known or cuts)[0]
    if not all(chosen):
        raise SettingsError(
            f"{text!r} is missing the model or the accelerator: write MODEL+ACCELERATOR.safetensors, or "
            "source+ACCELERATOR"
        )
    return chosen


def _refuse_several(text: str) -> None:
    """Raise SettingsError for a target that names more than one accelerator, all of them existing."""
    model, *beside = text.split("+")
    places = [one if _exists(one) else one.rpartition("*")[0] for one in beside]
    if len(places) > 1 and (model == SOURCE or model in PRESETS or _exists(model)) and all(map(_exists, places)):
        raise SettingsError(
            f"{text!r} names {len(places)} accelerators, and one is taken: add them to the model and give that as the "
            f"target (loraport merge MODEL {' '.join(beside)} -o OUT); the result is then loaded beside them all"
        )


def target_places(text: str) -> tuple[str, ...]:
    """Return the places that a target names, without a strength."""
    pair = split_target(text)
    return (text,) if pair is None else (pair[0], split_strength(pair[1])[0])


def _exists(place: str) -> bool:
    return bool(place) and expand_home(place).exists()
