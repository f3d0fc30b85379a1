"""How an update turns singular vectors into each other: |UᵀU'|, the clusters it shows, and how clusterings agree."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from loraport.spectral.basis import Basis
from loraport.spectral.clusters import connected_labels

MIXED = 0.2
"""Cosine above which two directions count as mixed (the paper's footnote 1)."""


def mixing(X: Float[Tensor, "rows n"], X_after: Float[Tensor, "rows m"]) -> Float[Tensor, "n m"]:
    """Return |cosine| of each direction before (row) with each one after (column): |XᵀX'|; signs are arbitrary."""
    return (X.mT @ X_after).abs()


def windows(n: int, width: int) -> dict[str, slice]:
    """Return head, middle and tail windows of equal width, at most the whole: first, central and last directions."""
    width = min(width, n)
    middle = (n - width) // 2
    return {"head": slice(0, width), "middle": slice(middle, middle + width), "tail": slice(n - width, n)}


def kept_directions(basis: Basis, after: Basis) -> Float[Tensor, " n"]:
    """Return |cosine| of each direction with the one of the same rank after, the mean of left and right.

    1 where nothing turns; small in the tail of any full-rank update, since neighbours there lie closer than it reaches.
    """
    left = (basis.U * after.U).sum(dim=0).abs()
    right = (basis.Vh * after.Vh).sum(dim=1).abs()
    return (left + right) / 2


def observed_clusters(basis: Basis, after: Basis, k: int, *, mixed: float = MIXED) -> Int[Tensor, " k"]:
    """Return the clusters by observed mixing among the k leading directions (footnote 1).

    i and j are connected where |u_iᵀu'_j| or |v_iᵀv'_j| exceeds 0.2, in either order; clusters are the connected
    components, numbered by their first member. The footnote names the cosine and the threshold; that either side
    suffices is our choice.
    """
    left = mixing(basis.U[:, :k], after.U[:, :k]) > mixed
    right = mixing(basis.Vh[:k].mT, after.Vh[:k].mT) > mixed
    linked = left | right
    return connected_labels(linked)


def adjusted_rand_index(labels: Int[Tensor, " k"], others: Int[Tensor, " k"]) -> float:
    """Return the agreement of two clusterings (Hubert & Arabie 1985): 1 the same, 0 what chance gives at these sizes.

    ARI = (Σ C(n_ij, 2) − expected) / (½(Σ C(a_i, 2) + Σ C(b_j, 2)) − expected). Two clusterings that leave nothing to
    chance, all in one cluster or each alone in both, agree by 1.
    """
    # by hand: scikit-learn, which has it, would be a dependency for these lines alone
    a, b = labels.cpu().numpy(), others.cpu().numpy()
    together = np.zeros((a.max() + 1, b.max() + 1))
    np.add.at(together, (a, b), 1)
    pairs, rows, columns = (float((x * (x - 1) / 2).sum()) for x in (together, together.sum(1), together.sum(0)))
    expected = rows * columns / max(len(a) * (len(a) - 1) / 2, 1)
    largest = (rows + columns) / 2
    return (pairs - expected) / (largest - expected) if largest != expected else 1.0
