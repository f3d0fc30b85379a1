"""Symmetric matrices in half of the space: row i of the lower triangle lies in one line with row n − 1 − i."""

from __future__ import annotations

import torch
from torch import Tensor


def folded(X: Tensor) -> Tensor:
    """A symmetric n × n matrix as ⌈n/2⌉ lines of n + 1 entries; the middle row of an odd n stands in its line twice."""
    return X[_places(len(X), X.device)]


def unfolded(lines: Tensor) -> Tensor:
    """The symmetric matrix that was folded to these lines."""
    n = lines.shape[1] - 1
    rows, columns = _places(n, lines.device)
    found = lines.new_empty(n, n)
    found[rows, columns] = lines
    found[columns, rows] = lines
    return found


def _places(n: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which entry of the lower triangle stands where."""
    line, place = torch.arange((n + 1) // 2, device=device)[:, None], torch.arange(n + 1, device=device)
    first = place <= line
    return torch.where(first, line, n - 1 - line), torch.where(first, place, place - line - 1)
