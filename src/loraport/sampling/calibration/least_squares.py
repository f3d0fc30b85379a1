"""The least-squares problem of readout: a ridge regression behind linear maps, and its truncation. Tensors only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.spectral.low_rank import LowRank

ITERATIONS = 60
"""Of conjugate gradients. On a layer of the lab's family E is then 4 % from its limit, the loss 0.04 % of the gain."""
TOLERANCE = 1e-12
"""Relative residual at which the iterations end."""
FLOOR = 1e-10
"""Eigenvalues of C below this share of the largest are rounding: no input has their direction."""


@dataclass(frozen=True)
class Term:
    """One evaluation's part of the sum: its weight, its map to the output, and moments of inputs and residuals."""

    weight: float
    M: Float[Tensor, "p out"]
    C: Float[Tensor, "in in"]
    """Σ ã·ãᵀ"""
    R: Float[Tensor, "p in"]
    """Σ r·ãᵀ"""


def ridge_strength(terms: Sequence[Term], share: float) -> float:
    """Return λ = share · Σ_j w_j² · mean(diag M_jᵀM_j) · mean(diag C_j)."""
    return share * sum(
        term.weight**2 * float(term.M.square().sum(0).mean()) * float(term.C.diagonal().mean()) for term in terms
    )


def solve(terms: Sequence[Term], ridge: float, iterations: int = ITERATIONS) -> Float[Tensor, "out in"]:
    """Return the E that minimises Σ_j w_j² Σ ‖M_j·E·ã − r_j‖² + λ·‖E‖².

    Solves the normal equations Σ_j w_j²·M_jᵀM_j·E·C_j + λ·E = Σ_j w_j²·M_jᵀ·R_j by conjugate gradients.
    """
    squares = [(term.weight**2, term.M.mT @ term.M, term.C) for term in terms]
    right: Tensor = sum((term.weight**2 * term.M.mT @ term.R for term in terms), torch.tensor(0.0))

    def normal(E: Tensor) -> Tensor:
        return sum((weight * MM @ E @ C for weight, MM, C in squares), ridge * E)

    return _conjugate_gradients(normal, right, iterations)


def _conjugate_gradients(normal: Callable[[Tensor], Tensor], right: Tensor, iterations: int) -> Tensor:
    # by hand: the unknown is a matrix on any device, and scipy's takes vectors of numpy; with several terms there is no
    # direct solution, since the sum of products M_jᵀM_j ⊗ C_j has no common eigenvectors
    E = torch.zeros_like(right)
    residual, direction = right.clone(), right.clone()
    size = first = float(residual.square().sum())
    for _ in range(iterations):
        if size <= TOLERANCE**2 * first or size == 0:
            break
        image = normal(direction)
        step = size / float((direction * image).sum())
        E += step * direction
        residual -= step * image
        size, before = float(residual.square().sum()), size
        direction = residual + (size / before) * direction
    return E


def truncated(E: Float[Tensor, "out in"], C: Float[Tensor, "in in"], rank: int) -> LowRank:
    """Return the rank-r matrix nearest to E on these inputs: ‖(E − E_r)·L‖ is least, C = L·Lᵀ.

    E·L = U·S·Vhᵀ, E_r = U_r · S_r·Vh_r·L⁺, with L = Q·Λ^½ from C's eigenvectors. Directions that no input has are left
    out: E_r is zero there.
    """
    values, Q = torch.linalg.eigh(C)
    present = values > FLOOR * values[-1]  # eigh sorts upwards: the last is the largest
    root = values[present].sqrt()
    U, S, Vh = torch.linalg.svd((E @ Q[:, present]) * root, full_matrices=False)
    half = S[:rank].sqrt()  # half of each singular value in either factor, so that both have one size
    return LowRank(U[:, :rank] * half, half[:, None] * (Vh[:rank] / root) @ Q[:, present].mT)
