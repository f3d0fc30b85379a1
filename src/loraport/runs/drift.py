"""The drift of a layer from two files, and how much of it rounding alone would make.

Which of two differences is the drift of a 16-bit target from a 32-bit source, W_t − W_s or W_t − round(W_s), depends on
where its training began. From W_s itself, the first holds one rounding error and the second two; from the rounded W_s
it is the other way round. The files tell: the drift's share along e = round(W_s) − W_s,

    c = ⟨W_t − W_s, e⟩ / ‖e‖²

is 1 where training began at the rounded weights, or hardly moved them, and 0 where it began at the finer ones. Above a
half the source is rounded first. Measured in docs/lab-log.md ("Rounding the source first, or not"): the better of the
two wherever the drift is more than noise, up to √2 apart, and exactly zero for a weight that was only rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.spectral.products import in_pieces, inner, norm
from loraport.weights.checkpoint import Weight

TIMES_FLOOR = 2.0
"""A drift within so many floors is taken for rounding."""


@dataclass(frozen=True)
class Drift:
    """D_fft, and the floor under it: the expected norm of the coarser file's rounding error."""

    matrix: Tensor
    floor: float
    source_rounded: bool = False

    @property
    def is_rounding(self) -> bool:
        """Whether it cannot be told from rounding: 0 < ‖D_fft‖ ≤ 2 · floor. No drift at all is no noise either."""
        return within_floor(norm(self.matrix), self.floor)


def within_floor(norm: float, floor: float) -> bool:
    """0 < norm ≤ 2 · floor."""
    return 0 < norm <= TIMES_FLOOR * floor


def drift_between(source: Weight, target: Weight, *, in_place: bool = False) -> Drift:
    """W_t − W_s, or W_t − round(W_s) where the files say so; `in_place` writes it over the target's matrix."""
    W_s, W_t = source.matrix, target.matrix
    floor = _coarser(source, target)
    rounded = _rounded_start(source, target)
    start = W_s if rounded is None else rounded
    return Drift(W_t.sub_(start) if in_place else W_t - start, floor, rounded is not None)


def _coarser(source: Weight, target: Weight) -> float:
    """Expected rounding error of the coarser file; of two plain dtypes the wider one need not be looked at."""
    fine, coarse = source.precision, target.precision
    if fine is None or coarse is None:
        return max(source.rounding, target.rounding)
    return (target if torch.finfo(coarse).eps >= torch.finfo(fine).eps else source).rounding


def _rounded_start(source: Weight, target: Weight) -> Tensor | None:
    """round(W_s) where the target's training began there, else None."""
    fine, coarse = source.precision, target.precision
    if fine is None or coarse is None or torch.finfo(coarse).eps <= torch.finfo(fine).eps:
        return None
    along = size = 0.0
    for W_s, W_t in zip(in_pieces(source.matrix), in_pieces(target.matrix), strict=True):
        error = W_s.to(coarse).float() - W_s
        size += inner(error, error)
        along += inner(W_t - W_s, error)
    share = along / size if size else 0.0
    return source.matrix.to(coarse).float() if share > 0.5 and math.isfinite(share) else None
