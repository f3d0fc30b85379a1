"""Targets that are a model with accelerator LoRAs: the drift is what these add, known exactly.

`MODEL+ACCELERATOR.safetensors[*STRENGTH]`, with as many accelerators as are loaded together; MODEL may be the word
`source`. The result of such a transfer is loaded beside them, at the strengths that were given here.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from loraport.digests import text_digest
from loraport.errors import SettingsError
from loraport.files.accelerator_names import files_of, is_named
from loraport.files.additions import Addition, additions
from loraport.files.disk.user_paths import expand_home
from loraport.files.lora.parts import lora_parts_in
from loraport.files.lora.provenance import accelerator_fields
from loraport.files.lora.read import Lora, read_lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.presets import PRESETS, Opener, open_model
from loraport.files.models.weight import StoredWeight, Weight
from loraport.files.presets.pairs import SOURCE as SOURCE
from loraport.files.strength import split_strength
from loraport.files.whole_weights import as_differences
from loraport.inputs.drift import Drift, drift_between
from loraport.objects.open import is_url
from loraport.spectral.kernels import norm


class AcceleratedPlace(str):
    """A model with accelerators beside it, any of them perhaps in memory, in the place of MODEL+ACCELERATOR+....

    As a text it is the model's name, as messages use it.
    """

    model: str
    beside: tuple[tuple[str, float], ...]
    """The accelerators' places, with their strengths."""

    def __new__(cls, model: str, *beside: tuple[str, float]) -> AcceleratedPlace:
        """Return the place of a model and accelerators."""
        place = super().__new__(cls, model)
        place.model, place.beside = model, beside
        return place

    def __deepcopy__(self, memo: object) -> AcceleratedPlace:
        return self


@dataclass(frozen=True)
class Accelerator:
    """A LoRA that belongs to a target, as it is loaded with it."""

    lora: Lora
    strength: float
    dropped: tuple[tuple[str, str], ...]
    """Its keys that have no place in the model, with the reason."""
    hub: str = ""
    """Its Hub id, where it was fetched from there."""

    @property
    def name(self) -> str:
        """Its file's name."""
        return self.lora.path.name

    def in_words(self) -> str:
        """Return the name and the strength."""
        return f"{self.name} at strength {self.strength:g}"


@dataclass(frozen=True)
class AcceleratedModel:
    """A model with accelerators beside it, as a target of a transfer: names and shapes are the model's."""

    model: Checkpoint
    accelerators: tuple[Accelerator, ...]
    on_source: bool
    """Whether the model is the source of the same transfer, so that the accelerators are the whole drift."""
    weights: dict[str, tuple[Addition, ...]]
    """Canonical layer -> what the accelerators add to its weight."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.model)

    def __contains__(self, name: object) -> bool:
        return name in self.model

    @property
    def where(self) -> str:
        """What messages call it."""
        return "+".join((self.model.where, *self.names))

    @property
    def names(self) -> tuple[str, ...]:
        """The accelerators' files, without folders."""
        return tuple(one.name for one in self.accelerators)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The files of all."""
        return (*self.model.paths, *(one.lora.path for one in self.accelerators))

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
        """Return a hash of the weight that all make together; the model's own where the layer is left alone."""
        return self._hash(model_hash) if self.weights.get(layer) else model_hash

    def drift(self, layer: str, source: Weight, stored: StoredWeight | None) -> Drift:
        """Return the layer's drift in float32.

        On the source it is Σ strength · B·A: nothing is subtracted, so it has no rounding error. On another model
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
        several = len(self.accelerators) > 1
        beside = " and ".join(one.in_words() for one in self.accelerators)
        missing = "the accelerators are" if several else "the accelerator is"
        notes = [f"load the result beside {beside}: {missing} not in it"]
        notes += [f"{one.name}: {note}" for one in self.accelerators for note in one.lora.notes]
        touched = sum(layer in layers for layer in self.weights)
        if self.on_source and touched < count:
            notes.append(
                f"{' and '.join(self.names)} {'leave' if several else 'leaves'} {count - touched} of the LoRA's "
                f"{count} layers alone: their drift is zero, so direct reuse is exact there"
            )
        notes += [
            f"{len(one.dropped)} keys of {one.name} have no place in {self.model.where}, so they are not in the drift: "
            f"{one.dropped[0][0]}, for one ({one.dropped[0][1]})"
            for one in self.accelerators
            if one.dropped
        ]
        return notes

    def provenance(self) -> dict[str, str]:
        """Return what a written file says of its target."""
        return {
            "target": "+".join((Path(self.model.where).name, *self.names)),
            **accelerator_fields((one.name, one.lora.sha256, one.strength, one.hub) for one in self.accelerators),
        }

    def _hash(self, model_hash: str) -> str:
        beside = (f"{one.lora.sha256} {one.strength!r}" for one in self.accelerators)
        return text_digest(" ".join((model_hash, *beside)))


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
    """Open a target: a model (of which `layers` will be read), or a model with accelerators.

    `lora_part`: which of several LoRAs in an accelerator's file, if there are several. `open_model`: how a model is
    opened.

    Raises InputError for what cannot be read, MismatchError for an accelerator of another model, SettingsError for an
    invalid strength.
    """
    if isinstance(text, AcceleratedPlace):
        beside, on_source = list(text.beside), False
        model = open_model(text.model, part=part)
    elif (pieces := split_target(text)) is None:
        return open_model(text, part=part, layers=layers)
    else:
        beside = [split_strength(one) for one in pieces[1:]]
        on_source = pieces[0] == SOURCE
        model = source if on_source else open_model(pieces[0], part=part)
    accelerators: list[Accelerator] = []
    weights: dict[str, tuple[Addition, ...]] = {}
    for place, strength in beside:
        own_part = lora_part if lora_part is not None and lora_parts_in(place) else None
        lora = as_differences(read_lora(place, dense=True, keep=False, part=own_part), model)
        adds = additions(lora, strength, model)
        hub = place if isinstance(place, str) and not _exists(place) and looks_like_hub_id(place) else ""
        accelerators.append(Accelerator(lora, strength, adds.keys.dropped, hub))
        for name, terms in adds.by_parameter.items():
            if name.endswith(".weight"):
                layer = name.removesuffix(".weight")
                weights[layer] = (*weights.get(layer, ()), *terms)
    return AcceleratedModel(model, tuple(accelerators), on_source, weights)


def split_target(text: str) -> tuple[str, ...] | None:
    """Return (MODEL, ACCELERATOR[*STRENGTH], ...); None for a single model: without a plus sign, or a path that exists.

    A plus sign may also be part of a path or a number: they divide so that all pieces exist, if they can. Names of
    accelerators stand for their files, at the recommended strengths. Raises SettingsError if a piece is empty, and for
    a name that means none or several.
    """
    if "+" not in text or expand_home(text).exists():
        return None
    words = text.split("+")
    cuts = [("+".join(words[:count]), *_joined(words[count:])) for count in range(1, len(words))]
    known = [cut for cut in cuts if _is_model(cut[0])]
    whole = [cut for cut in known if all(map(_is_there, cut[1:]))]
    chosen = (whole or known or cuts)[0]
    if not all(chosen):
        raise SettingsError(
            f"{text!r} is missing the model or the accelerator: write MODEL+ACCELERATOR.safetensors, or "
            "source+ACCELERATOR"
        )
    model, *beside = chosen
    return (model, *(file for one in beside for file in files_of(one, model)))


def _joined(words: Sequence[str]) -> tuple[str, ...]:
    """Return accelerators whose texts were cut at each plus sign: the shortest that exist, then what is left."""
    for count in range(1, len(words)):
        if _is_there(first := "+".join(words[:count])):
            return (first, *_joined(words[count:]))
    return ("+".join(words),)


def target_places(text: str) -> tuple[str, ...]:
    """Return the places that a target names, without strengths."""
    pieces = split_target(text)
    return (text,) if pieces is None else (pieces[0], *(split_strength(one)[0] for one in pieces[1:]))


def _is_model(place: str) -> bool:
    return place == SOURCE or place in PRESETS or _exists(place) or looks_like_hub_id(place)


def _is_there(text: str) -> bool:
    """Return whether ACCELERATOR[*STRENGTH] names one that exists, or that may be on the Hub."""
    try:
        place, _ = split_strength(text)
    except SettingsError:
        return False
    return _exists(place) or looks_like_hub_id(place) or is_named(text)


def _exists(place: str) -> bool:
    return bool(place) and (is_url(place) or expand_home(place).exists())
