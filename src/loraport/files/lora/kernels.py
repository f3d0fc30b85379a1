"""Compare the kernels of convolutions, and choose the one that a layer is written with."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from loraport.files.names.families import FAMILIES, LINEAR_PROJECTIONS, PROJECTIONS, SD15

if TYPE_CHECKING:
    from loraport.files.lora.read import Lora

Kernel = tuple[int, ...]
"""The sizes behind (out, in); () for a linear layer."""


def same_kernel(one: Kernel, other: Kernel) -> bool:
    """Return whether two kernels multiply the same numbers: a 1×1 convolution and a linear layer are one matrix."""
    return one == other or prod(one) == prod(other) == 1


def same_weight(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Return whether two shapes of weights are one matrix: equal but for a kernel of ones, or one of them flat."""
    if one == other or (len(one) == 2 and one == (*other[:1], prod(other[1:]))):
        return True
    return one[:2] == other[:2] and same_kernel(one[2:], other[2:])


def written_kernel(file_kernel: Kernel | None, model_kernel: Kernel) -> Kernel:
    """Return the kernel to write: the LoRA file's own only where it is another matrix than the model's."""
    return model_kernel if file_kernel is None or same_kernel(file_kernel, model_kernel) else file_kernel


def kernel_by_name(layer: str, lora: Lora, flat: bool = False) -> Kernel | None:
    """Return what the family's table says of a layer; None where it does not have it. `flat`: for kohya's loaders."""
    family = FAMILIES.get(lora.dialect.family or "")
    if family is None or family.rows(layer, family.canonical) is None:
        return None
    if family is SD15 and layer.endswith(PROJECTIONS) and not flat and _text_width(lora) == LINEAR_PROJECTIONS:
        return ()
    return family.kernel(layer)


def _text_width(lora: Lora) -> int | None:
    """Return the width of the text that a U-Net attends to, as any layer of it shows."""
    keys = (update.shape[1] for name, update in lora.updates.items() if name.endswith((".attn2.to_k", ".attn2.to_v")))
    return next(keys, None)
