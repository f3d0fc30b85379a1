"""A difference to a weight that is stored as a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from loraport.files.adapters.updates import Adapter
from loraport.files.names.families import RowSlice


@dataclass(frozen=True)
class FullDifference(Adapter):
    """A difference that is stored as a matrix (`.diff`), in the dtype that it has in its file."""

    difference: Tensor
    kind: Literal["difference"] = "difference"
    aim: int = 0
    """The rank that it is written at where none is asked for; 0 takes what other layers have."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.difference.shape[0], self.difference[0].numel()

    @property
    def rank(self) -> int:
        """As much as fits."""
        return min(self.shape)

    @property
    def aimed_rank(self) -> int:
        """None of its own, unless it is a part of an adapter that has one."""
        return min(self.aim, *self.shape)

    def dense(self) -> Tensor:
        """Return the update as one matrix."""
        return self.difference.flatten(1).float()

    def rows(self, rows: RowSlice, where: Path) -> FullDifference:
        """Return one layer's share of a fused module."""
        return FullDifference(rows.take(self.dense()).contiguous(), aim=self.aimed_rank)
