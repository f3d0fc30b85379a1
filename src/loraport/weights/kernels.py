"""The kernels of convolutions: which of them are the same matrix, and which kernel a layer has."""

from __future__ import annotations

from math import prod

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


def kernel_in(told: Kernel | None, held: Kernel) -> Kernel:
    """The kernel to write for a weight that has `held`: what the file tells of it, unless that is the same matrix."""
    return held if told is None or same_kernel(told, held) else told
