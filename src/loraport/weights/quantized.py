"""How quantised checkpoints are recognised. None is read in this version: their rounding is as large as the drift."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import torch

from loraport.errors import FileFormatError

NOT_READ = (
    "fp8 and GGUF checkpoints are not read in this version: use the bf16/fp16/fp32 file of the same model "
    "(the same holds for int8, NF4 and SVDQuant)"
)

_MARKS = {
    re.compile(r"(.*\.)?scaled_fp8"): "marks scaled fp8",
    re.compile(
        r".*\.(scale_weight|weight_scale|weight_scale_2|weight_scale_inv)"
    ): "is the scale of a quantised weight",
    re.compile(r".*\.comfy_quant"): "marks ComfyUI's quantised weights",
    re.compile(r".*(\.quant_state\b|\.quant_map\b|\.absmax\b|\.nested_absmax\b).*"): "marks a bitsandbytes weight",
    re.compile(r".*\.(qweight|qzeros|wtscale|wscales)"): "marks an SVDQuant or GPTQ weight",
}
_INTEGERS = (torch.int8, torch.uint8)


def refuse_quantized(path: Path, dtypes: Mapping[str, torch.dtype], metadata: Mapping[str, str]) -> None:
    """Raises FileFormatError at the first sign of quantised weights: dtype, companion tensor or note in the header."""
    if "_quantization_metadata" in metadata:
        raise FileFormatError(f"{path}: its header says that it is quantised; {NOT_READ}")
    for key, dtype in dtypes.items():
        if dtype.is_floating_point and dtype.itemsize == 1:
            raise FileFormatError(f"{path}: {key!r} is stored as {str(dtype).removeprefix('torch.')}; {NOT_READ}")
        for mark, meaning in _MARKS.items():
            if mark.fullmatch(key):
                raise FileFormatError(f"{path}: {key!r} {meaning}; {NOT_READ}")
        if dtype in _INTEGERS and key.endswith(".weight"):
            raise FileFormatError(f"{path}: {key!r} is stored as {str(dtype).removeprefix('torch.')}; {NOT_READ}")
