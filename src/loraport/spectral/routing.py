"""Updates seen in a singular basis: the routing matrix, how much each direction sends and receives, block sums.

Rows of a routing matrix receive (left directions u_i), columns send (right directions v_j).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.once import once
from loraport.spectral.products import lower_gram, times_few
from loraport.spectral.svd import LowRank, SingularBasis


@dataclass(frozen=True)
class Routing:
    """A dense update D of a layer with out ≥ in, as its weight's basis sees it.

    `C = Uᵀ·D·V` is the routing matrix (Eq. 2). What C misses is the complement of a tall layer, (I − UUᵀ)·D, which has
    no canonical basis; `send` counts it, and D itself keeps it.
    """

    C: Float[Tensor, "n n"]
    send: Float[Tensor, " n"]
    """‖D·v_j‖: what each right direction sends anywhere, the complement included."""
    outside_gram: Float[Tensor, "n n"] | None = None
    """VᵀDᵀ·(I − UUᵀ)·DV: what the right directions send out of the basis, each beside each; None for a square layer."""

    _leading: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def leading(self, k: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """What each direction sends to the k leading ones, and receives from them."""
        if k not in self._leading:
            self._leading[k] = self.C[:k].norm(dim=0), self.C[:, :k].norm(dim=1)
        return self._leading[k]

    @once
    def receive(self) -> Float[Tensor, " n"]:
        """‖u_iᵀ·D‖: what each left direction receives; V is square, so the row norms of C are all of it."""
        return self.C.norm(dim=1)

    @once
    def outside(self) -> Float[Tensor, " n"]:
        """‖D·v_j‖² − ‖C(:, j)‖² in float64: what each right direction sends out of the basis."""
        return (self.send.double().square() - self.C.norm(dim=0).double().square()).clamp(min=0)


def observe(D: Float[Tensor, "out in"], basis: SingularBasis) -> Routing:
    """The dense update of a square or tall layer in its weight's basis (Eq. 2): C = Uᵀ·D·V."""
    Y = D @ basis.Vh.mT
    C = basis.seen_left(Y).contiguous()
    if basis.is_square:
        return Routing(C, Y.norm(dim=0))
    lower = lower_gram(Y, Y.dtype).sub_(lower_gram(C, C.dtype)).tril_()
    return Routing(C, Y.norm(dim=0), lower + lower.tril(-1).mT)


def to_routing(update: LowRank, basis: SingularBasis) -> Float[Tensor, "n n"]:
    """The routing matrix of a low-rank update (Eq. 2): C = (Uᵀ·B)·(A·V); the dense update is never formed."""
    return routing_factors(update, basis).dense()


def routing_factors(update: LowRank, basis: SingularBasis) -> LowRank:
    """The routing matrix of a low-rank update as factors of the same rank: Uᵀ·B and A·V."""
    return LowRank(basis.seen_left(update.B), times_few(basis.Vh, update.A.mT).mT)


def block_sums(X: Float[Tensor, "k k"], labels: Int[Tensor, " k"]) -> Float[Tensor, "m m"]:
    """Sums of the entries of X over the blocks (cluster of the row, cluster of the column), in float64."""
    m = int(labels.max()) + 1
    rows = torch.zeros(m, X.shape[1], dtype=torch.float64, device=X.device).index_add_(0, labels, X.double())
    return torch.zeros(m, m, dtype=torch.float64, device=X.device).index_add_(1, labels, rows)


def directional_alignment(
    C_lora: Float[Tensor, "k k"], C_fft: Float[Tensor, "k k"], labels: Int[Tensor, " k"]
) -> Float[Tensor, "m m"]:
    """Cosine of the two routing blocks of each pair of clusters (Eq. 10–11).

    Cos(m, n) = ⟨C_lora[m, n], C_fft[m, n]⟩ / (‖C_lora[m, n]‖ · ‖C_fft[m, n]‖ + 1e-8)
    """
    inner = block_sums(C_lora * C_fft, labels)
    norms = block_sums(C_lora.square(), labels).sqrt() * block_sums(C_fft.square(), labels).sqrt()
    return (inner / (norms + 1e-8)).to(C_lora.dtype)
