"""How little an update moves a weight's spectrum, and which singular vectors are fixed well enough to see."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def spectral_change(S: Float[Tensor, " n"], S_after: Float[Tensor, " n"]) -> float:
    """Return the relative change of the spectrum (Eq. 1): ρ₂ = ‖S' − S‖₂ / ‖S‖₂, both descending; 0 for a zero weight.

    By Mirsky's theorem ρ₂ ≤ ‖D‖_F / ‖W‖_F: a small ρ₂ means rigidity only where it is small beside that bound.
    """
    size = float(torch.linalg.vector_norm(S.double()))
    change = float(torch.linalg.vector_norm(S_after.double() - S.double()))
    return change / size if size else 0.0


def relative_gaps(S: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Return each singular value's distance to its nearest neighbour over itself; ∞ for a lone one, 0 for a zero."""
    exact = S.double()
    steps = (exact[:-1] - exact[1:]).abs()
    edge = torch.full((1,), torch.inf, dtype=steps.dtype, device=S.device)
    nearest = torch.minimum(torch.cat([edge, steps]), torch.cat([steps, edge]))
    return torch.where(exact > 0, nearest / exact, 0.0).to(S.dtype)


def degenerate(S: Float[Tensor, " n"], *, gap: float = 1e-3) -> Bool[Tensor, " n"]:
    """Return the directions whose relative gap is below the given one: another machine may turn these freely."""
    return relative_gaps(S) < gap
