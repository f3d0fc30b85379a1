"""PiSSA and OLoRA: factors for a base weight that their own start was taken out of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
from torch import Tensor

from loraport.errors import MismatchError
from loraport.files.adapters.peft_fields import SAVE_AGAIN
from loraport.files.adapters.updates import Adapter
from loraport.files.names.families import RowSlice
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank


@dataclass(frozen=True)
class Residual(Adapter):
    """PiSSA (arXiv 2404.02948) or OLoRA (2406.01775): factors for a base that their own start was taken out of.

    s·B₀·A₀ is the r leading singular directions of W (PiSSA), or s times the r first columns of Q and rows of R in W =
    Q·R (OLoRA). What the adapter adds to W itself is s·B·A − s·B₀·A₀, exact factors of twice the rank.
    """

    inner: LowRank
    """s·B·A."""
    kind: Literal["PiSSA", "OLoRA"]
    scale: float
    needs_weight: ClassVar[bool] = True

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in) of the update."""
        return self.inner.shape

    @property
    def rank(self) -> int:
        """Of the factors and of what was taken out together, or the size of the layer where that is less."""
        return min(2 * self.inner.rank, *self.shape)

    @property
    def aimed_rank(self) -> int:
        """Its own, whatever it is: these are plain factors, which the trainer's rank bounds."""
        return self.rank

    def difference(self, W: Tensor) -> LowRank:
        """Return what it adds to a weight, of which its start is computed again; one decomposition of the weight."""
        taken = self._start(W)
        B, A = self.inner.B.to(W), self.inner.A.to(W)
        return LowRank(torch.cat([B, -taken.B], 1), torch.cat([A, taken.A]))

    def exact(self, W: Tensor | None) -> LowRank | Tensor:
        """Return what it adds to W."""
        return self.dense() if W is None else self.difference(W)

    def rows(self, rows: RowSlice, where: Path) -> Residual:
        """Refuse: the start was taken from the module as a whole."""
        raise MismatchError(
            f"{where}: {rows.name} is a {self.kind} of a fused module, which cannot be divided; {SAVE_AGAIN}"
        )

    def _start(self, W: Tensor) -> LowRank:
        rank = self.inner.rank
        if rank > min(W.shape):
            raise MismatchError(f"a {self.kind} of rank {rank} cannot have started from a weight of {list(W.shape)}")
        if self.kind == "PiSSA":
            # (W·Aᵀ)·A is U·S·Vᵀ of the leading directions, whatever signs the decomposition chose
            A = decompose(W).Vh[:rank].contiguous()
            return LowRank(W @ A.mT, A)
        Q, R = torch.linalg.qr(W)
        return LowRank(self.scale * Q[:, :rank], R[:rank].contiguous())
