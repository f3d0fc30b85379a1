"""The weights in a MODEL as loraport's target: its own, and what LoRAs loaded before add to them.

A MODEL of ComfyUI keeps its weights and a list of patches for each of them; where it is loaded already, the patches may
be in the weights, and the weights as they were lie beside. LoRAs among the patches become one accelerator here, which
loraport adds to the weights exactly, without the rounding that a sum in the weights' own dtype would have.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from loraport import InputError
from loraport.files.formats.in_memory import InMemory
from loraport.inputs.accelerator import AcceleratedPlace

PREFIX = "diffusion_model."
OURS = "loraport"
"""The attachment of a MODEL in which the patches of this node are remembered."""
TITLE = "the MODEL"
_OTHER_FILE = "choose the target's own file as target_weights"


@dataclass(frozen=True)
class ModelTarget:
    """What stands in the place of a target, and how its contents are known again."""

    place: str
    """Tensors in memory, which count as a text, or the target's own file."""
    digest: str
    patched: int
    """How many weights the LoRAs loaded before change."""


def target_of(model: Any, *, with_patches: bool, instead: str = "") -> ModelTarget:
    """Return a MODEL's weights, with the LoRAs that were loaded before as an accelerator, or without them.

    `model` is ComfyUI's ModelPatcher; nothing is copied. `instead`: the file to read the weights from, where the
    MODEL's own are codes. Raises InputError for weights that hold no plain values, and for patches that are no LoRA.
    """
    keys = model.get_key_patches(PREFIX)
    if instead:
        place, known = instead, _file_digest(Path(instead))
    else:
        weights = {key.removeprefix(PREFIX): rows[0][0] for key, rows in keys.items()}
        _refuse_codes(weights, TITLE)
        weights |= _fp8_mark(weights)
        place, known = InMemory(TITLE, weights), _digest_of(model.model, weights)
    ours = {id(patch) for patch in model.attachments.get(OURS, ())}
    added: dict[str, Tensor] = {}
    patched = 0
    for key, rows in keys.items():
        patches = [row for row in rows[1:] if id(row[1]) not in ours]
        if with_patches and patches:
            added |= _as_lora(key, patches, rows[0][0].shape)
            patched += 1
    if not added:
        return ModelTarget(place, known, 0)
    beside = InMemory("the LoRAs loaded before this node", added)
    return ModelTarget(AcceleratedPlace(place, (beside, 1.0)), _digest(added, known), patched)


def _refuse_codes(weights: Mapping[str, Tensor], title: str) -> None:
    """Raise InputError for the first tensor that is not a plain one of values."""
    for name, tensor in weights.items():
        kind = type(tensor)
        if kind not in (Tensor, torch.nn.Parameter):
            raise InputError(
                f"{title} is quantised: {name} is a {kind.__module__}.{kind.__name__}, whose codes are not read; "
                f"{_OTHER_FILE} (the bf16 or fp16 one), and the result is applied to this MODEL"
            )
        if tensor.is_meta:
            raise InputError(f"{title} keeps no values of {name} in memory; {_OTHER_FILE}")


def _fp8_mark(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the mark of scaled fp8 weights, which ComfyUI takes away when it loads a file."""
    scaled = [name for name in weights if name.endswith(".scale_weight")]
    if not scaled or "scaled_fp8" in weights:
        return {}
    return {"scaled_fp8": torch.zeros(2, dtype=weights[scaled[0].replace(".scale_weight", ".weight")].dtype)}


def _as_lora(key: str, patches: Sequence[Sequence[Any]], shape: torch.Size) -> dict[str, Tensor]:
    """Return what patches add to a weight, under the names of a LoRA file: factors, or a difference.

    Raises InputError for a patch that is neither.
    """
    ups: list[Tensor] = []
    downs: list[Tensor] = []
    dense: list[Tensor] = []
    for strength, patch, strength_model, offset, function in patches:
        factors = _factors(patch)
        difference = _difference(patch, shape)
        if (
            strength_model != 1.0
            or offset is not None
            or function is not None
            or (factors is None and difference is None)
        ):
            name = getattr(patch, "name", None) or (patch[0] if isinstance(patch, tuple) else type(patch).__name__)
            raise InputError(
                f"what was loaded before this node changes {key} by a patch of kind {name!r}, which is not read as an "
                f"accelerator; put this node before it, or choose to leave aside what was loaded before"
            )
        if difference is not None:
            dense.append(strength * difference.float())
        elif factors is not None and strength:
            up, down = factors
            ups.append(strength * up)
            downs.append(down)
    layer, _, ending = key.rpartition(".")
    if dense:
        dense += [(up.flatten(1) @ down.flatten(1)).reshape(shape) for up, down in zip(ups, downs, strict=True)]
        name = {"weight": f"{layer}.diff", "bias": f"{layer}.diff_b"}.get(ending, f"{key}.diff")
        return {name: torch.stack(dense).sum(0)}
    if not ups:
        return {}
    return {f"{layer}.lora_up.weight": torch.cat(ups, 1), f"{layer}.lora_down.weight": torch.cat(downs, 0)}


def _factors(patch: Any) -> tuple[Tensor, Tensor] | None:
    """Return the factors of ComfyUI's LoRA adapter, the scale in the first; None for what is no plain LoRA."""
    if getattr(patch, "name", None) != "lora":
        return None
    up, down, alpha, mid, dora_scale, reshape = (*patch.weights, *(None,) * 6)[:6]
    if mid is not None or dora_scale is not None or reshape is not None:
        return None
    up, down = up.detach().float(), down.detach().float()
    scale = 1.0 if alpha is None else float(alpha) / down.shape[0]
    return scale * up, down


def _difference(patch: Any, shape: torch.Size) -> Tensor | None:
    if isinstance(patch, tuple) and len(patch) == 1:
        patch = ("diff", patch)
    if isinstance(patch, tuple) and patch[0] == "diff" and len(patch[1]) == 1 and patch[1][0].shape == shape:
        return patch[1][0].detach()
    return None


_DIGESTS: weakref.WeakKeyDictionary[Any, tuple[str, str]] = weakref.WeakKeyDictionary()
"""Of loaded models: the digest of a few values of each weight, and that of all. Patches are kept beside the weights, so
that these stay as they are, unless another node writes into them: then the few values have changed as well."""
_FEW = 64


def _digest_of(model: Any, weights: Mapping[str, Tensor]) -> str:
    """Return the digest of a loaded model's weights, which are hashed once."""
    few = _digest({name: _some_of(tensor) for name, tensor in weights.items()}, "")
    if model not in _DIGESTS or _DIGESTS[model][0] != few:
        _DIGESTS[model] = few, _digest(weights, "")
    return _DIGESTS[model][1]


def _some_of(tensor: Tensor) -> Tensor:
    flat = tensor.detach().reshape(-1)
    return flat[:: max(1, flat.numel() // _FEW)]


def _file_digest(path: Path) -> str:
    """Return a digest of where a file lies, how large it is and when it was written."""
    found = path.stat()
    return hashlib.sha256(f"{path} {found.st_size} {found.st_mtime_ns}".encode()).hexdigest()


def _digest(tensors: Mapping[str, Tensor], start: str) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values."""
    digest = hashlib.sha256(start.encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        values = tensor.detach().to("cpu", copy=True).contiguous()
        digest.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
