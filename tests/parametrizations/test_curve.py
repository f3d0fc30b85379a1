"""The same update on other inputs of the same times: closed forms by index loops, and their negations."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from loraport.parametrizations.curve import affine_map, carried, constant_as_factor, time_curve

torch.manual_seed(0)
FREQ, HIDDEN, WIDTH, TIMES, RANK, OUT = 16, 40, 24, 65, 3, 5


def mlp(seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A time embedder, in float64; as bent as MiniMax-H3's own: eight coordinates leave 1e-5 of its curve."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])

    return 16 * drawn(HIDDEN, FREQ), drawn(HIDDEN), drawn(WIDTH, HIDDEN), drawn(WIDTH)


GRID = torch.linspace(0, 1, TIMES, dtype=torch.float64)
U = time_curve(*mlp(), GRID)
MEAN = U.mean(dim=0)


def pruned(rank: int) -> tuple[Tensor, Tensor]:
    """(the table, its basis V [rank, width]) of the centred curve, as pruned models are made."""
    left, s, Vh = torch.linalg.svd(U - MEAN, full_matrices=False)
    return left[:, :rank] * s[:rank], Vh[:rank]


def factors(width: int, seed: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(OUT, RANK, generator=generator, dtype=torch.float64),
            torch.randn(RANK, width, generator=generator, dtype=torch.float64))  # fmt: skip


def added(B: Tensor, A: Tensor, x: Tensor, bias: Tensor | None = None) -> Tensor:
    """What a LoRA adds at each time, number by number."""
    out = torch.zeros(len(x), B.shape[0], dtype=torch.float64)
    for t in range(len(x)):
        for o in range(B.shape[0]):
            total = 0.0 if bias is None else float(bias[o])
            for r in range(B.shape[1]):
                total += float(B[o, r]) * sum(float(A[r, i]) * float(x[t, i]) for i in range(A.shape[1]))
            out[t, o] = total
    return out


def off(got: Tensor, wanted: Tensor) -> float:
    return float((got - wanted).norm() / wanted.norm())


def test_the_curve_is_that_of_diffusers_embedding() -> None:
    """Its own Timesteps and TimestepEmbedding, and the activation that each modulation begins with."""
    diffusers = pytest.importorskip("diffusers")
    from tests.families import minimax_h3

    assert diffusers
    model = minimax_h3().double()
    times = torch.tensor([0.0, 0.25, 0.7, 1.0], dtype=torch.float64)
    one, two = model.time_embedder.linear_1, model.time_embedder.linear_2
    with torch.no_grad():
        wanted = torch.nn.functional.silu(model.time_embedder(model.time_proj(times).double()))
        got = time_curve(one.weight, one.bias, two.weight, two.bias, times)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)  # its cosines are of float32


@pytest.mark.parametrize(("rank", "close"), [(4, 5e-3), (8, 5e-5)])
def test_full_to_pruned_is_a_times_the_basis_and_a_bias(rank: int, close: float) -> None:
    """A' = A·Vᵀ and Δb = B·A·μ, proved by loops; without Δb nearly all of it is missing."""
    B, A = factors(WIDTH)
    table, V = pruned(rank)
    narrow = torch.zeros(RANK, rank, dtype=torch.float64)
    bias = torch.zeros(OUT, dtype=torch.float64)
    for r in range(RANK):
        for k in range(rank):
            narrow[r, k] = sum(float(A[r, i]) * float(V[k, i]) for i in range(WIDTH))
        for o in range(OUT):
            bias[o] += float(B[o, r]) * sum(float(A[r, i]) * float(MEAN[i]) for i in range(WIDTH))
    wanted = added(B, A, U)
    assert off(added(B, narrow, table, bias), wanted) < close
    assert off(added(B, narrow, table), wanted) > 0.9, "without the constant"
    got = carried(B, A, to := affine_map(U, table, constant=True))
    assert off(added(got[0], got[1], table, got[2]), wanted) < close
    assert to.error <= 1.01 * to.least + 1e-9 < close and off(added(got[0], got[1], table), wanted) > 0.9
    assert affine_map(U, table, constant=False).error > 0.5, "a centred table has no constant in it"


@pytest.mark.parametrize(("rank", "close"), [(4, 1e-6), (8, 1e-6)])
def test_pruned_to_full_needs_no_bias(rank: int, close: float) -> None:
    """T = V·u − V·μ, and 1 = w·u with w the part of μ outside of V over its square: A = A'·V − (A'·V·μ)·wᵀ."""
    table, V = pruned(rank)
    B, narrow = factors(rank)
    outside = MEAN - V.mT @ (V @ MEAN)
    w = outside / outside.norm() ** 2
    assert float((U @ w - 1).abs().max()) < 5e-2
    closed = narrow @ V - (narrow @ (V @ MEAN))[:, None] * w
    wanted = added(B, narrow, table)
    got = carried(B, narrow, to := affine_map(table, U, constant=False))
    assert not got[2].any() and off(added(got[0], got[1], U), wanted) < close
    assert off(added(B, closed, U), wanted) > 10 * close, "the closed form has what the table leaves out, times w"
    assert float(got[1].norm()) < 2 * float(closed.norm()), "nor are the factors much larger"
    assert off(added(B, narrow @ V, U), wanted) > 0.9, "without the constant part"
    assert to.error < close


def test_full_to_reduced_and_back_is_the_basis_alone() -> None:
    V = torch.linalg.svd(U, full_matrices=False)[2][:12]
    seen = U @ V.mT
    B, A = factors(WIDTH)
    there = carried(B, A, affine_map(U, seen, constant=False))
    assert off(added(there[0], there[1], seen), added(B, A, U)) < 1e-6 and not there[2].any()
    assert off(added(B, A @ V.mT, seen), added(B, A, U)) < 1e-6, "A' = A·V"
    back = carried(*there[:2], affine_map(seen, U, constant=False))
    assert off(added(back[0], back[1], U), added(B, A, U)) < 2e-6


def test_there_and_back_again_takes_the_bias_into_the_factors() -> None:
    """Full to pruned makes a bias; on the way back it is within B's columns, and so costs no rank."""
    table, _ = pruned(8)
    B, A = factors(WIDTH)
    up, down, bias = carried(B, A, affine_map(U, table, constant=True))
    up, down, none = carried(up, down, affine_map(table, U, constant=False))
    one = affine_map(torch.ones(TIMES, 1), U, constant=False).M[0]
    up, down = constant_as_factor(up, down, bias + none, one)
    assert up.shape[1] == RANK and off(added(up, down, U), added(B, A, U)) < 5e-5
    foreign = torch.randn(OUT, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wider = constant_as_factor(up, down, foreign, one)
    assert wider[0].shape[1] == RANK + 1
    assert off(added(*wider, U), added(up, down, U) + foreign) < 1e-5


def test_a_table_in_other_coordinates_is_the_same_table_and_one_of_another_model_is_not() -> None:
    table, _ = pruned(6)
    mix = torch.randn(6, 6, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    turned = table @ torch.linalg.qr(mix)[0] + 0.3
    B, narrow = factors(6)
    got = carried(B, narrow, to := affine_map(table, turned, constant=True))
    assert to.error < 1e-9 and off(added(got[0], got[1], turned, got[2]), added(B, narrow, table)) < 1e-9
    other = time_curve(*mlp(1), GRID)
    left, s, _ = torch.linalg.svd(other - other.mean(dim=0), full_matrices=False)
    assert affine_map(table, left[:, :6] * s[:6], constant=True).error > 1e-5


def test_no_more_rank_than_inputs() -> None:
    table, _ = pruned(2)
    B, A = factors(WIDTH)
    up, down, bias = carried(B, A, affine_map(U, table, constant=True))
    assert up.shape == (OUT, 2) and down.shape == (2, 2)
    wanted = added(B, A, U)
    best = affine_map(U, table, constant=True)
    assert off(added(up, down, table, bias), wanted) < 20 * best.least
