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
    other = torch.randn(7, 120, generator=generator(1), dtype=torch.float64)
    found, beside = leading_eigenvectors(lambda X: torch.cat([(Q * values) @ (Q.mT @ X), other @ X]), block, 3)
    assert relative(beside, other @ found) < 1e-12 and beside.shape == (7, 3)
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
    found = leading_eigenvectors(gram, block, 3).vectors
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


COLUMNS = {
    "independent": (True, lambda X: X),
    "of all scales": (True, lambda X: X * torch.logspace(-9, 9, X.shape[1])),
    "one twice": (False, lambda X: torch.cat([X, X[:, :1]], dim=1)),
    "nearly the same": (False, lambda X: torch.cat([X, X + 1e-9 * X.flip(1)], dim=1)),
}


@pytest.mark.parametrize("name", COLUMNS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_columns_are_made_orthonormal_or_said_to_be_dependent(name, dtype):
    independent, change = COLUMNS[name]
    X = change(torch.randn(300, 12, generator=generator(8), dtype=torch.float64)).to(dtype)
    Q, sound = krylov._by_cholesky(X)
    reflected, always = krylov._by_reflections(X)
    unit, exact = torch.eye(X.shape[1], dtype=dtype), 1e-5 if dtype == torch.float32 else 1e-12
    assert bool(sound) == independent and bool(always) and (reflected.mT @ reflected - unit).abs().max() < exact
    assert torch.allclose(Q, reflected, atol=exact) if independent else torch.equal(Q, X)


def test_columns_of_zeros_stay_zero_and_unit_vectors_take_their_place_in_a_first_block():
    X = torch.randn(300, 4, generator=generator(9))
    X[:, 2] = 0
    Q, sound = krylov._by_cholesky(X)
    unit = torch.diag(torch.tensor([1.0, 1, 0, 1]))
    assert bool(sound) and not Q[:, 2].any() and torch.allclose(Q.mT @ Q, unit, atol=1e-6)
    block = with_random_columns(X, 3, generator=generator(0))
    assert torch.equal(block[:, :2], X[:, :2]) and block[2, 2] == 1 and block[:, 2].sum() == 1


@pytest.mark.parametrize("twice", [False, True])
def test_a_block_of_dependent_columns_finds_the_same_directions(twice, monkeypatch):
    values = torch.cat([torch.tensor([9.0, 8, 7]), torch.linspace(1, 0.1, 117)]).double()
    block = torch.randn(120, 9, generator=generator(3), dtype=torch.float64)
    by_reflections = []
    whole = krylov._by_reflections
    monkeypatch.setattr(krylov, "_by_reflections", lambda X: (by_reflections.append(0), whole(X))[1])
    block = torch.cat([block, block[:, :1]], dim=1) if twice else block
    found = leading_eigenvectors(lambda X: values[:, None] * X, block, 3).vectors
    assert relative(found @ found.mT, torch.eye(120, 3) @ torch.eye(3, 120)) < 1e-3
    assert bool(by_reflections) == twice


def test_blocks_end_where_the_space_does():
    """On a card no energy is asked for, so that wide blocks would fill the space before the last step."""
    values = torch.linspace(1, 2, 40).double()
    asked = []

    def gram(X):
        asked.append(X.shape[1])
        return values[:, None] * X

    block = torch.randn(40, 12, generator=generator(2), dtype=torch.float64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(krylov, "is_on_card", lambda X: True)
        found = leading_eigenvectors(gram, block, 3).vectors
    assert asked == [12, 12, 12] and torch.allclose(found.mT @ found, torch.eye(3).double(), atol=1e-9)
