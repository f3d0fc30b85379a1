"""Bases, energy, rank and factorisation."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.errors import InputError, SettingsError
from loraport.spectral import svd
from loraport.spectral.kernels import at_least_zero, inner, norm
from loraport.spectral.svd import (
    LowRank,
    cosine,
    decompose,
    energy_rank,
    factorize,
    factorize_energy,
    kept_correction,
    shortened,
)
from tests.layers import SHAPES, generator, random_weights, relative


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_decompose_is_numpys_thin_svd(shape):
    W = random_weights(shape, 0)[0]
    basis = decompose(W)
    assert np.allclose(basis.S.numpy(), np.linalg.svd(W.numpy(), compute_uv=False))
    assert relative(basis.U @ torch.diag(basis.S) @ basis.Vh, W) < 1e-12
    assert basis.U.shape == (shape[0], min(shape)) and basis.Vh.shape == (min(shape), shape[1])


def test_decompose_refuses_nan():
    with pytest.raises(InputError, match="NaN or infinite"):
        decompose(torch.tensor([[1.0, float("nan")], [0.0, 1.0]]))


def test_decompose_survives_a_driver_that_does_not_converge(monkeypatch):
    W = random_weights((12, 9), 0)[0]

    def fail(*args, **kwargs):
        raise torch.linalg.LinAlgError("did not converge")

    monkeypatch.setattr(torch.linalg, "svd", fail)
    basis = decompose(W)
    assert relative(basis.U @ torch.diag(basis.S) @ basis.Vh, W) < 1e-12


@given(st.lists(st.floats(0.01, 10), min_size=1, max_size=20), st.floats(0.05, 1.0))
@settings(derandomize=True)
def test_energy_rank_is_the_smallest_that_holds_the_share(values, energy):
    S = torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
    k = energy_rank(S, energy)
    total = S.square().sum()
    assert S[:k].square().sum() >= energy * total * (1 - 1e-12)
    assert k == 1 or S[: k - 1].square().sum() < energy * total


@pytest.mark.parametrize("energy", [0.0, -0.1, 1.1, float("nan")])
def test_energy_rank_refuses_what_is_no_share(energy):
    with pytest.raises(SettingsError, match="share of energy"):
        energy_rank(torch.ones(3), energy)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_full_rank_factorisation_loses_nothing(shape):
    D = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    full = factorize(D, min(shape), generator=generator(0))
    assert relative(full.dense(), D) < 1e-12 and full.lost_energy < 1e-12
    cut = factorize(D, min(shape) - 1, generator=generator(0))
    assert relative(cut.dense(), D) > 1e-3 and cut.lost_energy > 1e-6


def spectra(n):
    i = torch.arange(n, dtype=torch.float64)
    return {
        "flat": 1 + 0.1 * torch.cos(i),
        "slow": 1 / (1 + i).sqrt(),
        "steep": torch.exp(-i / 20),
        "lora-and-drift": torch.cat([torch.full((16,), 3.0, dtype=torch.float64), 1 - 0.9 * i[16:] / n]),
    }


def power_iteration(D, rank, block, powers, g):
    """The textbook randomised SVD, re-orthonormalised at each of its power iterations; the energy that it keeps."""
    Q = torch.linalg.qr(D @ torch.randn(D.shape[1], block, generator=g, dtype=D.dtype)).Q
    for _ in range(powers):
        Q = torch.linalg.qr(D @ torch.linalg.qr(D.T @ Q).Q).Q
    return float(torch.linalg.svdvals(Q.T @ D)[:rank].square().sum())


@pytest.mark.parametrize("name", spectra(8))
@pytest.mark.parametrize("shape", [(400, 400), (700, 400), (400, 700)], ids=str)
def test_krylov_keeps_at_least_the_energy_of_six_power_iterations(name, shape):
    n, rank = 400, 16
    U = torch.linalg.qr(torch.randn(shape[0], n, generator=generator(1), dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(shape[1], n, generator=generator(2), dtype=torch.float64)).Q
    S = spectra(n)[name].sort(descending=True).values
    D = (U * S) @ V.T
    assert (svd.KRYLOV_STEPS + 1) * (rank + svd.OVERSAMPLING) < n // 2, "the randomised path is the one that is tested"
    low = factorize(D, rank, generator=generator(3))
    kept, best = float(low.dense().square().sum()), float(S[:rank].square().sum())
    powered = power_iteration(D, rank, rank + svd.OVERSAMPLING, 6, generator(3))
    assert kept >= powered - 1e-9 * best
    assert kept >= (0.995 if name == "flat" else 0.9999) * best
    assert low.lost_energy == pytest.approx(1 - kept / float(S.square().sum()), abs=1e-9)
    # one power iteration is visibly worse somewhere, so the comparison can fail
    if name == "flat":
        assert power_iteration(D, rank, rank + svd.OVERSAMPLING, 1, generator(3)) < 0.99 * best


def test_factorisation_is_deterministic_in_its_generator():
    D = torch.randn(300, 300, generator=generator(1))
    first, again, other = (factorize(D, 8, generator=generator(s)) for s in (5, 5, 6))
    assert torch.equal(first.B, again.B) and torch.equal(first.A, again.A)
    assert not torch.equal(first.B, other.B)


def test_factors_share_the_root_of_the_spectrum():
    low = factorize(torch.randn(20, 30, generator=generator(1), dtype=torch.float64), 5, generator=generator(0))
    assert torch.allclose(low.B.norm(dim=0), low.A.norm(dim=1))


@pytest.mark.parametrize("energy", [0.3, 0.9, 0.999])
def test_factorize_energy_keeps_the_share_and_no_more_than_needed(energy):
    D = torch.randn(30, 20, generator=generator(2), dtype=torch.float64)
    low = factorize_energy(D, energy)
    assert 1 - low.lost_energy >= energy
    S = torch.linalg.svdvals(D)
    assert S[: low.rank - 1].square().sum() < energy * S.square().sum()


def test_kept_correction_is_the_share_of_the_correction_and_energy_flatters():
    _, W_t, lora = random_weights((60, 60), 3, rank=4)
    correction = -0.1 * W_t
    D = lora.dense() + correction
    low = factorize(D, 4, generator=generator(0))
    E = D - lora.dense()
    expected = float(((low.dense() - lora.dense()) * E).sum() / E.square().sum())
    assert kept_correction(low, lora, correction) == pytest.approx(expected, rel=1e-9)
    assert kept_correction(factorize(D, 60, generator=generator(0)), lora, correction) == pytest.approx(1.0)
    assert kept_correction(lora, lora, correction) == pytest.approx(0.0, abs=1e-12)
    assert kept_correction(lora, lora, torch.zeros_like(correction)) is None
    assert 1 - low.lost_energy > kept_correction(low, lora, correction)


def test_low_rank_norm_needs_no_dense_matrix():
    lora = random_weights((30, 20), 4)[2]
    assert lora.norm() == pytest.approx(float(lora.dense().norm()))
    assert lora.scaled(-2.0).norm() == pytest.approx(2 * lora.norm())
    assert LowRank(lora.B * 0, lora.A).norm() == 0


@pytest.mark.parametrize("rank", [1, 3, 6, 9])
def test_shortened_is_the_best_approximation_without_the_dense_product(rank):
    g = torch.Generator().manual_seed(4)
    low = LowRank(
        torch.randn(30, 6, generator=g, dtype=torch.float64), torch.randn(6, 20, generator=g, dtype=torch.float64)
    )
    short = shortened(low, rank)
    U, S, Vh = torch.linalg.svd(low.dense(), full_matrices=False)
    best = U[:, :rank] @ torch.diag(S[:rank]) @ Vh[:rank]
    assert short.rank == min(rank, 6) and torch.allclose(short.dense(), best, atol=1e-12)
    assert short.lost_energy == pytest.approx(float(S[rank:].square().sum() / S.square().sum()), abs=1e-12)
    other = torch.randn(30, 20, generator=g, dtype=torch.float64)
    expected = float((low.dense() * other).sum() / low.norm() / other.norm())
    assert cosine(low, other) == pytest.approx(expected) and abs(expected) < 0.5
    assert cosine(low, short) == pytest.approx((1 - short.lost_energy) ** 0.5)
    assert cosine(low, low.scaled(-2.0)) == pytest.approx(-1) and cosine(low, low.scaled(0.0)) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_a_basis_is_an_ordinary_value(dtype, shape):
    """It has its own memory, and fields that can be replaced."""
    W = torch.randn(shape, generator=generator(1), dtype=dtype)
    exact, basis = W.clone(), decompose(W)
    assert basis.U.dtype == basis.S.dtype == basis.Vh.dtype == dtype
    W.mul_(0)
    assert relative((basis.U * basis.S) @ basis.Vh, exact) < 1e-5
    assert torch.equal(replace(basis, S=2 * basis.S).S, 2 * basis.S)


def test_norms_of_large_matrices_are_those_of_double_precision():
    """Single precision sums sixteen million squares to 0.1 % too little, more on one thread than on two."""
    X = torch.rand(4096, 4096, generator=generator(1))
    exact = float(X.double().square().sum())
    assert norm(X) == pytest.approx(exact**0.5, rel=1e-12) and inner(X, X) == pytest.approx(exact, rel=1e-12)
    assert abs(float(torch.dot(X.flatten(), X.flatten())) / exact - 1) > 1e-7, "else this test would say nothing"
    assert norm(1e-30 * X) == pytest.approx(1e-30 * exact**0.5, rel=1e-6) and norm(X[:0]) == 0


def test_what_is_not_a_number_is_not_hidden():
    assert at_least_zero(-1e-9) == 0 and at_least_zero(2.0) == 2 and at_least_zero(float("nan")) != 0


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 40)])
def test_zeros_have_a_basis_but_no_rank(shape):
    basis = decompose(torch.zeros(shape))
    assert torch.equal(basis.S, torch.zeros(24)) and basis.rank == 0 and energy_rank(basis.S, 0.9) == 0
    assert (basis.U.mT @ basis.U - torch.eye(24)).abs().max() < 1e-6 and torch.isfinite(basis.Vh).all()
