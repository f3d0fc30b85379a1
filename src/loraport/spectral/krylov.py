"""Leading singular directions by block Krylov iteration (Musco & Musco 2015), with Lanczos' orthogonal blocks.

One block of columns is multiplied by the operator again and again; the best answer inside the space of all of them is
taken. Every draw comes from the caller's generator, which lives on the CPU, so that every device draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import InputError
from loraport.spectral.basis import SingularBasis, decompose
from loraport.spectral.kernels import at_usual_scale, times_few

KRYLOV_STEPS = 4
"""Most powers of DᵀD in the Krylov space: 4 after a first product with Dᵀ make polynomials in D of degree 2·4 + 1 = 9,
more accurate than six power iterations."""

SETTLED = 1e-4
"""Share by which the energy of the leading directions must grow for the iteration to go on."""

INDEPENDENT = 1e-6
"""Least share of a column outside of the span of those before it for which Cholesky's way is taken."""

OVERSAMPLING = 16
"""Columns in the block beyond the rank (Halko, Martinsson & Tropp 2011 advise 5 to 10)."""


def leading_basis(D: Float[Tensor, "out in"], rank: int, *, generator: torch.Generator) -> SingularBasis:
    """Return a singular basis whose first `rank` directions are the leading ones of D.

    Exact where the Krylov space would span half of the matrix or more, and then with all directions of D. Raises
    InputError for NaN or infinite entries.
    """
    if is_small(D.shape, rank):
        return decompose(D)
    if not at_usual_scale(D):
        if not torch.isfinite(D).all():
            raise InputError("the update holds NaN or infinite values; use undamaged files")
        # DᵀD would vanish or overflow: the same at the scale of one, by a power of two, which rounds nothing.
        exponent = torch.frexp(D.abs().max()).exponent
        scaled = leading_basis(torch.ldexp(D, -exponent), rank, generator=generator)
        return replace(scaled, S=torch.ldexp(scaled.S, exponent))
    if D.shape[0] < D.shape[1]:
        return leading_basis(D.mT, rank, generator=generator).transposed()
    drawn = torch.randn(len(D), rank + OVERSAMPLING, generator=generator, dtype=D.dtype).to(D.device)
    # The block begins at Dᵀ·(random) rather than at random: half a power of DᵀD more for one product.
    X = leading_eigenvectors(lambda Y: times_few(D.mT, times_few(D, Y)), times_few(D.mT, drawn), rank)
    inside = decompose(times_few(D, X))
    return SingularBasis(inside.U, inside.S, inside.Vh @ X.mT)


def with_random_columns(known: Float[Tensor, "n r"], rank: int, *, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """Return a first block for `rank` directions: columns known to be near them, and random ones to find the others."""
    count = max(OVERSAMPLING, rank + OVERSAMPLING - known.shape[1])
    drawn = torch.randn(len(known), count, generator=generator, dtype=known.dtype).to(known.device)
    return torch.cat([known, drawn], dim=1)


def leading_eigenvectors(
    gram: Callable[[Float[Tensor, "n m"]], Float[Tensor, "n m"]], block: Float[Tensor, "n m"], rank: int
) -> Float[Tensor, "n k"]:
    """Return the leading eigenvectors of a symmetric operator, by block Lanczos iteration from the columns of a block.

    `gram` is DᵀD for the matrix whose right singular directions are wanted.
    """
    Q = _orthonormal_columns(block)
    images = gram(Q)
    width, energy = Q.shape[1], 0.0
    for step in range(KRYLOV_STEPS):
        before, energy = energy, _leading_energy(Q.mT @ images, rank)
        # The last step is often not worth its products: a LoRA's own directions stand far above the drift's.
        if step > 0 and energy - before <= SETTLED * energy:
            break
        new = images[:, -width:]
        for _ in range(2):
            # Against all earlier blocks, not the last two as in exact arithmetic: what a block has converged to comes
            # back as rounding noise otherwise. And twice: the first subtraction cancels, and leaves few digits.
            new = _orthonormal_columns(new - Q @ (Q.mT @ new))
        Q, images = torch.cat([Q, new], dim=1), torch.cat([images, gram(new)], dim=1)
    _, vectors = torch.linalg.eigh(_symmetric(Q.mT @ images))
    return Q @ vectors[:, -rank:].flip(1).to(Q.dtype)


def is_small(shape: tuple[int, ...], rank: int) -> bool:
    """Tell whether a Krylov space would span half of the matrix or more, so that an exact SVD costs no more."""
    return (KRYLOV_STEPS + 1) * (rank + OVERSAMPLING) >= min(shape) // 2


def _leading_energy(small: Float[Tensor, "m m"], rank: int) -> float:
    """Return the sum of the leading eigenvalues; without their vectors, which cost three times as much."""
    return float(torch.linalg.eigvalsh(_symmetric(small))[-rank:].sum())


def _symmetric(small: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """Return what rounding left of a symmetric matrix, in double precision."""
    return (small + small.mT).double() / 2


def _orthonormal_columns(X: Float[Tensor, "rows n"]) -> Float[Tensor, "rows n"]:
    """Return X·R⁻¹ for the upper triangular R with a positive diagonal that makes the columns orthonormal.

    By Cholesky's factor of XᵀX in double precision, where the columns, brought to unit length, are independent enough:
    a few products, where Householder's reflections go through the columns one by one, which keeps a card waiting.
    """
    sizes = X.norm(dim=0).clamp(min=torch.finfo(X.dtype).tiny)
    unit = (X / sizes).double()
    L, failed = torch.linalg.cholesky_ex(unit.mT @ unit)
    # Below that share of a column is in the span of those before it, and what is left of it has lost half its digits.
    if not bool(failed) and bool(L.diagonal().min() > INDEPENDENT):
        return torch.linalg.solve_triangular(L, unit.mT, upper=False).mT.to(X.dtype)
    Q, R = torch.linalg.qr(X)
    # A sign of LAPACK's choice is undone, so that every machine gives the same columns.
    signs: Tensor = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    return Q * signs
