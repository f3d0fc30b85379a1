"""How far apart two sets of vectors are: the squared maximum mean discrepancy of CMMD."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

KERNEL_WIDTH = 10.0
TIMES = 1000
"""CMMD's authors multiply by it, to make the number readable."""


def discrepancy(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Return the squared distance under a Gaussian kernel, biased, times a thousand: 0 for equal sets."""
    one, other = one.double(), other.double()
    return TIMES * float(_likeness(one, one) + _likeness(other, other) - 2 * _likeness(one, other))


def _likeness(one: Tensor, other: Tensor) -> Tensor:
    # not by cdist's matrix product, which loses the small distances
    squares = torch.cdist(one, other, compute_mode="donot_use_mm_for_euclid_dist").square()
    return torch.exp(-squares / (2 * KERNEL_WIDTH**2)).mean()
