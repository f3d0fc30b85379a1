"""A layer whose inputs lie on a curve over time: how one parametrisation of that input follows from another.

MiniMax-H3's modulation sees u(t) = SiLU(MLP(t)) and nothing else, a smooth curve. A pruned model has the coordinates
T(t) of that curve in its place, with u ≈ T·V + μ; a model of reduced rank has Vᵀ·u. A LoRA of factors B and A on inputs
x adds B·A·x(t). On other inputs y of the same times it adds the same with A·M, and the constant B·A·c beside it, where
x(t) = M·y(t) + c for all t. M and c are least squares over times, so every pair of parametrisations is one case.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import silu

NOISE = 2.0**-24
"""Rounding of float32, in which tables and factors are kept."""


def time_curve(
    W1: Float[Tensor, "hidden freq"],
    b1: Float[Tensor, " hidden"],
    W2: Float[Tensor, "inn hidden"],
    b2: Float[Tensor, " inn"],
    times: Float[Tensor, " times"],
) -> Float[Tensor, "times inn"]:
    """Return u(t) = SiLU(W2·SiLU(W1·e(t) + b1) + b2) in float64; e(t) are cosines and sines of t in [0, 1]."""
    half = W1.shape[1] // 2
    angles = times.double()[:, None] * torch.exp(-math.log(1e4) * torch.arange(half, dtype=torch.float64) / half)
    e = torch.cat([angles.cos(), angles.sin()], dim=1)
    h = silu(e @ W1.double().mT + b1.double())
    return silu(h @ W2.double().mT + b2.double())


@dataclass(frozen=True)
class AffineMap:
    """x ≈ M·y + c over the times, for inputs x and y of the same layer."""

    M: Float[Tensor, "x y"]
    c: Float[Tensor, " x"]
    error: float
    """‖M·y + c − x‖ / ‖x‖ over all times."""
    least: float
    """The least that any map from so many numbers could leave: what y's own truncation costs."""


def affine_map(x: Float[Tensor, "times x"], y: Float[Tensor, "times y"], *, constant: bool) -> AffineMap:
    """Return the best map from y to x by least squares; without a `constant`, c = 0.

    Singular directions of y down to rounding would fit rounding, at the price of large factors. As many are taken as
    make what is left of x, and what rounding makes through M, least together.
    """
    x, y = x.double(), y.double()
    Y = torch.cat([y, torch.ones_like(y[:, :1])], dim=1) if constant else y
    U, s, Vh = torch.linalg.svd(Y, full_matrices=False)
    size = float(x.norm())
    seen = U.mT @ x
    left = (size**2 - (seen**2).sum(dim=1).cumsum(0)).clamp(min=0).sqrt()
    solved = (seen / s[:, None]).nan_to_num(0, 0, 0)
    grown = (solved**2).sum(dim=1).cumsum(0).sqrt() * float(Y.norm())
    count = int((left + NOISE * grown).argmin()) + 1
    solution = Vh[:count].mT @ solved[:count]
    M, c = (solution[:-1].mT, solution[-1]) if constant else (solution.mT, x.new_zeros(x.shape[1]))
    error = float((y @ M.mT + c - x).norm()) / size
    centred = x - x.mean(dim=0) if constant else x
    tail = torch.linalg.svdvals(centred)[y.shape[1] :]
    return AffineMap(M, c, error, float(tail.norm()) / size)


def carried(
    B: Float[Tensor, "out r"], A: Float[Tensor, "r x"], to: AffineMap
) -> tuple[Float[Tensor, "out r2"], Float[Tensor, "r2 y"], Float[Tensor, " out"]]:
    """Return factors and a constant that add on y what B·A adds on x: B, A·M and B·A·c.

    Where there are fewer inputs than the rank, the factors take no more than that.
    """
    B, A = B.double(), A.double()
    constant = B @ (A @ to.c)
    A = A @ to.M
    if A.shape[0] > A.shape[1]:
        Q, R = torch.linalg.qr(A.mT)
        B, A = B @ R.mT, Q.mT
    return B, A, constant


def constant_as_factor(
    B: Float[Tensor, "out r"], A: Float[Tensor, "r y"], constant: Float[Tensor, " out"], one: Float[Tensor, " y"]
) -> tuple[Float[Tensor, "out r2"], Float[Tensor, "r2 y"]]:
    """Return factors that add the constant, too: `one`·y(t) = 1 at all times, so it is one more row of A.

    What B's columns hold already, as they do of a bias that `carried` made, needs no further rank.
    """
    if not constant.any():
        return B, A
    within = torch.linalg.lstsq(B, constant[:, None], driver="gelsd").solution
    if float((B @ within - constant[:, None]).norm()) <= 1e-6 * float(constant.norm()):
        return B, A + within @ one[None]
    return torch.cat([B, constant[:, None]], dim=1), torch.cat([A, one[None]])
