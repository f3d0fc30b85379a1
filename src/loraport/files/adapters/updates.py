"""Updates that are no plain B·A: LoHa, LoKr, DoRA, PiSSA, differences; each becomes factors or a matrix here.

The formulas are written out and not taken from LyCORIS, whose own modules apply alpha / rank twice in some versions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from loraport.errors import MismatchError
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank

LARGEST_AUTO_RANK = 128
"""What cannot be written exactly at this rank is factorised at it, where no other rank is asked for."""


@dataclass(frozen=True)
class Product:
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

    def low_rank(self) -> LowRank:
        """Exact factors: products of the columns of B₁ and B₂ and of the rows of A₁ and A₂, r₁·r₂ of them."""
        if self.kind == "LoKr":
            return LowRank(_kronecker(self.first.B, self.second.B), _kronecker(self.first.A, self.second.A))
        B = self.first.B[:, :, None] * self.second.B[:, None, :]
        A = self.first.A[:, None, :] * self.second.A[None, :, :]
        return LowRank(B.flatten(1), A.flatten(0, 1))

    def dense(self) -> Tensor:
        """The update as one matrix."""
        first, second = self.first.dense(), self.second.dense()
        return first * second if self.kind == "LoHa" else _kronecker(first, second)


@dataclass(frozen=True)
class Full:
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

    def dense(self) -> Tensor:
        """The update as one matrix."""
        return self.difference.flatten(1).float()


@dataclass(frozen=True)
class Dora:
    """DoRA (arXiv 2402.09353): W' = m ∘ (W + D) / ‖W + D‖, norms over rows, or over columns as old LyCORIS has them.

    The norm is that of the merged weight, as in PEFT and LyCORIS. What it adds to a weight depends on that weight, and
    is of full rank even where D is not.
    """

    inner: LowRank | Product
    magnitude: Tensor
    """One number a row of W, or a column; of a convolution an output channel, or an input channel."""
    by: Literal["rows", "columns"] = "rows"
    kind: Literal["DoRA"] = "DoRA"

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.inner.shape

    @property
    def rank(self) -> int:
        """Of D; the update has no lower rank than the layer."""
        return self.inner.rank

    def merged(self, W: Tensor, D: Tensor | None = None) -> Tensor:
        """W' for a weight [out, in]; `D` in place of the adapter's own update, where it was transferred."""
        X = W + (self.inner.dense().to(W) if D is None else D)
        return self._times(X, self.magnitude.to(W) / _positive(self._norms(X)))

    def difference(self, W: Tensor) -> Tensor:
        """W' − W."""
        return self.merged(W) - W

    def carried(self, W_s: Tensor, W_t: Tensor) -> Dora:
        """The same adapter with magnitudes for another weight: m·‖W_t‖ / ‖W_s‖, row by row (or by column)."""
        m = self.magnitude.to(W_s)
        return replace(self, magnitude=m * self._norms(W_t) / _positive(self._norms(W_s)))

    def _norms(self, X: Tensor) -> Tensor:
        return torch.linalg.vector_norm(self._shaped(X), dim=(1, 2) if self.by == "rows" else (0, 2))

    def _times(self, X: Tensor, factors: Tensor) -> Tensor:
        factors = factors[:, None, None] if self.by == "rows" else factors[None, :, None]
        return (self._shaped(X) * factors).reshape(X.shape)

    def _shaped(self, X: Tensor) -> Tensor:
        """[out, input channels, kernel], where the columns have magnitudes; else [out, in, 1]."""
        channels = len(self.magnitude) if self.by == "columns" else X.shape[1]
        return X.reshape(X.shape[0], channels, -1)


@dataclass(frozen=True)
class Residual:
    """PiSSA (arXiv 2404.02948) or OLoRA (2406.01775): factors for a base that their own start was taken out of.

    s·B₀·A₀ is the r leading singular directions of W (PiSSA), or s times the r first columns of Q and rows of R in W =
    Q·R (OLoRA). What the adapter adds to W itself is s·B·A − s·B₀·A₀, exact factors of twice the rank.
    """

    inner: LowRank
    """s·B·A."""
    kind: Literal["PiSSA", "OLoRA"]
    scale: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.inner.shape

    @property
    def rank(self) -> int:
        """Of the factors and of what was taken out together, or the size of the layer where that is less."""
        return min(2 * self.inner.rank, *self.shape)

    def difference(self, W: Tensor) -> LowRank:
        """What it adds to a weight, of which its start is computed again; one decomposition of the weight."""
        taken = self._start(W)
        B, A = self.inner.B.to(W), self.inner.A.to(W)
        return LowRank(torch.cat([B, -taken.B], 1), torch.cat([A, taken.A]))

    def _start(self, W: Tensor) -> LowRank:
        rank = self.inner.rank
        if rank > min(W.shape):
            raise MismatchError(f"a {self.kind} of rank {rank} cannot have started from a weight of {list(W.shape)}")
        if self.kind == "PiSSA":
            A = decompose(W).Vh[:rank].contiguous()
            return LowRank(W @ A.mT, A)
        Q, R = torch.linalg.qr(W)
        return LowRank(self.scale * Q[:, :rank], R[:rank].contiguous())


LayerUpdate = LowRank | Product | Dora | Residual | Full
"""What a file holds for one layer."""


def kind_of(update: LayerUpdate) -> str:
    """Its name: LoRA, LoHa, LoKr, DoRA, PiSSA, OLoRA, difference."""
    return "LoRA" if isinstance(update, LowRank) else update.kind


def looks_at_weight(update: object) -> bool:
    """Whether what it adds depends on the weight that it is added to."""
    return isinstance(update, Dora | Residual)


def exact_update(update: LayerUpdate, W: Tensor | None) -> LowRank | Tensor:
    """What an adapter adds to the weight W: factors where they are the smaller form, else a matrix.

    DoRA, PiSSA and OLoRA look at W. Raises MismatchError where it is needed and not there.
    """
    if isinstance(update, LowRank):
        return update
    if isinstance(update, Dora | Residual):
        if W is None:
            raise MismatchError(
                f"what a {update.kind} adds depends on the weight, which is not at hand; give the model it is for"
            )
        return update.difference(W)
    if isinstance(update, Product) and is_low_rank(update):
        return update.low_rank()
    return update.dense()


def is_low_rank(update: LayerUpdate) -> bool:
    """Whether its exact factors are smaller than the matrix; a LoRA counts always."""
    if isinstance(update, Product):
        out, inn = update.shape
        return update.first.rank * update.second.rank * (out + inn) < out * inn
    return isinstance(update, LowRank)


def aimed_rank(update: LayerUpdate) -> int:
    """The rank that an adapter is written at where none is asked for: its own where that is exact and reasonable.

    DoRA: twice that of its factors. A full difference aims at nothing and takes what the other layers have, unless it
    is a part of an adapter that does.
    """
    if isinstance(update, LowRank | Residual):
        return update.rank
    if isinstance(update, Full):
        return min(update.aim, *update.shape)
    return min(2 * update.rank if isinstance(update, Dora) else update.rank, LARGEST_AUTO_RANK, *update.shape)


def _kronecker(X: Tensor, Y: Tensor) -> Tensor:
    """X ⊗ Y; `torch.kron` fails on some matrices with a side of 1."""
    product = X[:, None, :, None] * Y[None, :, None, :]
    return product.reshape(X.shape[0] * Y.shape[0], X.shape[1] * Y.shape[1])


def _positive(norms: Tensor) -> Tensor:
    return norms.clamp(min=torch.finfo(norms.dtype).eps)
