"""Bases of weights: decomposition, half-kept bases, energy and rank."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.errors import InputError, SettingsError
from loraport.spectral import basis as bases
from loraport.spectral.basis import Basis, HalfBasis, decompose, energy_rank, half_basis
from tests.layers import SHAPES, generator, orthogonal, random_weights, relative

shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


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
    turned = basis.transposed()
    assert torch.equal(replace(turned, S=2 * basis.S).Vh, basis.U.mT) and turned.transposed() is not turned


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_half_kept_basis_is_an_ordinary_value(dtype):
    """Fields that can be replaced, and what follows from them is made anew."""
    W = torch.randn(9, 6, generator=generator(1), dtype=dtype)
    basis = half_basis(W)
    assert relative((basis.U * basis.S) @ basis.Vh, W) < 1e-5
    doubled = replace(basis, W=2 * W, S_exact=2 * basis.S_exact)
    assert relative(doubled.U, basis.U) < 1e-6 and torch.equal(doubled.S, 2 * basis.S)
    other = replace(basis.transposed(), upright=doubled)
    assert relative(other.Vh, basis.U.mT) < 1e-6 and torch.equal(other.S, doubled.S)


@pytest.mark.parametrize("shape", [(24, 24), (40, 24), (24, 40)])
def test_zeros_have_a_basis_but_no_rank(shape):
    basis = decompose(torch.zeros(shape))
    assert torch.equal(basis.S, torch.zeros(24)) and basis.rank == 0 and energy_rank(basis.S, 0.9) == 0
    assert (basis.U.mT @ basis.U - torch.eye(24)).abs().max() < 1e-6 and torch.isfinite(basis.Vh).all()


def half(W: torch.Tensor, weak: int) -> Basis:
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
    assert relative(found.project_left(X), whole.U.mT @ X) < 1e-9
    assert relative(found.lift_left(Y), whole.U @ Y) < 1e-9
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
    assert (bases._by_gram(W) is not None) == by_gram
    found = decompose(W)
    assert (found.U.mT @ found.U - torch.eye(50)).abs().max() < 5e-6
    assert relative((found.U * found.S) @ found.Vh, W) < 2e-6
