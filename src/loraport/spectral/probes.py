"""What the drift's parts do, tested by taking or disturbing them: the models of the paper's appendix B.2.

The appendix is published without code; where its text leaves a choice, the docstring says ours.
"""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.spectral.arbitration import dominant_directions
from loraport.spectral.routing import observe
from loraport.spectral.svd import SingularBasis
from loraport.spectral.taken import Taken


def removed_by_dominance(
    D_fft: Float[Tensor, "out in"], basis: SingularBasis, labels: Int[Tensor, " n"], *, q: float
) -> Float[Tensor, "out in"]:
    """What the keep-dominant model lacks: the drift outside of its dominant rows and columns (Eq. 17–22).

    Densities of the drift per cluster (17), dominance at or above their q quantile, as receiver and as sender (18–19),
    the mask of both (20), and W = W_s + U·(mask ∘ C_fft)·Vᵀ (21–22), written as W_t less what is returned here.
    All n directions take part, not only the k leading ones, and a tall or wide layer's complement goes with its column
    or row: so q = 0 removes nothing and the target comes back exactly. Kept and removed part are orthogonal.
    """
    if D_fft.shape[0] < D_fft.shape[1]:
        return removed_by_dominance(D_fft.mT, basis.transposed(), labels, q=q).mT
    drift = observe(D_fft, basis)
    senders = dominant_directions(drift.send, labels, q_dom=q)
    receivers = dominant_directions(drift.receive, labels, q_dom=q)
    return Taken(D_fft, basis, drift, receivers, senders, restore=1.0).dense()


def over_activated(
    D_fft: Float[Tensor, "out in"],
    basis: SingularBasis,
    *,
    top: float,
    mean: float,
    variance: float,
    generator: torch.Generator,
) -> Float[Tensor, "out in"]:
    """What the over-activation probe adds to the target: U·[K ∘ (G − 1) ∘ C_fft]·Vᵀ, K the strongest routing entries.

    The `top` share of the entries of C_fft by size is multiplied by independent factors G ~ N(mean, variance); the
    appendix names share, mean and variance, that they multiply single entries is our reading. top = 0, or mean = 1 with
    variance = 0, adds nothing. The generator lives on the CPU, so that every device draws the same.
    """
    C = basis.U.mT @ (D_fft @ basis.Vh.mT)
    count = int(top * C.numel())
    places = C.abs().flatten().topk(count).indices
    factors = mean + variance**0.5 * torch.randn(count, generator=generator, dtype=torch.float64).to(C)
    added = torch.zeros_like(C).flatten()
    added[places] = (factors - 1) * C.flatten()[places]
    return basis.U @ added.view_as(C) @ basis.Vh
