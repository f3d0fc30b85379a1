"""What a file holds for one layer: a LoRA's factors, or another kind of adapter, each in a module of its own.

A new kind of adapter is a subclass of `Adapter`, and a way for `assemble` to make it of its tensors.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from loraport.errors import MismatchError
from loraport.files.adapters.outline import Outline, check_division
from loraport.files.names.families import RowSlice
from loraport.spectral.low_rank import LowRank

LARGEST_AUTO_RANK = 128
"""What cannot be written exactly at this rank is factorised at it, where no other rank is asked for."""


class Adapter(ABC):
    """An update that is not a plain B·A, and what it needs to become one."""

    kind: str
    """LoHa, LoKr, DoRA, PiSSA, OLoRA or difference."""
    needs_weight: ClassVar[bool] = False
    """Whether what it adds depends on the weight that it is added to."""

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """Of the update as it is, or of the factors that it has where the update is of full rank."""

    @property
    def aimed_rank(self) -> int:
        """What counts as its own rank for a rule such as `auto` (`inputs.config.RankRule`)."""
        return min(self.rank, LARGEST_AUTO_RANK, *self.shape)

    def dense(self) -> Tensor:
        """Return the update as one matrix. Raises MismatchError where it depends on the weight."""
        raise MismatchError(
            f"what a {self.kind} adds depends on the weight, which is not at hand; give the model it is for"
        )

    def exact(self, W: Tensor | None) -> LowRank | Tensor:
        """Return what it adds to the weight W: factors where they are the smaller form, else a matrix."""
        return self.dense()

    @abstractmethod
    def rows(self, rows: RowSlice, where: Path) -> LayerUpdate:
        """Return one layer's share of a fused module. Raises MismatchError for what cannot be divided."""


LayerUpdate = LowRank | Adapter
"""What a file holds for one layer."""


def adapter_kind(update: LayerUpdate) -> str:
    """Return LoRA, LoHa, LoKr, DoRA, PiSSA, OLoRA or difference."""
    return "LoRA" if isinstance(update, LowRank) else update.kind


def outline_of(update: LayerUpdate) -> Outline:
    """Return its kind, size and rank."""
    return Outline(adapter_kind(update), update.shape, update.rank)


def needs_weight(update: LayerUpdate) -> bool:
    """Return whether what it adds depends on the weight that it is added to."""
    return not isinstance(update, LowRank) and update.needs_weight


def exact_update(update: LayerUpdate, W: Tensor | None) -> LowRank | Tensor:
    """Return what an adapter adds to the weight W: factors where they are the smaller form, else a matrix.

    DoRA, PiSSA and OLoRA look at W. Raises MismatchError where it is needed and not there.
    """
    if isinstance(update, LowRank):
        return update
    return update.exact(None if W is None else W.cpu())  # adapters are in main memory, whatever the weights are on


def aimed_rank(update: LayerUpdate) -> int:
    """Return what counts as its own rank for a rule such as `auto`: that of its factors, or `Adapter.aimed_rank`."""
    return update.rank if isinstance(update, LowRank) else update.aimed_rank


def rows_of_update(update: LayerUpdate, rows: RowSlice, where: Path) -> LayerUpdate:
    """Return one layer's share of a module's update. Raises MismatchError for what cannot be divided so."""
    check_division(update.shape, rows, where)
    if isinstance(update, LowRank):
        return LowRank(rows.take(update.B).contiguous(), update.A, update.lost_energy)
    return update.rows(rows, where)
