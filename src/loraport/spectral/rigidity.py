"""How little an update moves a weight's spectrum, and how well the file fixes its singular vectors at all."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor

MANTISSA_BITS = {torch.float64: 52, torch.float32: 23, torch.float16: 10, torch.bfloat16: 7}
"""Stored bits of the fraction; a number in [2^e, 2^(e+1)) has neighbours 2^(e − bits) apart."""

SUBNORMAL_EXPONENTS = {torch.float64: -1022, torch.float32: -126, torch.float16: -14, torch.bfloat16: -126}
"""The smallest e of a normal number; below it the neighbours stay as far apart."""


def spectral_change(S: Float[Tensor, " n"], S_after: Float[Tensor, " n"]) -> float:
    """Relative change of the spectrum (Eq. 1): ρ₂ = ‖S' − S‖₂ / ‖S‖₂, both in descending order; 0 for a zero weight.

    By Mirsky's theorem ρ₂ ≤ ‖D‖_F / ‖W‖_F: a small ρ₂ means rigidity only where it is small beside that bound.
    """
    size = float(torch.linalg.vector_norm(S.double()))
    change = float(torch.linalg.vector_norm(S_after.double() - S.double()))
    return change / size if size else 0.0


def relative_gaps(S: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
    """Distance of a singular value to its nearest neighbour, as a share of itself; ∞ for a lone one, 0 for a zero."""
    exact = S.double()
    steps = (exact[:-1] - exact[1:]).abs()
    edge = torch.full((1,), torch.inf, dtype=steps.dtype, device=S.device)
    nearest = torch.minimum(torch.cat([edge, steps]), torch.cat([steps, edge]))
    return torch.where(exact > 0, nearest / exact, 0.0).to(S.dtype)


def degenerate(S: Float[Tensor, " n"], *, gap: float = 1e-3) -> Bool[Tensor, " n"]:
    """Directions whose relative gap is below the given one: single vectors that another machine may turn freely."""
    return relative_gaps(S) < gap


def rounding_floor(W: Float[Tensor, "out in"], dtype: torch.dtype) -> float | None:
    """The relative size ‖ε‖ / ‖W‖ that rounding to a stored dtype alone would have; None for a dtype of another kind.

    ε² = ulp² / 12 on average, ulp the distance of a number's neighbours in that dtype. Weights that are stored in it
    already count the same: what they were before is not known. Two files' floors add as squares.
    """
    if dtype not in MANTISSA_BITS:
        return None
    size = float(torch.linalg.vector_norm(W.double()))
    exponents = (torch.frexp(W.double()).exponent - 1).clamp(min=SUBNORMAL_EXPONENTS[dtype])
    ulp = torch.exp2((exponents - MANTISSA_BITS[dtype]).double())
    return float((ulp.square().sum() / 12).sqrt()) / size if size else 0.0
