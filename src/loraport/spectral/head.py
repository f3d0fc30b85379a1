"""The head of a spectrum: the first tenth of a weight's singular directions, and how much of an update sits there."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.spectral.kernels import energy, times_few

HEAD = 0.1
"""Share of the directions that counts as the head."""
EXTRA = 16
"""Columns beyond the head in the block that is iterated."""
STEPS = 4
"""Products with WᵀW: on trained weights the share of a drift in the head is then within 0.001 of the exact one."""

FEW_DIRECTIONS = 128
"""Most directions of a drift that counts as an accelerator's, and no more than an eighth of them all."""
LEFT_OVER = 1e-6
"""Share of the drift's energy that an accelerator's may have outside of its directions, beside rounding."""
FAR_ABOVE_FLOOR = 10.0


def head_count(n: int, share: float = HEAD) -> int:
    """Return how many of n directions are the head; at least one."""
    return max(1, math.ceil(share * n))


def head_share(strength: Float[Tensor, " n"], share: float = HEAD) -> float:
    """Return the share of the energy in the first tenth of all n directions; a tenth where it is spread evenly."""
    count = head_count(len(strength), share)
    squares = strength.double().square()
    inside, total = torch.stack([squares[:count].sum(), squares.sum()]).tolist()
    return inside / total if total else 0.0


def head_directions(W: Float[Tensor, "out n"], generator: torch.Generator) -> Float[Tensor, "n k"]:
    """Return the head's right directions of a square or tall weight, without decomposing it: by subspace iteration.

    Directions at the end of the head are mixed with those behind it, which hardly matters to what the head holds of an
    update. The generator lives on the CPU, so that every device draws the same.
    """
    n = W.shape[1]
    count = head_count(n)
    X = torch.randn(n, min(n, count + EXTRA), generator=generator, dtype=W.dtype).to(W.device)
    for _ in range(STEPS):
        X = torch.linalg.qr(times_few(W.mT, times_few(W, X))).Q
    Y = times_few(W, X)
    _, vectors = torch.linalg.eigh((Y.mT @ Y).double())
    return X @ vectors[:, -count:].to(X.dtype)


def energy_inside(D: Float[Tensor, "out n"], V: Float[Tensor, "n k"]) -> float | None:
    """Return the share of an update's energy that its inputs within the span of V carry; None for a zero update."""
    total = energy(D)
    return energy(times_few(D, V)) / total if total else None


def has_few_directions(D: Float[Tensor, "out in"], floor: float, generator: torch.Generator) -> bool:
    """Tell whether a drift has at most FEW_DIRECTIONS, but for rounding: then it is a LoRA's, merged or beside.

    Random combinations of its columns span all that such a drift has; what they leave of it is measured. A drift near
    its rounding cannot be told, and counts as any other.
    """
    rank, size = min(FEW_DIRECTIONS, min(D.shape) // 8), energy(D)
    if not rank or size < (FAR_ABOVE_FLOOR * floor) ** 2:
        return False
    drawn = torch.randn(D.shape[1], rank, generator=generator, dtype=D.dtype).to(D.device)
    Q = torch.linalg.qr(times_few(D, drawn)).Q
    left = size - energy(times_few(Q.mT, D))
    return left <= LEFT_OVER * size + 2 * floor**2
