"""LoHa and LoKr: products of two pairs of factors.

The formulas are written out and not taken from LyCORIS, whose own modules apply alpha / rank twice in some versions,
nor from PEFT, whose `convert_to_lora` needs the loaded model and a dense singular value decomposition: these factors
are exact, and made from the file alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from loraport.files.adapters.full_difference import FullDifference
from loraport.files.adapters.updates import Adapter
from loraport.files.names.families import RowSlice
from loraport.spectral.low_rank import LowRank


@dataclass(frozen=True)
class Product(Adapter):
    """LoHa, (B₁·A₁) ∘ (B₂·A₂), or LoKr, (B₁·A₁) ⊗ (B₂·A₂); the scale is in B₁. A full factor is one times a unit."""

    kind: Literal["LoHa", "LoKr"]
    first: LowRank
    second: LowRank

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        (out, inn), (rows, columns) = self.first.shape, self.second.shape
        return (out, inn) if self.kind == "LoHa" else (out * rows, inn * columns)

    @property
    def rank(self) -> int:
        """r₁·r₂, or the size of the layer where that is less."""
        return min(self.first.rank * self.second.rank, *self.shape)

    @property
    def is_low_rank(self) -> bool:
        """Whether its exact factors are smaller than the matrix."""
        out, inn = self.shape
        return self.first.rank * self.second.rank * (out + inn) < out * inn

    def low_rank(self) -> LowRank:
        """Return exact factors: products of the columns of B₁ and B₂ and of the rows of A₁ and A₂, r₁·r₂ of them."""
        if self.kind == "LoKr":
            return LowRank(_kronecker(self.first.B, self.second.B), _kronecker(self.first.A, self.second.A))
        B = self.first.B[:, :, None] * self.second.B[:, None, :]
        A = self.first.A[:, None, :] * self.second.A[None, :, :]
        return LowRank(B.flatten(1), A.flatten(0, 1))

    def dense(self) -> Tensor:
        """Return the update as one matrix."""
        first, second = self.first.dense(), self.second.dense()
        return first * second if self.kind == "LoHa" else _kronecker(first, second)

    def exact(self, W: Tensor | None) -> LowRank | Tensor:
        """Return its factors where they are the smaller form, else the matrix."""
        return self.low_rank() if self.is_low_rank else self.dense()

    def rows(self, rows: RowSlice, where: Path) -> Product | FullDifference:
        """Return one layer's share: the rows of a LoHa are a LoHa, those of a LoKr cut its blocks."""
        if self.kind == "LoHa":
            first, second = (LowRank(rows.take(half.B).contiguous(), half.A) for half in (self.first, self.second))
            return Product("LoHa", first, second)
        return FullDifference(rows.take(self.dense()).contiguous(), aim=self.aimed_rank)


def _kronecker(X: Tensor, Y: Tensor) -> Tensor:
    """Return X ⊗ Y; `torch.kron` fails on some matrices with a side of 1."""
    product = X[:, None, :, None] * Y[None, :, None, :]
    return product.reshape(X.shape[0] * Y.shape[0], X.shape[1] * Y.shape[1])
