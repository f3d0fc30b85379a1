"""Test what the drift's parts do by keeping some or disturbing some: the models of the paper's appendix B.2.

The appendix is published without code; where its text leaves a choice, the docstring says ours.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.spectral.arbitration import dominant_directions, dominant_mask
from loraport.spectral.basis import Basis
from loraport.spectral.correction import Removal
from loraport.spectral.routing import block_sums, observe


def leading_routing(D_fft: Float[Tensor, "out in"], basis: Basis, k: int) -> Float[Tensor, "k k"]:
    """Return C_fft among the k leading directions: U_kᵀ·D·V_k."""
    return basis.U[:, :k].mT @ (D_fft @ basis.Vh[:k].mT)


def dominant_drift(
    D_fft: Float[Tensor, "out in"], basis: Basis, labels: Int[Tensor, " k"], *, q: float
) -> Float[Tensor, "out in"]:
    """Return the drift that the keep-dominant model has: U_k·(mask ∘ C_fft)·V_kᵀ (Eq. 17–22).

    The k leading directions hold 90 % of the energy and are clustered by `labels`. Densities of the drift per cluster
    (17), dominance at or above their q quantile, as receiver and as sender (18–19), the mask of both (20), and
    W = W_s + what is returned here (21–22). Drift beyond the k × k block is not kept at any q: at q = 0 the model is
    the target projected onto its leading directions, not the target itself.
    """
    k = len(labels)
    C = leading_routing(D_fft, basis, k)
    dominant_senders = dominant_directions(C.norm(dim=0), labels, q_dom=q)
    dominant_receivers = dominant_directions(C.norm(dim=1), labels, q_dom=q)
    return basis.U[:, :k] @ (C * dominant_mask(dominant_receivers, dominant_senders)) @ basis.Vh[:k]


def removed_by_dominance(
    D_fft: Float[Tensor, "out in"], basis: Basis, labels: Int[Tensor, " n"], *, q: float
) -> Float[Tensor, "out in"]:
    """Return what our variant of the keep-dominant model lacks: the drift outside of its dominant rows and columns.

    Here all n directions take part, not only the k leading ones, and a tall or wide layer's complement goes with its
    column or row: so q = 0 removes nothing and the target comes back exactly. Kept and removed part are orthogonal.
    """
    if D_fft.shape[0] < D_fft.shape[1]:
        return removed_by_dominance(D_fft.mT, basis.transposed(), labels, q=q).mT
    drift_routing = observe(D_fft, basis)
    dominant_senders = dominant_directions(drift_routing.send, labels, q_dom=q)
    dominant_receivers = dominant_directions(drift_routing.receive, labels, q_dom=q)
    return Removal(D_fft, basis, drift_routing, dominant_receivers, dominant_senders, restore=1.0).dense()


def densest_blocks(C: Float[Tensor, "k k"], labels: Int[Tensor, " k"], *, top: float) -> Bool[Tensor, "m m"]:
    """Mark the `top` share of blocks (receiving cluster, sending cluster) by density, at least one unless top is 0.

    A block's density is its Frobenius norm over its size, the number of its entries.
    """
    sizes = torch.bincount(labels).double()
    density = block_sums(C.square(), labels).sqrt() / (sizes[:, None] * sizes[None, :])
    # Rounded first, so that a share like 0.05 of 400 blocks is 20 and not 21.
    count = math.ceil(round(top * density.numel(), 9))
    marked = torch.zeros(density.numel(), dtype=torch.bool, device=C.device)
    marked[density.flatten().argsort(descending=True, stable=True)[:count]] = True
    return marked.view_as(density)


def block_noise(
    D_fft: Float[Tensor, "out in"],
    basis: Basis,
    labels: Int[Tensor, " k"],
    *,
    top: float,
    mean: float,
    variance: float,
    scaled: bool,
    generator: torch.Generator,
) -> Float[Tensor, "out in"]:
    """Return what the over-activation probe adds to the target: U_k·(noise in the densest blocks)·V_kᵀ (B.2.2).

    Every entry of the chosen blocks gets independent noise from N(mean, variance), all others none. The appendix prints
    N(2, 5) and no unit: taken literally that is far more than the drift in most layers. `scaled` counts it in units of
    the block's own RMS entry (ours). The generator lives on the CPU, so that every device draws the same.
    """
    k = len(labels)
    C = leading_routing(D_fft, basis, k)
    blocks = densest_blocks(C, labels, top=top)
    unit = blocks.double()
    if scaled:
        sizes = torch.bincount(labels).double()
        unit = unit * (block_sums(C.square(), labels) / (sizes[:, None] * sizes[None, :])).sqrt()
    noise = mean + variance**0.5 * torch.randn(k, k, generator=generator, dtype=torch.float64)
    added = unit[labels][:, labels].to(C.dtype) * noise.to(C)
    return basis.U[:, :k] @ added @ basis.Vh[:k]


def multiplied_entries(
    D_fft: Float[Tensor, "out in"],
    basis: Basis,
    *,
    top: float,
    mean: float,
    variance: float,
    generator: torch.Generator,
) -> Float[Tensor, "out in"]:
    """Return what our variant of the over-activation probe adds: U·[K ∘ (G − 1) ∘ C_fft]·Vᵀ, K the strongest entries.

    No clusters: the `top` share of the single entries of C_fft by size is multiplied by independent factors
    G ~ N(mean, variance). top = 0, or mean = 1 with variance = 0, adds nothing.
    """
    C = leading_routing(D_fft, basis, len(basis.S))
    count = int(top * C.numel())
    places = C.abs().flatten().topk(count).indices
    factors = mean + variance**0.5 * torch.randn(count, generator=generator, dtype=torch.float64).to(C)
    added = torch.zeros_like(C).flatten()
    added[places] = (factors - 1) * C.flatten()[places]
    return basis.U @ added.view_as(C) @ basis.Vh
