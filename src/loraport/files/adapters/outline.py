"""What is known of a layer's update without its numbers: its kind, size and rank."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from loraport.errors import MismatchError
from loraport.files.names.families import RowSlice


@dataclass(frozen=True)
class Outline:
    """One layer's update as headers describe it."""

    kind: str
    """LoRA, LoHa, LoKr, DoRA, PiSSA, OLoRA or difference."""
    shape: tuple[int, int]
    """(out, in)."""
    rank: int

    def divided(self, rows: RowSlice, where: Path) -> Outline:
        """Return one layer's share of a module. Raises MismatchError for what cannot be divided so."""
        check_division(self.shape, rows, where)
        return Outline(self.kind, (rows.own_rows(self.shape[0]), self.shape[1]), self.rank)


def check_division(shape: tuple[int, int], rows: RowSlice, where: Path) -> None:
    """Raise MismatchError where a module of this size cannot hold layers in that way."""
    if not rows.fits(shape):
        parts = "two halves" if rows.swapped else f"{rows.of} equal parts"
        parts = f"{rows.of} parts of {shape[1]} rows" if rows.square else parts
        parts = f"heads of {rows.group} rows for each of {rows.of} parts" if rows.group else parts
        raise MismatchError(
            f"{where}: {rows.name} has {shape[0]} rows, which cannot be divided into {parts}; "
            "this LoRA was made for another model"
        )
