"""Quantised checkpoints: weights of the form q · scale are read layer by layer; other forms are refused by name.

Read are plain fp8 casts (no scale), ComfyUI's older layout (`scaled_fp8` and `X.scale_weight`), its newer one
(`X.weight_scale` with `X.comfy_quant` or a note in the header), musubi's rows and blocks, LightX2V's `X.weight_scale` a
row, quanto's `X.weight._data` with `X.weight._scale`, and TurboDiffusion's `X.int8_weight` with `X.scale`. In all of
them W = q · scale. Scales of activations do not touch the weights and are left out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from loraport.errors import FileFormatError
from loraport.files.formats.safetensors_read import NOT_READ, Quantization, StoredTensor
from loraport.files.formats.scales import ScaledCodes, granularity
from loraport.files.names.dialects import VARIANTS, parse_key, refused_kind
from loraport.files.names.families import Family, Naming

if TYPE_CHECKING:
    from torch import Tensor

FP8 = {"float8_e4m3fn": "fp8_e4m3fn", "float8_e5m2": "fp8_e5m2"}
"""Kinds of plain fp8 -> how people call them."""
LAYER_SCALES = ("scale_weight", "weight_scale")
"""The two names of a layer's scale: W = q · scale."""

_FORMATS = ("float8_e4m3fn", "float8_e5m2", "float8_e4m3fn_rowwise", "float8_e5m2_rowwise")
"""ComfyUI's names of the formats that are read, and a fork's; which values share a scale is seen by its shape."""
_MARK = "scaled_fp8"
"""The tensor that says of a whole network that its weights are q · scale; where a scale is missing, it is 1."""
_BESIDE = re.compile(rf"(.*\.)?scaled_fp8|.*\.({'|'.join(LAYER_SCALES)}|scale_input|input_scale|comfy_quant)")
"""Tensors that tell how others are stored; none is a parameter of the model."""
REFUSED = {
    re.compile(r".*\.(weight_scale_2|weight_scale_inv)"): "is the second scale of an nvfp4 or block-scaled weight",
    re.compile(r".*\.pre_quant_scale"): "marks an AWQ weight",
    re.compile(
        r".*(\.quant_state\b|\.quant_map\b|\.absmax\b|\.nested_absmax\b).*"
    ): "marks an NF4 (bitsandbytes) weight",
    re.compile(r".*\.(qweight|qzeros|wtscale|wscales)"): "marks an SVDQuant or GPTQ weight",
}


@dataclass(frozen=True)
class _Layout:
    """Endings after a layer's name: of its codes, of their scale, and of what has to do with activations."""

    codes: str
    scale: str
    beside: tuple[str, ...] = ()


_LAYOUTS = (
    _Layout(".weight._data", ".weight._scale", (".input_scale", ".output_scale")),  # quanto
    _Layout(".int8_weight", ".scale"),  # TurboDiffusion
)
_LONGEST_NOTE = 4096


@dataclass(frozen=True)
class NetworkTensors:
    """The tensors of a network as the values they mean, and notes for people on what was assumed."""

    tensors: dict[str, StoredTensor]
    notes: tuple[str, ...]


def decode(stored: Mapping[str, StoredTensor], headers: Iterable[Mapping[str, str]] = ()) -> NetworkTensors:
    """Return the tensors of one network with codes as the values they mean, without what only describes the storage.

    `headers` are the metadata of the files. Raises FileFormatError for other kinds of quantisation, and for a scale
    that is double or of another shape, or missing without anything that says why.
    """
    noted = {name for header in headers if stored for name in _noted(header, stored)}
    for key, tensor in stored.items():  # first: a note names what codes alone do not
        if key.endswith(".comfy_quant"):
            _check_note(key, tensor)
            noted.add(key.removesuffix(".comfy_quant"))
    for key, tensor in stored.items():
        _refuse(key, tensor)
    reading = _Reading(stored, frozenset(noted))
    tensors = dict(filter(None, (reading.tensor(key) for key in stored)))
    return NetworkTensors(tensors, tuple(reading.notes()))


def refuse_codes(
    stored: Mapping[str, StoredTensor], spelling: tuple[Family, Naming] | None, known: Container[str]
) -> None:
    """Raise FileFormatError where a layer of the family's table has other tensors and no weight, or only its codes.

    `stored` is by name without prefixes, `known` all names, those in shards that were not read included. A LoRA's
    factors under a layer's name are not codes: that such a file is not a model is said elsewhere.
    """
    for name, tensor in stored.items():
        if spelling and spelling[0].is_bare(name, spelling[1]):
            continue  # ComfyUI calls the weight of some norms `scale`
        layers, leaf = layers_of(name, spelling)
        layer = name.removesuffix(f".{leaf}")
        if not layers or leaf in ("weight", "bias") or _of_lora(name):
            continue
        weight = stored.get(f"{layer}.weight")
        if weight is None and f"{layer}.weight" not in known:
            raise codes_not_read(tensor)
        codes = None if weight is None else weight.quantization
        if weight is not None and codes is not None and (leaf.startswith("weight") or _unscaled(codes)):
            raise FileFormatError(
                f"{tensor.path}: {weight.key!r} is stored as {codes.format}, and {tensor.key!r} beside it may say what "
                f"its values mean, in a way that is not read; {NOT_READ}"
            )


def layers_of(name: str, spelling: tuple[Family, Naming] | None) -> tuple[tuple[str, ...], str]:
    """Return the canonical layers under whose stored name a tensor stands, and the rest: `weight`, `weight._data`."""
    layer = name
    while spelling and (layer := layer.rpartition(".")[0]):
        if pieces := spelling[0].pieces(layer, spelling[1]):
            return tuple(canonical for canonical, _ in pieces), name.removeprefix(f"{layer}.")
    return (), ""


def _unscaled(codes: Quantization) -> bool:
    return isinstance(codes.read, ScaledCodes) and codes.read.scale is None


def _of_lora(name: str) -> bool:
    key = parse_key(name)
    return key.part in ("A", "B", *VARIANTS) or refused_kind(name) is not None


def foreign_tensors(stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a network that is not read, marked where they are codes: nothing can be added to those."""

    def marked(key: str, tensor: StoredTensor) -> StoredTensor:
        layer = key.removesuffix(".weight")
        scales = any(f"{layer}.{name}" in stored for name in LAYER_SCALES)
        if layer == key or not (scales or tensor.kind in FP8 or not tensor.is_real):
            return tensor
        kind = tensor.kind

        def read() -> tuple[Tensor, Tensor]:
            raise FileFormatError(f"{tensor.path}: {key!r} is stored as {kind} codes, and is not of the network")

        return StoredTensor(key, tensor.path, "float32", tensor.shape, lambda: read()[0], Quantization(kind, read))

    return {key: marked(key, tensor) for key, tensor in stored.items() if not _BESIDE.fullmatch(key)}


def refuse_scaled(stored: Mapping[str, StoredTensor]) -> None:
    """Raise FileFormatError for codes that need a scale, in a file of a kind for which no layout of them is known.

    Plain fp8, where each value stands for itself, needs none.
    """
    for key, tensor in stored.items():
        _refuse(key, tensor)
        if _BESIDE.fullmatch(key):
            raise FileFormatError(
                f"{tensor.path}: {key!r} is the scale of quantised values, for which no layout is known in such files; "
                "use the bf16 or fp16 file, or one in plain fp8"
            )


def cast_up(stored: StoredTensor) -> StoredTensor:
    """Return plain fp8 as bf16, which holds every value of it; any other tensor as it is."""
    if stored.kind not in FP8:
        return stored
    return replace(stored, kind="bfloat16", read=lambda: stored.read().bfloat16())


class _Reading:
    """One network's tensors, each as what it means, and what was assumed on the way."""

    def __init__(self, stored: Mapping[str, StoredTensor], noted: frozenset[str]) -> None:
        self.stored, self.noted = stored, noted
        self.scaled = any(_BESIDE.fullmatch(key) for key in stored)
        self.marked = any(key.endswith(_MARK) for key in stored)
        self.codes = dict(_in_layouts(stored))
        self.beside = {
            layer + ending for layer, layout in self.codes.values() for ending in (layout.scale, *layout.beside)
        }
        self.without: list[str] = []
        """fp8 weights that have no scale, beside others that have one."""
        self.wide: list[str] = []
        """Weights that are not codes and have a scale all the same."""

    def notes(self) -> Iterator[str]:
        """Yield what was assumed."""
        for names, text in (
            (self.without, "no scale, and 1 is taken"),
            (self.wide, "a scale, and are multiplied by it"),
        ):
            if names:
                kind = "fp8 weights have" if names is self.without else "weights that are not codes have"
                path = self.stored[names[0]].path
                yield f"{path}: {len(names)} {kind} {text}: {', '.join(names[:3])}{', …' if len(names) > 3 else ''}"

    def tensor(self, key: str) -> tuple[str, StoredTensor] | None:
        """Return the key and the reading of a parameter; None for what only says how another is stored."""
        if found := self.codes.get(key):
            layer, layout = found
            return f"{layer}.weight", self._codes(
                f"{layer}.weight", self.stored[key], self.stored[layer + layout.scale]
            )
        if _BESIDE.fullmatch(key) or key in self.beside:
            return None
        return key, self._plain(self.stored[key])

    def _plain(self, tensor: StoredTensor) -> StoredTensor:
        """Return a tensor as it is, or the reading of one in fp8 or with a scale beside it."""
        layer, _, leaf = tensor.key.rpartition(".")
        scales = [
            self.stored[f"{layer}.{name}"]
            for name in LAYER_SCALES
            if leaf == "weight" and f"{layer}.{name}" in self.stored
        ]
        if len(scales) > 1:
            raise FileFormatError(f"{tensor.path}: {tensor.key!r} has two scales, {scales[0].key} and {scales[1].key}")
        if tensor.kind not in FP8 and scales:
            return self._wide(tensor, scales[0])
        if tensor.kind not in FP8:
            return tensor
        if not scales and self.scaled and leaf == "weight" and len(tensor.shape) > 1:
            if not self.marked and (not self.noted or layer in self.noted):
                raise FileFormatError(
                    f"{tensor.path}: {tensor.key!r} is fp8 and lacks its scale, which other layers have, and nothing "
                    "says that it has none; use another file of the same model"
                )
            self.without.append(tensor.key)
        return self._codes(tensor.key, tensor, scales[0] if scales else None)

    def _wide(self, tensor: StoredTensor, scale: StoredTensor) -> StoredTensor:
        """Return a weight of floats with a scale: as it is where that is 1, and else multiplied."""
        granularity(tensor, scale)
        if bool((scale.read().float() == 1).all()):
            return tensor
        self.wide.append(tensor.key)
        return self._codes(tensor.key, tensor, scale)

    def _codes(self, key: str, codes: StoredTensor, scale: StoredTensor | None) -> StoredTensor:
        name = FP8.get(codes.kind, codes.kind)
        if scale is not None:
            name = f"{name}, {granularity(codes, scale)}"
        read = ScaledCodes(codes, scale)
        return StoredTensor(key, codes.path, "float32", codes.shape, lambda: read()[0], Quantization(name, read))


def _in_layouts(stored: Mapping[str, StoredTensor]) -> Iterator[tuple[str, tuple[str, _Layout]]]:
    """Yield the keys of codes that stand under names of their own, each with its layer and layout."""
    for key, tensor in stored.items():
        for layout in _LAYOUTS:
            layer = key.removesuffix(layout.codes)
            if layer != key and layer + layout.scale in stored and tensor.kind in ("int8", *FP8):
                yield key, (layer, layout)


def _refuse(key: str, tensor: StoredTensor) -> None:
    for mark, meaning in REFUSED.items():
        if mark.fullmatch(key):
            raise FileFormatError(f"{tensor.path}: {key!r} {meaning}; {NOT_READ}")
    if not tensor.is_real and key.endswith(".weight"):
        raise codes_not_read(tensor)


def codes_not_read(tensor: StoredTensor) -> FileFormatError:
    """Return the error for a layer that has only codes."""
    return FileFormatError(
        f"{tensor.path}: {tensor.key!r} is stored as {tensor.kind}, in codes that are not read; {NOT_READ}"
    )


def _noted(header: Mapping[str, str], stored: Mapping[str, StoredTensor]) -> Iterator[str]:
    """Yield the layers of this network that the header has a note on. Raises FileFormatError for unknown formats."""
    text = header.get("_quantization_metadata")
    if text is None:
        return
    path = next(iter(stored.values())).path
    try:
        layers = json.loads(text)["layers"]
        formats = {name: layer["format"] for name, layer in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{path}: the header's note on quantisation cannot be read") from error
    own = {layer: key for key in stored if key.endswith(".weight") for layer in _ends_of(key.removesuffix(".weight"))}
    for name, format in formats.items():
        if name in own:
            _check_format(f"{path}: {name}", format)
            yield own[name].removesuffix(".weight")


def _ends_of(layer: str) -> Iterator[str]:
    """Yield a layer's name with more and more taken off its front: notes leave out prefixes."""
    while layer:
        yield layer
        layer = layer.partition(".")[2]


def _check_note(key: str, tensor: StoredTensor) -> None:
    try:
        import torch

        if math.prod(tensor.shape) > _LONGEST_NOTE:
            raise ValueError
        note = json.loads(tensor.read().view(torch.uint8).numpy().tobytes())
        format = f"{note['format']} with rotated inputs (convrot)" if note.get("convrot") else note["format"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, RuntimeError) as error:
        raise FileFormatError(f"{tensor.path}: {key!r} is not a readable note on quantisation") from error
    _check_format(f"{tensor.path}: {key}", format)


def _check_format(where: str, format: object) -> None:
    if format not in _FORMATS:
        raise FileFormatError(f"{where} is quantised as {str(format)[:60]}; {NOT_READ}")
