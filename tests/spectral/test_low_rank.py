"""Updates of low rank: sizes without the dense matrix, factorisation, truncation."""

import pytest
import torch

from loraport.errors import InputError
from loraport.spectral.low_rank import LowRank, cosine, factorize, factorize_energy, kept_correction, truncate
from tests.layers import SHAPES, generator, random_weights, relative


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_full_rank_factorisation_loses_nothing(shape):
    D = torch.randn(shape, generator=generator(1), dtype=torch.float64)
    full = factorize(D, min(shape), generator=generator(0))
    assert relative(full.dense(), D) < 1e-12 and full.lost_energy < 1e-12
    cut = factorize(D, min(shape) - 1, generator=generator(0))
    assert relative(cut.dense(), D) > 1e-3 and cut.lost_energy > 1e-6


@pytest.mark.parametrize("size", [20, 300])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(size, value):
    D = torch.randn(size, size, generator=generator(1))
    D[3, 4] = value
    with pytest.raises(InputError, match="NaN or infinite"):
        factorize(D, 8, generator=generator(0))


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
    short = truncate(low, rank)
    U, S, Vh = torch.linalg.svd(low.dense(), full_matrices=False)
    best = U[:, :rank] @ torch.diag(S[:rank]) @ Vh[:rank]
    assert short.rank == min(rank, 6) and torch.allclose(short.dense(), best, atol=1e-12)
    assert short.lost_energy == pytest.approx(float(S[rank:].square().sum() / S.square().sum()), abs=1e-12)
    other = torch.randn(30, 20, generator=g, dtype=torch.float64)
    expected = float((low.dense() * other).sum() / low.norm() / other.norm())
    assert cosine(low, other) == pytest.approx(expected) and abs(expected) < 0.5
    assert cosine(low, short) == pytest.approx((1 - short.lost_energy) ** 0.5)
    assert cosine(low, low.scaled(-2.0)) == pytest.approx(-1) and cosine(low, low.scaled(0.0)) is None


def test_a_lora_alone_is_left_alone():
    lora = LowRank(torch.randn(20, 2, generator=generator(1)), torch.randn(2, 30, generator=generator(2)))
    other = LowRank(torch.randn(20, 3, generator=generator(3)), torch.randn(3, 30, generator=generator(4)))
    assert lora.inner(other) == pytest.approx(float((lora.dense() * other.dense()).sum()), rel=1e-4)
    assert lora.inner(lora) == pytest.approx(lora.norm() ** 2, rel=1e-6)
