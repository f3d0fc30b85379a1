"""What CASA removes from an update, in coordinates of the basis, against the same as dense matrices."""

import math
from dataclasses import replace

import pytest
import torch

from loraport.methods.casa import casa, casa_parts
from loraport.methods.controls import restore_only, rollback
from loraport.methods.layer import Layer
from loraport.methods.settings import PAPER
from loraport.spectral import krylov
from loraport.spectral.basis import decompose
from loraport.spectral.correction import CorrectedUpdate
from loraport.spectral.low_rank import LowRank, factorize, kept_correction
from loraport.spectral.routing import routing_factors
from tests.layers import SHAPES, generator, layer_of, random_weights, relative

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)

LARGE = {"square": (160, 160), "tall": (300, 160), "wide": (160, 300)}


large = pytest.mark.parametrize("shape", LARGE.values(), ids=LARGE)


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
    removal = update.change
    T = -E.mT if update.is_transposed else -E
    X = torch.randn(min(shape), 4, generator=generator(3), dtype=torch.float64)
    assert relative(removal.times(X), T @ removal.basis.Vh.mT @ X) < 1e-9
    upright = lora.transposed() if update.is_transposed else lora
    corrected = CorrectedUpdate(upright, removal, routing_factors(upright, removal.basis))
    assert corrected.overlap == pytest.approx(float((T * upright.dense()).sum()), rel=1e-9)
    left = upright.dense() - T
    gram_X, C_X = corrected.times_gram(X).chunk(2)
    assert relative(gram_X, removal.basis.Vh @ (left.mT @ (left @ removal.basis.Vh.mT @ X))) < 1e-9
    assert relative(C_X, removal.basis.U.mT @ T @ removal.basis.Vh.mT @ X) < 1e-9
    assert torch.equal(removal.times(X, C_X), removal.times(X)), "what is known is not made again"
    outside = T - removal.basis.U @ (removal.basis.U.mT @ T)
    assert torch.allclose(
        removal.times_outside_gram(X), removal.basis.Vh @ (outside.mT @ (outside @ removal.basis.Vh.mT @ X))
    )
    assert (float(outside.norm()) > 0.1 * float(T.norm())) == (removal.is_tall and settings.restore > 0)


@large
@pytest.mark.parametrize("method", [casa, restore_only, rollback, lambda layer: casa_parts(layer).counter_drift])
def test_truncation_in_coordinates_is_that_of_the_dense_update(shape, method, monkeypatch):
    monkeypatch.setattr(krylov, "OVERSAMPLING", 4)
    W_s, W_t, lora = random_weights(shape, 34)
    update = method(layer_of(W_s, W_t, lora))
    rank = 6
    assert not krylov.is_small(shape, rank), "the iteration is what is tested"
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
