"""Pair LoRAs with the parameters of a model that they add to: factors, full differences and biases, with a strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from loraport.errors import InputError, MismatchError
from loraport.files.adapters.division import layer_rows
from loraport.files.adapters.updates import LayerUpdate, exact_update, needs_weight
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.files.lora.kernels import same_weight
from loraport.files.lora.key_account import KeyAccount
from loraport.files.lora.read import Lora
from loraport.files.models.checkpoint import Checkpoint
from loraport.files.models.encoders import held_encoders, pipeline_folder, with_encoders
from loraport.files.names.clip import encoder_of
from loraport.files.names.dialects import WHOLE, LoraKey
from loraport.files.names.families import Family, flattened
from loraport.files.names.lookup import find_start
from loraport.files.names.tables.minimax_h3 import FOLDED, MODULATION
from loraport.spectral.low_rank import LowRank

PARAMETERS = {
    ".diff": "weight",
    ".w_norm": "weight",
    ".diff_b": "bias",
    ".b_norm": "bias",
    ".lora_B.bias": "bias",
    ".lora_up.bias": "bias",
}
"""The ending of an extra key -> the parameter of the layer that it is added to."""


class Shapes(Protocol):
    """A model as far as its parameters' shapes."""

    @property
    def where(self) -> str:
        """For messages."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a parameter."""


@dataclass(frozen=True)
class Addition:
    """strength · an adapter's update, or strength · a stored difference; read when it is added."""

    make: Callable[[], LayerUpdate | Tensor]
    strength: float
    needs_weight: bool = False
    """Whether it depends on the weight that it is put on, as DoRA does."""

    def add_to(self, X: Tensor, W: Tensor) -> None:
        """Add it to a contiguous tensor in place, in that tensor's dtype; a kernel is filled as a matrix.

        `W` is the weight that the adapter is put on: as it is without this and other adapters.
        """
        update = self.make()
        if isinstance(update, Tensor):
            X.add_(update.to(X).reshape(X.shape), alpha=self.strength)
            return
        exact = exact_update(update, W.to("cpu", X.dtype).flatten(1) if self.needs_weight else None)
        if isinstance(exact, LowRank):
            X.view(X.shape[0], -1).addmm_(exact.B.to(X), exact.A.to(X), alpha=self.strength)
        else:
            X.add_(exact.to(X).reshape(X.shape), alpha=self.strength)


@dataclass(frozen=True)
class Additions:
    """All that one LoRA adds to one model, by canonical parameter name, and where its keys went."""

    by_parameter: Mapping[str, tuple[Addition, ...]]
    keys: KeyAccount


def additions(lora: Lora, strength: float, model: Checkpoint) -> Additions:
    """Pair a LoRA with the parameters of a model. Layers known by flattened names are looked up in the model.

    What has another shape is dropped. Raises MismatchError where most layers or keys have one, or nothing fits,
    InputError for values that are not finite.
    """
    model = with_encoders(model)
    text = str(lora.path) if strength == 1 else f"{lora.path}*{strength:g}"
    flat = {flattened(layer): layer for layer in model.layers} if lora.unresolved else {}
    by_parameter: dict[str, list[Addition]] = {}
    dropped = list(lora.dropped)
    merged: set[str] = set()
    misfits: list[tuple[str, str]] = []
    for layers in (lora.layers, lora.encoders):
        for layer, given in layers.items():
            name = f"{layer if given.resolved else flat.get(layer, layer)}.weight"
            if name not in model:
                reason = _absence(model, text, layer) if layers is lora.encoders else f"{model.where} has no such layer"
                dropped += [(key, reason) for key in given.keys]
                continue
            update, shape = given.update, model.shape(name)
            if len(shape) < 2 or update.shape != (shape[0], math.prod(shape[1:])):
                misfits += [(key, misfit_reason(update.shape, model, name)) for key in given.keys]
                continue
            by_parameter.setdefault(name, []).append(Addition(given.read, strength, needs_weight(update)))
            merged.update(given.keys)
    elsewhere = lora.encoder_keys
    for key, stored in lora.extras.items():
        if key in elsewhere:
            continue
        parsed = lora.parse(key)
        for layer, place in parsed.pieces:
            name, reason = _parameter(parsed, layer, flat, model, text)
            if reason:
                dropped.append((key, reason))
                continue
            rows = layer_rows(stored, place) if place.fits(stored.shape) else stored
            if not same_weight(rows.shape, model.shape(name)):
                misfits.append((key, misfit_reason(rows.shape, model, name)))
                continue
            check_finite(lora, key, rows)
            by_parameter.setdefault(name, []).append(Addition(rows.read, strength))
            merged.add(key)
    _check_most(lora, misfits, merged)
    if not by_parameter:
        raise MismatchError(no_fit_message(lora, model.where, model.layers, model.family))
    gone = [(key, reason) for key, reason in (*dropped, *misfits) if key not in merged]
    return Additions({name: tuple(some) for name, some in by_parameter.items()}, KeyAccount.of(gone, merged=merged))


def parameter_of(key: LoraKey, layer: str, model: Container[object]) -> str:
    """Return the parameter that a key's difference is added to in a layer; `layer` may be a parameter itself."""
    name = layer if key.bare else f"{layer}.{PARAMETERS[key.part]}"
    folded = name.removesuffix(FOLDED[0]) + FOLDED[1]
    if name not in model and name.endswith(FOLDED[0]) and folded in model:
        return folded
    return layer if name not in model and key.part == ".diff" and layer in model else name


def _parameter(key: LoraKey, layer: str, flat: Mapping[str, str], model: Checkpoint, text: str) -> tuple[str, str]:
    """Return (the parameter that an extra key is added to in one layer, "") or ("", why there is none)."""
    if key.text_encoder and not key.clip:
        return "", "it belongs to a text encoder other than CLIP, which is not merged"
    if key.part in WHOLE and not key.text_encoder:
        return "", f"a whole weight of a network that {model.where} does not have"
    if key.part not in PARAMETERS:
        return "", "an unknown ending"
    layer = flat.get(layer, layer) if key.unresolved else layer
    name = parameter_of(key, layer, model)
    if name in model:
        return name, ""
    return "", _absence(model, text, layer) if key.clip else f"{model.where} has no {name}"


def _absence(model: Checkpoint, text: str, layer: str) -> str:
    """Return why a layer of a text encoder is not added; `text` is the LoRA as it was asked for."""
    encoder = encoder_of(layer)
    if encoder in held_encoders(model):
        return f"the text encoder in {model.where} has no such layer"
    if folder := pipeline_folder(model, encoder):
        return (
            f"it belongs to {encoder}/, beside the network in the pipeline, and one part is merged at a time: "
            f"loraport merge {folder} {text} -o ..."
        )
    return f"it belongs to a text encoder, and {model.where} holds none that is known"


def check_finite(lora: Lora, key: str, stored: StoredTensor) -> None:
    """Raise InputError for values that are not finite."""
    if not torch.isfinite(stored.read()).all():
        raise InputError(f"{lora.path}: {key!r} holds NaN or infinite values; the LoRA is damaged")


def _check_most(lora: Lora, misfits: Sequence[tuple[str, str]], merged: Collection[str]) -> None:
    """Raise MismatchError where as many keys have another shape as fit: then it is another model."""
    if misfits and len(misfits) >= len(merged):
        key, reason = misfits[0]
        raise MismatchError(
            f"{lora.path}: {key}: {reason}; this LoRA was made for another model (size): give the model that it "
            "belongs to"
        )


def misfit_reason(shape: tuple[int, ...], model: Shapes, name: str) -> str:
    """Return the sentence that a tensor's shape is not that of the parameter that it is added to."""
    sizes = [" × ".join(map(str, one)) for one in (shape, model.shape(name))]
    told = f"it is {sizes[0]}, the {name} of {model.where} {sizes[1]}"
    if name.endswith(MODULATION) and shape[:1] == model.shape(name)[:1]:
        told += ", which stores its modulation in another form: loraport convert --source the model that the LoRA was "
        told += f"made for --target {model.where} carries it over"
    return told


def no_fit_message(lora: Lora, where: str, layers: Sequence[str], family: Family | None) -> str:
    """Return why no layer of a LoRA is in a model with these layers: another family, or unknown names."""
    if lora.encoders and not lora.layers:
        return (
            f"{lora.path} is a LoRA of text encoders alone, and {where} holds none of their layers; give a single file "
            "or a pipeline's text_encoder/ that does"
        )
    of_lora, of_model = next(iter(lora.layers or lora.extras), "nothing"), next(iter(layers), "nothing")
    message = f"no layer of {lora.path} is in {where}: the LoRA has {of_lora!r}, the model {of_model!r}"
    if start := find_start(lora.layers, set(layers).__contains__):
        return f"{message}; its names are the model's behind {start!r}: save it with names that begin after that"
    if lora.dialect.family is not None and family is not None and lora.dialect.family != family.name:
        return f"{message}; the LoRA was made for {lora.dialect.family}, and this is {family.name}: give its own model"
    unknown = "" if lora.dialect.family is not None else ", and names like the LoRA's are in no table"
    return f"{message}{unknown}; give the model that this LoRA belongs to"
