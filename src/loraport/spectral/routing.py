"""Updates in coordinates of a singular basis (Eq. 2): the routing matrix, what each direction sends and receives.

Rows of a routing matrix receive (left directions u_i), columns send (right directions v_j).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.lazy_property import lazy_property
from loraport.spectral.basis import Basis
from loraport.spectral.clusters import cluster_sizes
from loraport.spectral.kernels import EXACT_UP_TO, ROWS, at_usual_scale, column_norms, lower_gram, mirrored, times_few
from loraport.spectral.low_rank import LowRank


@dataclass(frozen=True)
class Routing:
    """A dense update D of a layer with out ≥ in, in coordinates of its weight's basis.

    `C = Uᵀ·D·V` is the routing matrix (Eq. 2). What C misses is the complement of a tall layer, (I − UUᵀ)·D, which has
    no canonical basis; `send` counts it, and D itself keeps it.
    """

    C: Float[Tensor, "n n"]
    send: Float[Tensor, " n"]
    """‖D·v_j‖: what each right direction sends anywhere, the complement included."""
    outside_gram: Float[Tensor, "n n"] | None = None
    """VᵀDᵀ·(I − UUᵀ)·DV: what the right directions send out of the basis, each beside each; None for a square layer."""

    _outside: Float[Tensor, " n"] | None = field(default=None, repr=False)
    """`outside`, where it is known from a more exact C."""

    def to(self, dtype: torch.dtype) -> Routing:
        """Return the same in another precision; kept, since several LoRAs ask for it."""
        if self.C.dtype == dtype:
            return self
        if dtype not in self._rounded:
            outside = None if self.outside_gram is None else self.outside
            self._rounded[dtype] = Routing(self.C.to(dtype), self.send.to(dtype), self.outside_gram, outside)
        return self._rounded[dtype]

    _rounded: dict[torch.dtype, Routing] = field(default_factory=dict, init=False, repr=False)
    _leading: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict, init=False, repr=False)

    def leading(self, k: int) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
        """Return what each direction sends to the k leading ones, and receives from them."""
        if k not in self._leading:
            self._leading[k] = column_norms(self.C[:k]), self.C[:, :k].norm(dim=1)
        return self._leading[k]

    @lazy_property
    def receive(self) -> Float[Tensor, " n"]:
        """‖u_iᵀ·D‖: what each left direction receives; V is square, so the row norms of C are all of it."""
        return self.C.norm(dim=1)

    @lazy_property
    def column_norms(self) -> Float[Tensor, " n"]:
        """‖C(:, j)‖: what each right direction sends inside the basis."""
        return column_norms(self.C)

    @lazy_property
    def outside(self) -> Float[Tensor, " n"]:
        """‖D·v_j‖² − ‖C(:, j)‖² in float64: what each right direction sends out of the basis."""
        if self._outside is not None:
            return self._outside
        return (self.send.double().square() - self.column_norms.double().square()).clamp(min=0)


def precision_for(D: Float[Tensor, "out in"]) -> torch.dtype:
    """Return the precision in which a layer's entries are compared with their thresholds."""
    if min(D.shape) <= EXACT_UP_TO or not at_usual_scale(D):
        return torch.float64
    return D.dtype


def observe(D: Float[Tensor, "out in"], basis: Basis, dtype: torch.dtype | None = None) -> Routing:
    """Return the dense update of a square or tall layer in its weight's basis (Eq. 2): C = Uᵀ·D·V, in this precision.

    What is outside of the basis, and is never compared with a threshold, keeps the precision of D.
    """
    dtype = D.dtype if dtype is None else dtype
    V, tall = basis.Vh_as(dtype).mT, not basis.is_square
    sums: Tensor | None = None
    sent, gram = torch.zeros(V.shape[1], dtype=torch.float64, device=D.device), None
    for start in range(0, max(1, len(D)), ROWS):
        # Piece by piece, so that D and U are never held in double precision as a whole.
        rows = slice(start, start + ROWS)
        Y = D[rows].to(dtype) @ V
        sent += Y.square().sum(dim=0, dtype=torch.float64)
        part = basis.left_span(rows, dtype).mT @ Y
        sums = part if sums is None else sums.add_(part)
        if tall:
            gram = lower_gram(Y, D.dtype) if gram is None else gram.add_(lower_gram(Y, D.dtype))
    assert sums is not None
    C = basis.from_left_span(sums).contiguous()
    send = sent.sqrt().to(dtype)
    if gram is None:
        return Routing(C, send)
    # (DV)ᵀ·(I − UUᵀ)·DV = (DV)ᵀ·DV − CᵀC, of which the lower triangle is all that was summed.
    return Routing(C, send, mirrored(gram.sub_(lower_gram(C, D.dtype))))


def to_routing(update: LowRank, basis: Basis) -> Float[Tensor, "n n"]:
    """Return the routing matrix of a low-rank update (Eq. 2): C = (Uᵀ·B)·(A·V); the dense update is never formed."""
    return routing_factors(update, basis).dense()


def routing_factors(update: LowRank, basis: Basis) -> LowRank:
    """Return the routing matrix of a low-rank update as factors of the same rank: Uᵀ·B and A·V, in its precision."""
    return LowRank(basis.project_left(update.B), times_few(basis.Vh_as(update.A.dtype), update.A.mT).mT)


def block_sums(X: Float[Tensor, "k k"], labels: Int[Tensor, " k"], count: int | None = None) -> Float[Tensor, "m m"]:
    """Return the sums of X over the blocks (cluster of the row, cluster of the column), in float64.

    `count`: how many clusters there are, where it is known; to find it out a card is waited for.
    """
    m = len(cluster_sizes(labels)) if count is None else count
    rows = torch.zeros(m, X.shape[1], dtype=torch.float64, device=X.device).index_add_(0, labels, X.double())
    return torch.zeros(m, m, dtype=torch.float64, device=X.device).index_add_(1, labels, rows)


ALIGNMENT_EPS = 1e-8
"""Added to the denominator of Eq. 11, as the published code does. It is in units of weights squared: blocks whose two
norms multiply to less count as hardly aligned, and so the rule is not the same at every scale."""


def directional_alignment(
    C_lora: Float[Tensor, "k k"],
    C_fft: Float[Tensor, "k k"],
    labels: Int[Tensor, " k"],
    count: int | None = None,
    *,
    eps: float = ALIGNMENT_EPS,
) -> Float[Tensor, "m m"]:
    """Return the cosine of the two routing blocks of each pair of clusters (Eq. 10–11); 0 where a block is zero.

    Cos(m, n) = ⟨C_lora[m, n], C_fft[m, n]⟩ / (‖C_lora[m, n]‖ · ‖C_fft[m, n]‖ + eps)
    """
    lora, drift = C_lora.double(), C_fft.double()
    m = len(cluster_sizes(labels)) if count is None else count
    inner = block_sums(lora * drift, labels, m)
    norms = block_sums(lora.square(), labels, m).sqrt() * block_sums(drift.square(), labels, m).sqrt()
    sizes = norms + eps
    return torch.where(sizes > 0, inner / sizes, 0).to(C_lora.dtype)
