"""What is taken, in coordinates, against the same as dense matrices; bases of which half follows from the weight."""

import math
from dataclasses import replace

import pytest
import torch

from loraport.methods.casa import casa, casa_parts
from loraport.methods.controls import restore_only, rollback
from loraport.methods.layer import Layer
from loraport.methods.settings import PAPER
from loraport.spectral import svd
from loraport.spectral.correction import Remaining
from loraport.spectral.halves import HalfBasis
from loraport.spectral.routing import routing_factors
from loraport.spectral.svd import LowRank, decompose, factorize, kept_correction, krylov_directions
from tests.layers import SHAPES, generator, layer_of, orthogonal, random_weights, relative

LARGE = {"square": (160, 160), "tall": (300, 160), "wide": (160, 300)}
large = pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def half(W: torch.Tensor, weak: int) -> svd.SingularBasis:
    """The basis with all of one factor and the last `weak` directions of the other."""
    if W.shape[0] < W.shape[1]:
        return half(W.mT, weak).transposed()
    whole = decompose(W)
    return HalfBasis(W, whole.S, whole.Vh, whole.U.mT[len(whole.S) - weak :])


@shapes
@pytest.mark.parametrize("weak", [0, 5])
def test_half_a_basis_and_the_weight_are_the_whole_basis(shape, weak):
    W = random_weights(shape, 31)[0]
    whole, found = decompose(W), half(W, weak)
    n = min(shape)
    X, Y = (torch.randn(rows, 3, generator=generator(1), dtype=torch.float64) for rows in (shape[0], n))
    assert relative(found.seen_left(X), whole.U.mT @ X) < 1e-9
    assert relative(found.carried_left(Y), whole.U @ Y) < 1e-9
    assert relative(found.U, whole.U) < 1e-9 and relative(found.Vh, whole.Vh) < 1e-9
    assert found.is_square == whole.is_square == (shape[0] == shape[1])
    turned = found.transposed()
    assert relative(turned.U, whole.Vh.mT) < 1e-9 and relative(turned.transposed().Vh, whole.Vh) < 1e-9
    # it is the weight that tells: another weight gives other directions
    assert relative(half(W + 0.1, weak).U, whole.U) > 1e-3


def test_an_error_of_one_half_comes_back_larger_where_the_weight_is_weak():
    """Why directions with small singular values are kept on both sides."""
    W = random_weights((60, 60), 32)[0]
    whole = decompose(W)
    S = torch.logspace(0, -3, 60, dtype=torch.float64)
    W = (whole.U * S) @ whole.Vh
    noise = 1e-6 * torch.randn(60, 60, generator=generator(2), dtype=torch.float64) / 60**0.5
    bare = HalfBasis(W, S, whole.Vh + noise, whole.U.mT[60:])
    kept = HalfBasis(W, S, whole.Vh + noise, whole.U.mT[20:])
    worst = [float((one.U - whole.U).norm(dim=0).max()) for one in (bare, kept)]
    assert worst[0] > 20 * worst[1]


@shapes
@pytest.mark.parametrize(
    "settings",
    [PAPER, replace(PAPER, restore=0.5), replace(PAPER, restore=0.0), replace(PAPER, arbitrate=False)],
    ids=["paper", "half", "arbitrate only", "restore only"],
)
def test_what_is_known_of_it_is_what_the_dense_matrix_says(shape, settings):
    W_s, W_t, lora = random_weights(shape, 33)
    update = casa(layer_of(W_s, W_t, lora), settings)
    dense, E = update.dense(), update.correction
    assert update.norm() == pytest.approx(float(dense.norm()), rel=1e-9)
    assert update.change_norm() == pytest.approx(float(E.norm()), rel=1e-9)
    taken = update.change
    T = -E.mT if update.turned else -E
    X = torch.randn(min(shape), 4, generator=generator(3), dtype=torch.float64)
    assert relative(taken.times(X), T @ taken.basis.Vh.mT @ X) < 1e-9
    upright = lora.transposed() if update.turned else lora
    remaining = Remaining(upright, taken, routing_factors(upright, taken.basis))
    assert remaining.overlap == pytest.approx(float((T * upright.dense()).sum()), rel=1e-9)
    left = upright.dense() - T
    assert relative(remaining.gram(X), taken.basis.Vh @ (left.mT @ (left @ taken.basis.Vh.mT @ X))) < 1e-9
    outside = T - taken.basis.U @ (taken.basis.U.mT @ T)
    assert torch.allclose(taken.outside_gram(X), taken.basis.Vh @ (outside.mT @ (outside @ taken.basis.Vh.mT @ X)))
    assert (float(outside.norm()) > 0.1 * float(T.norm())) == (taken.is_tall and settings.restore > 0)


@large
@pytest.mark.parametrize("method", [casa, restore_only, rollback, lambda layer: casa_parts(layer).counter_drift])
def test_truncation_in_coordinates_is_that_of_the_dense_update(shape, method, monkeypatch):
    monkeypatch.setattr(svd, "OVERSAMPLING", 4)
    W_s, W_t, lora = random_weights(shape, 34)
    update = method(layer_of(W_s, W_t, lora))
    rank = 6
    assert not svd.is_small(shape, rank), "the iteration is what is tested"
    dense = update.dense()
    S = torch.linalg.svdvals(dense)
    best = float(S[:rank].square().sum() / S.square().sum())
    low = update.factorized(rank, generator(0))
    kept = 1 - float((dense - low.dense()).square().sum() / dense.square().sum())
    assert low.rank == rank and kept == pytest.approx(1 - low.lost_energy, abs=1e-9)
    assert best * 0.95 < kept <= best + 1e-12
    assert torch.allclose(low.B.norm(dim=0), low.A.norm(dim=1))
    expected = kept_correction(low, update.low_rank, update.correction)
    assert update.kept_correction(low) == pytest.approx(expected, rel=1e-6)
    again, other = (update.factorized(rank, generator(seed)) for seed in (0, 1))
    assert torch.equal(again.B, low.B) and not torch.equal(other.B, low.B)
    # one column less keeps visibly less, so the comparison can fail
    assert 1 - update.factorized(rank - 1, generator(0)).lost_energy < kept * 0.999


@pytest.mark.parametrize("shape", [(48, 48), (60, 30), (30, 60)])
@pytest.mark.parametrize("size", [1e-1, 1e-3, 1e-6])
def test_what_is_kept_of_a_small_correction_is_no_rounding(shape, size):
    """Single precision, a drift far below the LoRA; none is told where rounding of the factors hides it."""
    W_s, _, lora = random_weights(shape, 35)
    drift = size * torch.randn(shape, generator=generator(1)).double() * lora.norm() / math.prod(shape) ** 0.5
    layer = Layer(LowRank(lora.B.float(), lora.A.float()), drift.float(), decompose(W_s.float()))
    update = casa(layer)
    low = update.factorized(6, generator(0))
    change = low.B.double() @ low.A.double() - layer.lora.B.double() @ layer.lora.A.double()
    correction = update.correction.double()
    expected = float((change * correction).sum() / correction.square().sum())
    kept = update.kept_correction(low)
    assert kept is None if size == 1e-6 else kept == pytest.approx(expected, rel=2e-3)


def test_small_updates_are_truncated_exactly():
    update = casa(layer_of(*random_weights((40, 18), 35)))
    exact = factorize(update.dense(), 7, generator=generator(0))
    assert torch.equal(update.factorized(7, generator(5)).B, exact.B)


@pytest.mark.parametrize(("known", "error"), [(0, 1e-4), (3, 1e-9)])
def test_leading_directions_of_an_operator(known, error):
    Q = orthogonal(120, 36)
    values = torch.cat([torch.tensor([9.0, 8, 7]), torch.linspace(1, 0.1, 117)]).double()
    found = krylov_directions(lambda X: (Q * values) @ (Q.mT @ X), Q[:, :known] + 0.0, 3, generator=generator(0))
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

    found = krylov_directions(gram, Q[:, : 5 - products] + 0.0, 3, generator=generator(0))
    kept = float((found.mT @ gram(found)).trace())
    assert len(asked) - 1 == products
    assert kept > (1 - 1e-4 if products == 2 else 0.9) * float(spectrum[:3].sum())


@pytest.mark.parametrize("shape", [(90, 90), (200, 90), (90, 200)], ids=str)
def test_single_precision_bases_are_as_orthonormal_as_lapacks(shape):
    W = random_weights(shape, 37)[0]
    found, exact = decompose(W.float()), decompose(W)
    unit = torch.eye(90)
    assert (found.U.mT @ found.U - unit).abs().max() < 2e-6 and (found.Vh @ found.Vh.mT - unit).abs().max() < 2e-6
    assert relative((found.U * found.S) @ found.Vh, W.float()) < 1e-6
    assert float((found.S - exact.S).abs().max() / exact.S[0]) < 1e-6


@pytest.mark.parametrize(("smallest", "by_gram"), [(-3, True), (-5, False), (None, False)])
def test_a_steep_spectrum_goes_to_lapack(smallest, by_gram):
    """WᵀW has squared the ratio of the singular values: of the last ones it would lose the directions."""
    S = torch.zeros(50, dtype=torch.float64) if smallest is None else torch.logspace(0, smallest, 50).double()
    S[0] = 1
    W = ((orthogonal(50, 1) * S) @ orthogonal(50, 2)).float()
    assert (svd._by_gram(W) is not None) == by_gram
    found = decompose(W)
    assert (found.U.mT @ found.U - torch.eye(50)).abs().max() < 5e-6
    assert relative((found.U * found.S) @ found.Vh, W) < 2e-6


def test_a_lora_alone_is_left_alone():
    lora = LowRank(torch.randn(20, 2, generator=generator(1)), torch.randn(2, 30, generator=generator(2)))
    other = LowRank(torch.randn(20, 3, generator=generator(3)), torch.randn(3, 30, generator=generator(4)))
    assert lora.inner(other) == pytest.approx(float((lora.dense() * other.dense()).sum()), rel=1e-4)
    assert lora.inner(lora) == pytest.approx(lora.norm() ** 2, rel=1e-6)
