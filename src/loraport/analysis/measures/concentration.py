"""Where an update's routing energy sits: per cluster, per block, how unevenly, and how alike a cluster's members route.

Everything is written for senders, the columns of C; receivers are the senders of Cᵀ.
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from loraport.spectral.routing import block_sums


def cluster_energy(strength: Float[Tensor, " n"], labels: Int[Tensor, " k"]) -> Float[Tensor, " m"]:
    """Return each cluster's energy as sender (or receiver): the sum of its members' squared strengths, in float64."""
    sizes = torch.bincount(labels)
    squares = strength[: len(labels)].double().square()
    return torch.zeros(len(sizes), dtype=torch.float64, device=strength.device).index_add_(0, labels, squares)


def rms_energy(strength: Float[Tensor, " n"], labels: Int[Tensor, " k"]) -> Float[Tensor, " m"]:
    """Return the RMS strength of each cluster's members over that of all k (paper §3.3): 1 everywhere means even.

    E(m) = √(mean_{i∈m} strength_i²) / √(mean_{i≤k} strength_i²). By what the paper normalises is not on record; the
    layer's own RMS makes a LoRA and a drift of any size comparable. 1 for an update that is zero here.
    """
    sizes = torch.bincount(labels).double()
    energy = cluster_energy(strength, labels)
    total = energy.sum()
    if total == 0:
        return torch.ones_like(energy)
    return ((energy / sizes) / (total / len(labels))).sqrt()


def block_energy(C: Float[Tensor, "k k"], labels: Int[Tensor, " k"]) -> Float[Tensor, "m m"]:
    """Return the RMS entry of each block (receiving, sending cluster) over that of the whole; 1 means even."""
    sizes = torch.bincount(labels).double()
    squares = block_sums(C.square(), labels)
    total = squares.sum()
    if total == 0:
        return torch.ones_like(squares)
    return ((squares / sizes[:, None] / sizes[None, :]) / (total / C.numel())).sqrt()


def gini(values: Float[Tensor, " m"]) -> float:
    """Return the Gini coefficient of non-negative values: 0 where all are equal, towards 1 where one holds everything.

    G = Σ_i (2i − m − 1)·x_i / (m·Σx), x ascending; 0 for nothing.
    """
    # by hand: neither scipy nor torch has it
    x = values.double().sort().values
    m, total = len(x), float(x.sum())
    places = 2 * torch.arange(1, m + 1, dtype=torch.float64, device=x.device) - m - 1
    return float((places * x).sum()) / (m * total) if total else 0.0


def top_share(energy: Float[Tensor, " m"], share: float = 0.1) -> float:
    """Return the share of the energy in the strongest tenth of the clusters (at least one); 0 for nothing."""
    count = max(1, math.ceil(share * len(energy)))
    total = float(energy.sum())
    return float(energy.sort(descending=True).values[:count].sum()) / total if total else 0.0


def pattern_coherence(C: Float[Tensor, "n k"], labels: Int[Tensor, " k"]) -> Float[Tensor, " m"]:
    """Return how alike a cluster's members route: the mean |cosine| of their columns; NaN for single members.

    The paper defines its pattern coherence only by name. We take the columns of C with their signs and the cosine
    without: joint sign flips of (u_i, v_i) must not matter. Compare with `chance_coherence`.
    """
    sizes = torch.bincount(labels).double()
    inner = block_sums(_cosines(C), labels).diagonal()
    own = torch.zeros_like(sizes).index_add_(0, labels, (torch.linalg.vector_norm(C, dim=0) > 0).double())
    return torch.where(sizes > 1, (inner - own) / (sizes * (sizes - 1)), torch.nan)


def chance_coherence(C: Float[Tensor, "n k"]) -> float:
    """Return the mean |cosine| over all pairs of the k columns, as a random cluster shows it; NaN for one column."""
    return float(pattern_coherence(C, torch.zeros(C.shape[1], dtype=torch.long, device=C.device))[0])


def variation(strength: Float[Tensor, " n"], labels: Int[Tensor, " k"]) -> Float[Tensor, " m"]:
    """Return standard deviation over mean of the members' strengths, for each cluster; NaN for single members.

    0 where all members of a cluster send alike; the deviation is that of the cluster itself, not a sample's.
    """
    sizes = torch.bincount(labels).double()
    x = strength[: len(labels)].double()
    mean = torch.zeros_like(sizes).index_add_(0, labels, x) / sizes
    spread = torch.zeros_like(sizes).index_add_(0, labels, (x - mean[labels]).square()) / sizes
    return torch.where(sizes > 1, spread.sqrt() / mean, torch.nan)


def _cosines(C: Float[Tensor, "n k"]) -> Float[Tensor, "k k"]:
    """Return |cosine| of every pair of columns; 0 with a zero column."""
    unit = torch.nn.functional.normalize(C.double(), dim=0, eps=1e-300)
    return (unit.mT @ unit).abs()
