"""The kernels of convolutions: which of them are the same matrix, and which kernel a layer has."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from loraport.files.names.families import FAMILIES, SD15
from loraport.files.names.unet import LINEAR_PROJECTIONS, PROJECTIONS

if TYPE_CHECKING:
    from loraport.files.lora.read import Lora

Kernel = tuple[int, ...]
"""The sizes behind (out, in); () for a linear layer."""


def same_kernel(one: Kernel, other: Kernel) -> bool:
    """Whether two kernels multiply the same numbers: a 1×1 convolution and a linear layer are one matrix."""
    return one == other or prod(one) == prod(other) == 1


def same_weight(one: tuple[int, ...], other: tuple[int, ...]) -> bool:
    """Whether two shapes of weights are one matrix: equal but for a kernel of ones, or one of them flat."""
    if one == other or (len(one) == 2 and one == (*other[:1], prod(other[1:]))):
        return True
    return one[:2] == other[:2] and same_kernel(one[2:], other[2:])


def written_kernel(told: Kernel | None, held: Kernel) -> Kernel:
    """The kernel to write for a weight that has `held`: what the file tells of it, unless that is the same matrix."""
    return held if told is None or same_kernel(told, held) else told


def kernel_by_name(layer: str, lora: Lora, flat: bool = False) -> Kernel | None:
    """What the family's table says of a layer; None where it does not have it. `flat`: for kohya's loaders."""
    family = FAMILIES.get(lora.dialect.family or "")
    if family is None or family.rows(layer, family.canonical) is None:
        return None
    if family is SD15 and layer.endswith(PROJECTIONS) and not flat and _text_width(lora) == LINEAR_PROJECTIONS:
        return ()
    return family.kernel(layer)


def _text_width(lora: Lora) -> int | None:
    """The width of the text that a U-Net looks at, as any layer tells it."""
    keys = (update.shape[1] for name, update in lora.updates.items() if name.endswith((".attn2.to_k", ".attn2.to_v")))
    return next(keys, None)
