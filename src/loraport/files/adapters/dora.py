"""DoRA: a LoRA, LoHa or LoKr together with a magnitude for every row of the merged weight."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from loraport.errors import MismatchError
from loraport.files.adapters.product import Product
from loraport.files.adapters.updates import LARGEST_AUTO_RANK, Adapter, rows_of_update
from loraport.files.names.families import RowSlice
from loraport.spectral.low_rank import LowRank


@dataclass(frozen=True)
class Dora(Adapter):
    """DoRA (arXiv 2402.09353): W' = m ∘ (W + D) / ‖W + D‖, norms over rows, or over columns as old LyCORIS has them.

    The norm is that of the merged weight, as in PEFT and LyCORIS. What it adds to a weight depends on that weight, and
    is of full rank even where D is not.
    """

    inner: LowRank | Product
    magnitude: Tensor
    """One number a row of W, or a column; of a convolution an output channel, or an input channel."""
    by: Literal["rows", "columns"] = "rows"
    kind: Literal["DoRA"] = "DoRA"
    needs_weight: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.inner.shape

    @property
    def rank(self) -> int:
        """Of D; the update has no lower rank than the layer."""
        return self.inner.rank

    @property
    def aimed_rank(self) -> int:
        """Twice that of its factors."""
        return min(2 * self.rank, LARGEST_AUTO_RANK, *self.shape)

    def merged(self, W: Tensor, D: Tensor | None = None) -> Tensor:
        """Return W' for a weight [out, in]; `D` in place of the adapter's own update, where it was transferred."""
        X = W + (self.inner.dense().to(W) if D is None else D)
        return self._times(X, self.magnitude.to(W) / _positive(self._norms(X)))

    def difference(self, W: Tensor) -> Tensor:
        """Return W' − W."""
        return self.merged(W) - W

    def carried(self, W_s: Tensor, W_t: Tensor) -> Dora:
        """Return the same adapter with magnitudes for another weight: m·‖W_t‖ / ‖W_s‖, row by row (or by column)."""
        m = self.magnitude.to(W_s)
        return replace(self, magnitude=m * self._norms(W_t) / _positive(self._norms(W_s)))

    def exact(self, W: Tensor | None) -> Tensor:
        """Return what it adds to W."""
        return self.dense() if W is None else self.difference(W)

    def rows(self, rows: RowSlice, where: Path) -> Dora:
        """Return one layer's share, where the magnitudes are the layers' own and D can be divided."""
        if self.by == "columns":
            raise MismatchError(f"{where}: {rows.name} is a DoRA with a magnitude a column, which its layers share")
        inner = rows_of_update(self.inner, rows, where)
        if isinstance(inner, LowRank | Product):
            return replace(self, inner=inner, magnitude=rows.take(self.magnitude))
        raise MismatchError(f"{where}: {rows.name} is a DoRA of LoKr, which cannot be divided into its layers")

    def _norms(self, X: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self._shaped(X), dim=(1, 2) if self.by == "rows" else (0, 2))

    def _times(self, X: Tensor, factors: Tensor) -> Tensor:
        factors = factors[:, None, None] if self.by == "rows" else factors[None, :, None]
        return (self._shaped(X) * factors).reshape(X.shape)

    def _shaped(self, X: Tensor) -> Tensor:
        """Return it as [out, input channels, kernel] where the columns have magnitudes, else as [out, in, 1]."""
        channels = len(self.magnitude) if self.by == "columns" else X.shape[1]
        return X.reshape(X.shape[0], channels, -1)


def _positive(norms: Tensor) -> Tensor:
    # a row of zeros stays a row of zeros: nothing is divided by nothing
    return norms.clamp(min=torch.finfo(norms.dtype).eps)
