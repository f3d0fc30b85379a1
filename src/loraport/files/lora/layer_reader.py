"""Read the tensors of one file layer by layer, with the scale that each has, and note what a user should know."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from loraport.errors import FileFormatError, InputError, MismatchError
from loraport.files.adapters.lora_layer import LoraLayer
from loraport.files.adapters.outline import Outline
from loraport.files.adapters.peft_fields import Start
from loraport.files.formats.quantized import cast_up
from loraport.files.formats.raw_values import is_plain, largest, number
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.files.lora.alpha import NO_ALPHA, Scales, checked_alpha
from loraport.files.lora.locate import LoraFiles
from loraport.files.names.clip import encoder_of
from loraport.files.names.dialects import (
    MAGNITUDES,
    SCALES,
    LoraKey,
)

if TYPE_CHECKING:
    from torch import Tensor

    from loraport.files.adapters.assemble import UnscaledUpdate
    from loraport.files.adapters.updates import LayerUpdate

FLOATS = ("float64", "float32", "float16", "bfloat16")
"""What factors are stored in, plain fp8 cast up."""
BIASES_OF_B = (".lora_B.bias", ".lora_up.bias")


class LayerReader:
    """Reads the tensors of one file, and notes per layer what was found on the way.

    `outlines`: of plain factors the header and whether all values are finite will do; no update is made of them.
    """

    def __init__(self, files: LoraFiles, stored: Scales, outlines: bool = False) -> None:
        self.outlines = outlines
        self.path = files.path
        self.tensors = {key: cast_up(stored) for key, stored in files.tensors.items()}
        self.stored = stored
        self.scales: dict[str, tuple[float, str]] = {}
        """Module -> its scale, and where that came from."""
        self.unscaled: dict[str, int] = {}
        """Module -> rank, where nothing gives an alpha."""
        self.overruled: dict[str, str] = {}
        """Key of an alpha tensor -> the configuration that says otherwise."""
        self.idle: set[str] = set()
        """Modules whose factors multiply to zero."""

    def notes(self, encoders: Container[str]) -> list[str]:
        """Say which of the file's scales for the network were not applied, and what else is odd of its layers."""
        of_network = [origin for layer, (_, origin) in self.scales.items() if layer not in encoders]
        asked = [origin for origin in of_network if not origin.startswith("none")]
        notes = self.stored.notes(self.unscaled, len(asked))
        if self.idle and self.idle == self.scales.keys():
            notes.append(
                f"all {len(self.idle)} layers add nothing: their factors are zero, as they are before training; this "
                "LoRA changes no weight"
            )
        if starts := sorted({start for config in self.stored.components.values() if (start := config.start)}):
            notes.append(
                f"init_lora_weights says {starts[0]}: its factors belong to a base that their start was taken out of; "
                "what it adds is computed from the weights of the model it was trained on, which must be the one given"
            )
        if self.overruled:
            key, origin = next(iter(self.overruled.items()))
            notes.append(
                f"{key}, for one of {len(self.overruled)}, has another scale than the {origin} says: the tensors are "
                "taken, as by ComfyUI and the trainers' own loaders; PEFT and diffusers take the configuration"
            )
        return notes

    def layer(self, layer: str, parts: Mapping[str, LoraKey]) -> LoraLayer:
        """Read a layer, its scale folded into the update; of a convolution the kernel is flattened behind `in`."""
        if not parts.keys().isdisjoint("AB"):
            self.check_pair(parts)
        if self.outlines and self._are_plain(parts):
            return self._outlined(layer, parts)
        return self._assembled(layer, parts)

    def _are_plain(self, parts: Mapping[str, LoraKey]) -> bool:
        """Return whether a layer is a product of two stored matrices, about which the header says enough."""
        factors = {part: self.tensors[key.key] for part, key in parts.items() if part not in SCALES}
        return factors.keys() == {"A", "B"} and not self.start_of(parts) and all(map(is_plain, factors.values()))

    def _outlined(self, layer: str, parts: Mapping[str, LoraKey]) -> LoraLayer:
        """Return a layer of plain factors without making its update."""
        A, B = self.tensors[parts["A"].key], self.tensors[parts["B"].key]
        rank = A.shape[0]
        sizes = [self._checked_size(parts[part].key) for part in parts if part in "AB"]
        self.scales[layer] = scale, source = self.scale_of(parts, rank)
        if not all(sizes) or not scale:
            self.idle.add(layer)
        return LoraLayer(
            lambda: self._assembled(layer, parts).update,
            tuple(sorted(key.key for key in parts.values())),
            scale,
            source,
            A.shape[2:] or None,
            not any(parts[part].unresolved for part in "AB"),
            Outline("LoRA", (B.shape[0], math.prod(A.shape[1:])), rank),
        )

    def _checked_size(self, key: str) -> float:
        """Return the largest magnitude of a factor. Raises InputError where it is not finite."""
        size = largest(self.tensors[key])
        if not math.isfinite(size):
            raise self._not_finite(key)
        return size

    def _not_finite(self, key: str) -> InputError:
        return InputError(f"{self.path}: {key!r} holds NaN or infinite values; the LoRA is damaged")

    def _assembled(self, layer: str, parts: Mapping[str, LoraKey]) -> LoraLayer:
        from loraport.files.adapters.assemble import assemble  # loads PyTorch

        tensors = {part: self.factor(key.key) for part, key in parts.items() if part not in SCALES}
        magnitudes = {part: tensors.pop(part) for part in MAGNITUDES if part in tensors}
        assembled = assemble(tensors, {part: parts[part] for part in tensors or magnitudes}, str(self.path))
        self.scales[layer] = scale, source = self.scale_of(parts, assembled.rank)
        update = self.update(layer, parts, assembled, scale, magnitudes)
        return LoraLayer(
            lambda: update,
            tuple(sorted(key.key for key in parts.values())),
            scale,
            source,
            assembled.kernel or None,
            not any(key.unresolved for part, key in parts.items() if part not in SCALES),
        )

    def update(
        self,
        layer: str,
        parts: Mapping[str, LoraKey],
        assembled: UnscaledUpdate,
        scale: float,
        magnitudes: Mapping[str, Tensor],
    ) -> LayerUpdate:
        """Return the update with its scale, PEFT's start and DoRA's magnitude."""
        from loraport.files.adapters.assemble import adds_nothing, with_magnitude, with_scale, with_start

        update = with_scale(assembled.update, scale)
        if start := self.start_of(parts):
            return with_start(update, start, scale, assembled.kernel, _down(parts).key, str(self.path))
        if not magnitudes:
            if adds_nothing(update):
                self.idle.add(layer)
            return update
        if len(magnitudes) > 1:
            raise MismatchError(f"{self.path}: layer {layer} has two DoRA magnitudes; remove one of {MAGNITUDES}")
        part, m = next(iter(magnitudes.items()))
        return with_magnitude(update, part, m, assembled.kernel, parts[part].key, str(self.path))

    def start_of(self, parts: Mapping[str, LoraKey]) -> Start:
        """Return what PEFT took out of the base for this adapter."""
        config = self.stored.config(_component(parts))
        return "" if config is None else config.start

    def full(self, key: LoraKey, others: Callable[[], LoraLayer] | None) -> LoraLayer:
        """Read a full difference, together with the factors of the same layer. Raises MismatchError beside a DoRA."""
        from loraport.files.adapters.full_difference import FullDifference
        from loraport.files.adapters.updates import needs_weight

        beside = None if others is None else others()
        self.factor(key.key)
        stored = self.tensors[key.key].read()
        if 0 in stored.shape:
            raise FileFormatError(f"{self.path}: {key.key!r} {tuple(stored.shape)} holds nothing; remove the layer")
        kernel = tuple(stored.shape[2:]) or None
        if beside is None:
            scale, source = self.scales[key.layer] = (1.0, "none: a full difference")
            return LoraLayer(lambda: FullDifference(stored), (key.key,), scale, source, kernel, not key.unresolved)
        update = beside.update
        if needs_weight(update) or update.shape != (stored.shape[0], stored[0].numel()):
            raise MismatchError(f"{self.path}: {key.key!r} does not go with the other tensors of its layer")
        both = FullDifference(stored.float().flatten(1) + update.dense())
        return replace(
            beside.with_update(both),
            keys=(*beside.keys, key.key),
            kernel=kernel or beside.kernel,
            resolved=beside.resolved and not key.unresolved,
        )

    def check_pair(self, parts: Mapping[str, LoraKey]) -> None:
        """Raise MismatchError where a half is missing or the two do not fit, FileFormatError for rank 0."""
        for part, other in ("AB", "BA"):
            if part not in parts:
                raise MismatchError(
                    f"{self.path}: {parts[other].key!r} stands alone; {parts[other].counterpart!r} is missing"
                )
        a, b = parts["A"].key, parts["B"].key
        A, B = self.tensors[a].shape, self.tensors[b].shape
        if len(A) < 2 or len(B) != len(A) or any(size != 1 for size in B[2:]):
            raise MismatchError(f"{self.path}: {a!r} {A} and {b!r} {B} do not have the shapes of LoRA factors")
        if A[0] != B[1]:
            raise MismatchError(f"{self.path}: {a!r} has rank {A[0]}, but {b!r} has rank {B[1]}; save the LoRA again")
        if 0 in A or 0 in B:
            raise FileFormatError(f"{self.path}: {a!r} {A} and {b!r} {B} hold nothing (rank 0); remove the layer")

    def factor(self, key: str) -> Tensor:
        """Read a tensor as float32. Raises InputError where it is not finite, FileFormatError where it is not real."""
        import torch

        if self.tensors[key].kind not in FLOATS:
            raise FileFormatError(f"{self.path}: {key!r} is stored as {self.tensors[key].dtype}, not as real numbers")
        tensor = self.tensors[key].read().float()
        if not torch.isfinite(tensor).all():
            raise self._not_finite(key)
        return tensor

    def scale_of(self, parts: Mapping[str, LoraKey], rank: int | None) -> tuple[float, str]:
        """Return (scale, where it came from): an alpha tensor, the configuration, or nothing.

        `rank` None: LoKr with both factors whole. LyCORIS and ComfyUI then have the scale 1 whatever alpha says (some
        trainers write a huge one), PEFT the alpha and rank of its configuration.
        """
        down, component = _down(parts), _component(parts)
        for part in (".alpha", ".lora_alpha"):
            if part in parts and rank is not None:
                scale, config = self.alpha(parts[part].key) / rank, self.stored.config(component)
                if config is not None and not math.isclose(config.scale(down.module_names, rank), scale, rel_tol=1e-3):
                    self.overruled[parts[part].key] = config.origin
                return scale, f"{part.removeprefix('.')} tensor"
        scale, origin = self.stored.scale(component, down.module_names, rank)
        if origin == NO_ALPHA and rank is not None and not down.text_encoder:
            self.unscaled[down.module] = rank
        return scale, origin

    def alpha(self, key: str) -> float:
        """Read the number in an alpha tensor."""
        stored = self.tensors[key]
        if math.prod(stored.shape) != 1:
            raise FileFormatError(f"{self.path}: {key!r} has shape {stored.shape}, but an alpha is one number")
        return checked_alpha(number(stored), f"{self.path}: {key!r}")

    def extras(self, keys: Iterable[LoraKey]) -> dict[str, StoredTensor]:
        """Return what is carried through as it is, but for scales that no tensor holds.

        Those are folded into biases and text encoders too: what is written has no configuration that could hold them.
        """
        keys = list(keys)
        text = _by_stem(key for key in keys if key.text_encoder)
        extras = {}
        for key in keys:
            factor = 1.0
            if key.part in BIASES_OF_B:
                factor, _ = self.scales.get(key.layer, (1.0, ""))
            elif key.text_encoder and key.part == "B" and "A" in text[key.prefix, key.module]:
                parts = text[key.prefix, key.module]
                self.check_pair(parts)
                rank = self.tensors[parts["A"].key].shape[0]
                factor = 1.0 if ".alpha" in parts or ".lora_alpha" in parts else self.scale_of(parts, rank)[0]
            stored = self.tensors[key.key]
            extras[key.key] = stored if factor == 1 else replace(stored, read=partial(_scaled, stored, factor))
        return extras


def _scaled(stored: StoredTensor, factor: float) -> Tensor:
    return (stored.read().float() * factor).to(stored.dtype)


def _down(parts: Mapping[str, LoraKey]) -> LoraKey:
    return next(key for part, key in parts.items() if part not in SCALES)


def _component(parts: Mapping[str, LoraKey]) -> str:
    down = _down(parts)
    return encoder_of(down.layer) if down.clip else down.component


def _by_stem(keys: Iterable[LoraKey]) -> dict[tuple[str, str], dict[str, LoraKey]]:
    stems: dict[tuple[str, str], dict[str, LoraKey]] = {}
    for key in keys:
        stems.setdefault((key.prefix, key.module), {})[key.part] = key
    return stems
