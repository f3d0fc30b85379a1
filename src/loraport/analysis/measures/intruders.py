"""Intruder dimensions (Shuttleworth et al., arXiv 2410.21228): leading directions unlike any before the update."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

LEADING, UNLIKE = 10, 0.5
"""Directions that are tested, and the cosine below which one is an intruder: the defaults of the authors' script."""


@dataclass(frozen=True)
class Intruders:
    """What the test of one side of a weight found."""

    count: int
    energy: float
    """Share of the tested directions' energy ΣS² that intruders hold; a count saturates, this does not."""
    similarity: Float[Tensor, " l"]
    """Largest |cosine| of each tested direction with any direction before."""
    inside: Float[Tensor, " l"]
    """Share of each tested direction inside the span of the k leading ones before: low only if the direction is new."""


def intruders(
    X: Float[Tensor, "rows n"],
    X_after: Float[Tensor, "rows n"],
    S_after: Float[Tensor, " n"],
    k: int,
    *,
    leading: int = LEADING,
    unlike: float = UNLIKE,
) -> Intruders:
    """Return the leading directions y_j after with max_i |cos(y_j, x_i)| < unlike over all directions x_i before.

    A square weight spans everything, so the label means "spread over many directions", not "outside": rotation inside a
    plateau of q equal singular values scores 1/√q and is counted too. `inside` tells the two apart:
    inside_j = ‖X_kᵀ·y_j‖² is 1 for any rotation among the k leading directions.
    """
    tested = X_after[:, :leading]
    similarity = (X.mT @ tested).abs().amax(dim=0)
    inside = (X[:, :k].mT @ tested).square().sum(dim=0).clamp(max=1)
    energy = S_after[:leading].double().square()
    is_intruder = similarity < unlike
    total = float(energy.sum())
    share = float(energy[is_intruder].sum()) / total if total else 0.0
    return Intruders(int(is_intruder.sum()), share, similarity, inside)
