"""Quantised checkpoints: fp8 is read layer by layer, with any scale beside it; everything else is refused by name.

Read are plain casts (no scale), ComfyUI's older layout (`scaled_fp8` and `X.scale_weight`), its newer one
(`X.weight_scale` with `X.comfy_quant` or a note in the header), musubi's rows and blocks, and LightX2V's
`X.weight_scale` a row. In all of them W = q · scale. Scales of activations do not touch the weights and are left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.errors import FileFormatError
from loraport.weights.rounding import step_of
from loraport.weights.safetensors_files import NOT_READ, Coded, StoredTensor

FP8 = {torch.float8_e4m3fn: "fp8_e4m3fn", torch.float8_e5m2: "fp8_e5m2"}
SCALES = ("scale_weight", "weight_scale")
"""The two names of a layer's scale: W = q · scale."""

_FORMATS = ("float8_e4m3fn", "float8_e5m2")
"""ComfyUI's names of the formats that are read."""
_BESIDE = re.compile(rf"(.*\.)?scaled_fp8|.*\.({'|'.join(SCALES)}|scale_input|input_scale|comfy_quant)")
"""Tensors that tell how others are stored; none is a parameter of the model."""
_REFUSED = {
    re.compile(r".*\.(weight_scale_2|weight_scale_inv)"): "is the second scale of an nvfp4 or block-scaled weight",
    re.compile(r".*\.pre_quant_scale"): "marks an AWQ weight",
    re.compile(
        r".*(\.quant_state\b|\.quant_map\b|\.absmax\b|\.nested_absmax\b).*"
    ): "marks an NF4 (bitsandbytes) weight",
    re.compile(r".*\.(qweight|qzeros|wtscale|wscales)"): "marks an SVDQuant or GPTQ weight",
}
_INTEGERS = (torch.int8, torch.uint8)
_LONGEST_NOTE = 4096


def decoded(stored: Mapping[str, StoredTensor], headers: Iterable[Mapping[str, str]] = ()) -> dict[str, StoredTensor]:
    """The tensors of a model with fp8 weights as what they mean, and without what only says how they are stored.

    `headers` are the metadata of the files. Raises FileFormatError for other kinds of quantisation, and for a scale
    that is missing, double or of another shape.
    """
    for header in headers if stored else ():
        _check_header(header, next(iter(stored.values())))
    for key, tensor in stored.items():
        _refuse(key, tensor)
        if key.endswith(".comfy_quant"):
            _check_note(key, tensor)
    scaled = any(_BESIDE.fullmatch(key) for key in stored)
    return {key: _plain(tensor, stored, scaled) for key, tensor in stored.items() if not _BESIDE.fullmatch(key)}


def refuse_quantized(stored: Mapping[str, StoredTensor]) -> None:
    """Raises FileFormatError where tensors are quantised in any way: for files in which that has no meaning."""
    for key, tensor in stored.items():
        _refuse(key, tensor)
        if tensor.dtype in FP8 or _BESIDE.fullmatch(key):
            raise FileFormatError(f"{tensor.path}: {key!r} belongs to quantised weights; use the bf16 or fp16 file")


@dataclass(frozen=True)
class _Fp8:
    """Reads one fp8 tensor and its scale."""

    weight: StoredTensor
    scale: StoredTensor | None

    def __call__(self) -> tuple[Tensor, Tensor]:
        values = self.weight.read().float()
        step = step_of(values, self.weight.dtype)
        if self.scale is None:
            return values, step
        scale = self.scale.read().float()
        if not bool(torch.isfinite(scale).all()) or not bool((scale > 0).all()):
            raise FileFormatError(f"{self.scale.path}: {self.scale.key!r} holds values that are no scales; use another")
        _spread(scale, values)
        _spread(scale, step)
        return values, step


def _plain(tensor: StoredTensor, stored: Mapping[str, StoredTensor], scaled: bool) -> StoredTensor:
    """A tensor as it is, or the reading of an fp8 one."""
    layer, _, leaf = tensor.key.rpartition(".")
    scales = [stored[f"{layer}.{name}"] for name in SCALES if leaf == "weight" and f"{layer}.{name}" in stored]
    if len(scales) > 1:
        raise FileFormatError(f"{tensor.path}: {tensor.key!r} has two scales, {scales[0].key} and {scales[1].key}")
    if tensor.dtype not in FP8:
        if scales:
            raise FileFormatError(
                f"{tensor.path}: {scales[0].key!r} is the scale of a weight that is not fp8; {NOT_READ}"
            )
        return tensor
    if not scales and scaled and leaf == "weight" and len(tensor.shape) > 1:
        raise FileFormatError(f"{tensor.path}: {tensor.key!r} is fp8 and lacks its scale, which other layers have")
    name = FP8[tensor.dtype]
    if scales:
        name = f"{name}, {_granularity(tensor, scales[0])}"
    read = _Fp8(tensor, scales[0] if scales else None)
    return StoredTensor(tensor.key, tensor.path, torch.float32, tensor.shape, lambda: read()[0], Coded(name, read))


def _granularity(weight: StoredTensor, scale: StoredTensor) -> str:
    """What one scale stands for. Raises FileFormatError for a shape that fits no known layout."""
    rows, shape = weight.shape[0] if weight.shape else 0, scale.shape
    if shape in ((), (1,), (1, 1)):
        return "a scale a layer"
    if shape in ((rows,), (rows, 1)):
        return "a scale a row"
    if len(shape) == 3 and shape[0] == rows and shape[2] == 1 and weight.shape[-1] % max(shape[1], 1) == 0:
        return "a scale a block"
    raise FileFormatError(
        f"{scale.path}: {scale.key!r} has shape {shape}, no scale of a weight of shape {weight.shape}; {NOT_READ}"
    )


def _spread(scale: Tensor, values: Tensor) -> None:
    """values · scale in place: a scalar, one a row, or one a block of a row."""
    if scale.numel() == 1:
        values.mul_(scale.reshape(()))
    elif scale.dim() == 3:
        values.view(*scale.shape[:2], -1).mul_(scale)
    else:
        values.view(values.shape[0], -1).mul_(scale.reshape(-1, 1))


def _refuse(key: str, tensor: StoredTensor) -> None:
    for mark, meaning in _REFUSED.items():
        if mark.fullmatch(key):
            raise FileFormatError(f"{tensor.path}: {key!r} {meaning}; {NOT_READ}")
    if tensor.dtype in _INTEGERS and key.endswith(".weight"):
        raise FileFormatError(
            f"{tensor.path}: {key!r} is stored as {str(tensor.dtype).removeprefix('torch.')}; {NOT_READ}"
        )


def _check_header(header: Mapping[str, str], any_tensor: StoredTensor) -> None:
    text = header.get("_quantization_metadata")
    if text is None:
        return
    try:
        layers = json.loads(text)["layers"]
        formats = {name: layer["format"] for name, layer in layers.items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FileFormatError(f"{any_tensor.path}: the header's note on quantisation cannot be read") from error
    for name, format in formats.items():
        _check_format(f"{any_tensor.path}: {name}", format)


def _check_note(key: str, tensor: StoredTensor) -> None:
    try:
        if torch.Size(tensor.shape).numel() > _LONGEST_NOTE:
            raise ValueError
        format = json.loads(tensor.read().view(torch.uint8).numpy().tobytes())["format"]
    except (ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise FileFormatError(f"{tensor.path}: {key!r} is no note on quantisation that can be read") from error
    _check_format(f"{tensor.path}: {key}", format)


def _check_format(where: str, format: object) -> None:
    if format not in _FORMATS:
        raise FileFormatError(f"{where} is quantised as {str(format)[:40]}; {NOT_READ}")
