"""Leading singular directions by block Krylov iteration (Musco & Musco 2015), with Lanczos' orthogonal blocks.

One block of columns is multiplied by the operator again and again; the best answer inside the space of all of them is
taken. Every draw comes from the caller's generator, which lives on the CPU, so that every device draws the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from loraport.errors import InputError
from loraport.spectral.basis import SingularBasis, decompose
from loraport.spectral.kernels import at_usual_scale, is_on_card, times_few

KRYLOV_STEPS = 4
"""Most powers of DᵀD in the Krylov space: 4 after a first product with Dᵀ make polynomials in D of degree 2·4 + 1 = 9,
more accurate than six power iterations."""

SETTLED = 1e-4
"""Share by which the energy of the leading directions must grow for the iteration to go on, on a processor. A card
takes all steps: they cost it less than to wait for the answer."""

INDEPENDENT = 1e-6
"""Least share of a column outside of the span of those before it for which Cholesky's way is taken."""

OVERSAMPLING = 16
"""Columns in the block beyond the rank (Halko, Martinsson & Tropp 2011 advise 5 to 10)."""


Orthonormal = Callable[[Float[Tensor, "rows n"]], tuple[Float[Tensor, "rows n"], Bool[Tensor, ""]]]
"""Makes columns orthonormal, and says whether it could."""


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
    X = leading_eigenvectors(lambda Y: times_few(D.mT, times_few(D, Y)), times_few(D.mT, drawn), rank).vectors
    inside = decompose(times_few(D, X))
    return SingularBasis(inside.U, inside.S, inside.Vh @ X.mT)


def with_random_columns(known: Float[Tensor, "n r"], rank: int, *, generator: torch.Generator) -> Float[Tensor, "n m"]:
    """Return a first block for `rank` directions: columns known to be near them, and random ones to find the others.

    Known columns of zeros, as of a LoRA that does nothing, give way to unit vectors, which look for others as well.
    """
    count = max(OVERSAMPLING, rank + OVERSAMPLING - known.shape[1])
    drawn = torch.randn(len(known), count, generator=generator, dtype=known.dtype).to(known.device)
    known = torch.where(known.any(dim=0), known, torch.eye(*known.shape, dtype=known.dtype, device=known.device))
    return torch.cat([known, drawn], dim=1)


class Eigenvectors(NamedTuple):
    """The leading eigenvectors of an operator, and what else it gives of them."""

    vectors: Float[Tensor, "n k"]
    beside: Float[Tensor, "l k"]


def leading_eigenvectors(
    gram: Callable[[Float[Tensor, "n m"]], Float[Tensor, "n+l m"]], block: Float[Tensor, "n m"], rank: int
) -> Eigenvectors:
    """Return the leading eigenvectors of a symmetric operator, by block Lanczos iteration from the columns of a block.

    `gram` gives DᵀD·X for the matrix D whose right singular directions are wanted. Below it may stand other products
    with X: those with the eigenvectors are combinations of them, and come `beside`.
    """
    found, sound = _lanczos(gram, block, rank, _by_cholesky)
    # Asked once, at the end: a card would be waited for at every block. Dependent columns are rare.
    return found if bool(sound) else _lanczos(gram, block, rank, _by_reflections)[0]


def _lanczos(
    gram: Callable[[Tensor], Tensor], block: Float[Tensor, "n m"], rank: int, orthonormal: Orthonormal
) -> tuple[Eigenvectors, Bool[Tensor, ""]]:
    """Return the eigenvectors, and whether the columns of all blocks were made orthonormal."""
    Q, sound = orthonormal(block)
    images, (n, width) = gram(Q), Q.shape
    energy, steps = 0.0, min(KRYLOV_STEPS, n // width - 1)
    for step in range(steps + 1):
        if step > 0:
            new = images[:n, -width:]
            for _ in range(2):
                # Against all earlier blocks, not the last two as in exact arithmetic: what a block has converged to
                # comes back as rounding noise otherwise. And twice: the first time cancels, and leaves few digits.
                new, independent = orthonormal(new - Q @ (Q.mT @ new))
                sound = sound & independent
            Q, images = torch.cat([Q, new], dim=1), torch.cat([images, gram(new)], dim=1)
        if step < steps and is_on_card(Q):
            continue
        values, vectors = torch.linalg.eigh(_symmetric(Q.mT @ images[:n]))
        if step < steps:
            before, energy = energy, float(values[-rank:].sum())
            # The last step is often not worth its products: a LoRA's own directions stand far above the drift's.
            if step > 0 and energy - before <= SETTLED * energy:
                break
    leading = vectors[:, -rank:].flip(1).to(Q.dtype)
    return Eigenvectors(Q @ leading, images[n:] @ leading), sound


def is_small(shape: tuple[int, ...], rank: int) -> bool:
    """Tell whether a Krylov space would span half of the matrix or more, so that an exact SVD costs no more."""
    return (KRYLOV_STEPS + 1) * (rank + OVERSAMPLING) >= min(shape) // 2


def _symmetric(small: Float[Tensor, "m m"]) -> Float[Tensor, "m m"]:
    """Return what rounding left of a symmetric matrix, in double precision."""
    return (small + small.mT).double() / 2


def _by_cholesky(X: Float[Tensor, "rows n"]) -> tuple[Float[Tensor, "rows n"], Bool[Tensor, ""]]:
    """Return X·R⁻¹ for the upper triangular R with a positive diagonal that makes the columns orthonormal.

    By Cholesky's factor of XᵀX in double precision, of columns brought to unit length: a few products, where
    Householder's reflections go through the columns one by one, which keeps a card waiting. Also returned is whether
    the columns were independent enough for that; else they stay as they are. Columns of zeros stay zero.
    """
    unit = (X / X.norm(dim=0).clamp(min=torch.finfo(X.dtype).tiny)).double()
    gram = unit.mT @ unit
    L, failed = torch.linalg.cholesky_ex(gram + (gram.diagonal() == 0).double().diag())
    # Below that share of a column is in the span of those before it, and what is left of it has lost half its digits.
    independent = (failed == 0) & (L.diagonal().min() > INDEPENDENT)
    Q = torch.linalg.solve_triangular(L, unit.mT, upper=False).mT.to(X.dtype)
    return torch.where(independent, Q, X), independent


def _by_reflections(X: Float[Tensor, "rows n"]) -> tuple[Float[Tensor, "rows n"], Bool[Tensor, ""]]:
    """Return the same for any columns: of dependent ones all but one give way to other directions."""
    Q, R = torch.linalg.qr(X)
    # A sign of LAPACK's choice is undone, so that every machine gives the same columns.
    signs: Tensor = torch.where(R.diagonal() < 0, -1.0, 1.0).to(Q.dtype)
    return Q * signs, torch.ones((), dtype=torch.bool, device=X.device)
