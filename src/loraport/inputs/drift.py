"""Measure the drift of a layer between two files, and how much of it rounding alone would make.

Which of two differences is the drift of a 16-bit target from a 32-bit source, W_t − W_s or W_t − round(W_s), depends on
where its training began. From W_s itself, the first holds one rounding error and the second two; from the rounded W_s
it is the other way round. The files tell: the drift's share along e = round(W_s) − W_s,

    c = ⟨W_t − W_s, e⟩ / ‖e‖²

is 1 where training began at the rounded weights, or hardly moved them, and 0 where it began at the finer ones. The rest
of the drift disturbs that: c has a standard deviation of ‖D‖ / (‖e‖·√N) over N entries, 0.8 for an fp16 target of
640 × 640 that drifted by a tenth. So the source is rounded first only where c lies above a half by more than three of
them; if the files do not decide it, the source is left as it is. Measured in docs/lab-log.md ("Rounding the source
first, or not"): the better of the two wherever the drift is more than noise, up to √2 apart, and exactly zero for a
weight that was only rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.files.models.weight import Weight
from loraport.spectral.kernels import in_pieces, norm

TIMES_FLOOR = 2.0
"""A drift of at most this many floors is taken for rounding."""

SURE = 3.0
"""Standard deviations by which the files must show that training began at the rounded weights."""
_TOO_FEW = 64
"""Entries of a layer that is too small to decide: of so few the deviation itself is a guess."""


@dataclass(frozen=True)
class Drift:
    """D_fft, and its floor: the expected norm of the coarser file's rounding error."""

    matrix: Tensor
    floor: float
    source_rounded: bool = False
    norm: float = 0.0
    """‖D_fft‖"""


def within_floor(norm: float, floor: float) -> bool:
    """Return whether a drift counts as rounding, by policy: 0 < norm ≤ 2 · floor. No drift at all is exact."""
    return 0 < norm <= TIMES_FLOOR * floor


def drift_between(source: Weight, target: Weight, *, in_place: bool = False) -> Drift:
    """Return W_t − W_s, or W_t − round(W_s) if the files show that; `in_place` writes it over the target's matrix."""
    W_s, W_t = source.matrix, target.matrix
    floor = _coarser(source, target)
    rounded = _rounded_start(source, target)
    start = W_s if rounded is None else rounded
    D = W_t.sub_(start) if in_place else W_t - start
    return Drift(D, floor, rounded is not None, norm(D))


def _coarser(source: Weight, target: Weight) -> float:
    """Return the expected rounding error of the coarser file; of two plain dtypes only that one is looked at."""
    fine, coarse = source.precision, target.precision
    if fine is None or coarse is None:
        return max(source.rounding, target.rounding)
    return (target if torch.finfo(coarse).eps >= torch.finfo(fine).eps else source).rounding


def _rounded_start(source: Weight, target: Weight) -> Tensor | None:
    """Return round(W_s) if the target's training began there, else None."""
    fine, coarse = source.precision, target.precision
    if fine is None or coarse is None or torch.finfo(coarse).eps <= torch.finfo(fine).eps:
        return None
    if source.matrix.numel() < _TOO_FEW:
        return None
    sums = source.matrix.new_zeros(3, dtype=torch.float64)
    for W_s, W_t in zip(in_pieces(source.matrix), in_pieces(target.matrix), strict=True):
        error, drift = (W_s.to(coarse).float() - W_s).double(), (W_t - W_s).double()
        sums += torch.stack([drift.dot(drift), error.dot(error), drift.dot(error)])
    moved, size, along = sums.tolist()  # once: on a card the program waits for each number that it asks for
    if not size or not math.isfinite(along):
        return None
    # of the drift itself, without what would be rounding of the source: with it a small drift would look uncertain
    rest = max(0.0, moved - along**2 / size)
    deviation = math.sqrt(rest / (size * source.matrix.numel()))
    return source.matrix.to(coarse).float() if along / size > 0.5 + SURE * deviation else None
