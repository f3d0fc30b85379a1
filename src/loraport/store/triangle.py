"""Symmetric matrices in half of the space: row i of the lower triangle lies in one line with row n − 1 − i."""

from __future__ import annotations

import torch
from torch import Tensor


def folded(X: Tensor) -> Tensor:
    """A symmetric n × n matrix as ⌈n/2⌉ lines of n + 1 entries; the middle row of an odd n stands in its line twice."""
    n = len(X)
    line, place = torch.arange((n + 1) // 2, device=X.device)[:, None], torch.arange(n + 1, device=X.device)
    first = place <= line
    return X[torch.where(first, line, n - 1 - line), torch.where(first, place, place - line - 1)]


def unfolded(lines: Tensor) -> Tensor:
    """The symmetric matrix that was folded to these lines."""
    half, n = lines.shape[0], lines.shape[1] - 1
    behind = torch.nn.functional.pad(lines.flatten(), (0, n)).as_strided((half, n), (n + 2, 1), 1)
    lower = torch.cat([lines[:, :n], behind.flip(0)[n % 2 :]]).tril_()
    return lower + lower.tril(-1).mT
