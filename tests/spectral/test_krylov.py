"""The block Krylov iteration keeps what better-known methods keep, and stops when it has settled."""

import pytest
import torch

from loraport.spectral import krylov
from loraport.spectral.krylov import leading_basis, leading_eigenvectors, with_random_columns
from loraport.spectral.low_rank import factorize
from tests.layers import generator, orthogonal, relative


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
    assert (krylov.KRYLOV_STEPS + 1) * (rank + krylov.OVERSAMPLING) < n // 2, (
        "the randomised path is the one that is tested"
    )
    low = factorize(D, rank, generator=generator(3))
    kept, best = float(low.dense().square().sum()), float(S[:rank].square().sum())
    powered = power_iteration(D, rank, rank + krylov.OVERSAMPLING, 6, generator(3))
    assert kept >= powered - 1e-9 * best
    assert kept >= (0.995 if name == "flat" else 0.9999) * best
    assert low.lost_energy == pytest.approx(1 - kept / float(S.square().sum()), abs=1e-9)
    # one power iteration is visibly worse somewhere, so the comparison can fail
    if name == "flat":
        assert power_iteration(D, rank, rank + krylov.OVERSAMPLING, 1, generator(3)) < 0.99 * best


@pytest.mark.parametrize(("known", "error"), [(0, 1e-4), (3, 1e-9)])
def test_leading_directions_of_an_operator(known, error):
    Q = orthogonal(120, 36)
    values = torch.cat([torch.tensor([9.0, 8, 7]), torch.linspace(1, 0.1, 117)]).double()
    block = with_random_columns(Q[:, :known] + 0.0, 3, generator=generator(0))
    found = leading_eigenvectors(lambda X: (Q * values) @ (Q.mT @ X), block, 3)
    assert relative(found @ found.mT, Q[:, :3] @ Q[:, :3].mT) < error
    assert relative(found @ found.mT, Q[:, 1:4] @ Q[:, 1:4].mT) > 0.1


@pytest.mark.parametrize(
    ("values", "products"), [((90.0, 80, 70), 2), ((0.9999, 0.9998, 0.9997), 5)], ids=["apart", "flat"]
)
def test_the_iteration_stops_where_it_has_settled(values, products):
    """Three known directions far above the rest take one step; out of a flat spectrum four steps go on finding more."""
    Q = orthogonal(400, 38)
    spectrum = torch.cat([torch.tensor(values), torch.linspace(0.9996, 0.1, 397)]).double()
    asked = []

    def gram(X):
        asked.append(X.shape[1])
        return (Q * spectrum) @ (Q.mT @ X)

    block = with_random_columns(Q[:, : 5 - products] + 0.0, 3, generator=generator(0))
    found = leading_eigenvectors(gram, block, 3)
    kept = float((found.mT @ gram(found)).trace())
    assert len(asked) - 1 == products
    assert kept > (1 - 1e-4 if products == 2 else 0.9) * float(spectrum[:3].sum())


@pytest.mark.parametrize("shape", [(400, 400), (600, 400), (400, 600)], ids=str)
@pytest.mark.parametrize("rank", [0, 5])
def test_a_matrix_of_lower_rank_than_is_asked_for_loses_nothing(shape, rank):
    """In single precision, where the blocks after the first hold rounding alone."""
    B, A = (
        torch.randn(size, generator=generator(seed)) for seed, size in ((1, (shape[0], rank)), (2, (rank, shape[1])))
    )
    D = B @ (torch.logspace(0, -3, rank)[:, None] * A)
    assert not krylov.is_small(shape, 16)
    basis, low = leading_basis(D, 16, generator=generator(3)), factorize(D, 16, generator=generator(3))
    assert (low.dense() - D).norm() <= 1e-5 * D.norm() and low.lost_energy < 1e-6
    assert int((basis.S > 1e-6 * basis.S[0]).sum()) == rank
    if rank:
        assert (factorize(D, rank - 1, generator=generator(3)).dense() - D).norm() > 1e-4 * D.norm()


@pytest.mark.parametrize("exponent", [-90, 90])
def test_leading_directions_are_the_same_at_every_scale(exponent):
    """Squares of such entries vanish or overflow in single precision."""
    D = torch.randn(400, 400, generator=generator(1)) + 3
    scale = torch.tensor(2.0**exponent)
    usual, other = (leading_basis(X, 16, generator=generator(3)) for X in (D, D * scale))
    assert torch.allclose(other.Vh, usual.Vh, atol=1e-5) and torch.allclose(other.S / scale, usual.S, rtol=1e-5)
    assert (D * scale).square().sum() in (0, torch.inf), "else this test would say nothing"
