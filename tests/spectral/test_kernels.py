"""Products, sums and selections do what the plain ones do, however the matrix lies."""

import math

import pytest
import torch

from loraport.spectral import kernels
from loraport.spectral.kernels import (
    Entries,
    at_least_zero,
    at_usual_scale,
    column_norms,
    entries_at,
    inner,
    kth_smallest,
    largest_size,
    lower_gram,
    mirrored,
    norm,
    positive_indices,
    times_few,
    true_indices,
)
from tests.layers import generator


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("few", [256, 2])
def test_a_matrix_times_a_few_columns(by_rows, few, monkeypatch):
    monkeypatch.setattr(kernels, "FEW", few)
    A = torch.randn(7, 5, dtype=torch.float64) if by_rows else torch.randn(5, 7, dtype=torch.float64).mT
    X = torch.randn(5, 3, dtype=torch.float64)
    assert A.is_contiguous() is by_rows
    assert torch.allclose(times_few(A, X), A @ X, rtol=1e-14)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (40, 17), (4, 1)])
@pytest.mark.parametrize("rows", [2048, 7])
def test_the_lower_triangle_of_a_gram_matrix(shape, rows, monkeypatch):
    monkeypatch.setattr(kernels, "ROWS", rows)
    X = torch.randn(shape)
    exact = X.double().mT @ X.double()
    assert torch.allclose(lower_gram(X, torch.float64).tril(), exact.tril(), rtol=1e-13, atol=1e-13)
    assert torch.allclose(lower_gram(X, torch.float32).tril(), exact.tril().float(), atol=1e-5)


def test_a_triangle_mirrored():
    X = torch.randn(9, 9, generator=generator(6))
    assert torch.equal(mirrored(X.clone()), X.tril() + X.tril(-1).mT)
    assert torch.equal(mirrored(X[:1, :1].clone()), X[:1, :1])


@pytest.mark.parametrize("by_rows", [True, False])
def test_norms_of_columns(by_rows):
    X = torch.randn(17, 5, dtype=torch.float64, generator=generator(7))
    X = X if by_rows else X.mT.contiguous().mT
    assert torch.allclose(column_norms(X), X.norm(dim=0), rtol=1e-14)


def test_the_largest_size():
    assert largest_size(torch.tensor([[1.0, -3.0], [2.0, 0.0]])) == 3 and largest_size(torch.zeros(0, 4)) == 0
    assert math.isnan(largest_size(torch.tensor([1.0, float("nan")])))
    assert at_usual_scale(torch.zeros(2)) and not at_usual_scale(torch.tensor([0.0, -(2.0**41)]))


def test_above_the_diagonal_something_is_left_out():
    X = torch.randn(40, 16)
    assert not torch.allclose(lower_gram(X, torch.float64).triu(1), (X.double().mT @ X.double()).triu(1))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_places_and_entries_are_those_of_the_mask(share):
    X = torch.randn(17, 23, generator=generator(1))
    mask = torch.rand(17, 23, generator=generator(2)) < share
    places = true_indices(mask)
    assert torch.equal(places, mask.flatten().nonzero().squeeze(1))
    assert torch.equal(entries_at(X, places), X[mask])
    assert torch.equal(entries_at(X.mT, places), X.T.reshape(-1)[places]), "of the matrix as it is read, not as it lies"


@pytest.mark.parametrize("by_rows", [True, False])
def test_positive_entries_in_some_rows_or_columns(by_rows):
    X = torch.randn(17, 23, generator=generator(4)).round()  # with zeros, which are not positive
    X = X if by_rows else X.mT.contiguous().mT
    rows, columns = (torch.rand(n, generator=generator(5)) < 0.3 for n in X.shape)
    mask = (X > 0) & (rows[:, None] | columns)
    assert torch.equal(positive_indices(X, rows, columns), true_indices(mask))
    assert 0 < mask.sum() < (X > 0).sum() < (X >= 0).sum(), "rows, columns and the sign all decide"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_kth_smallest_is_that_of_a_sort(dtype):
    values = torch.randn(501, generator=generator(3), dtype=dtype).round(decimals=1)  # with ties
    in_order = values.sort().values
    for k in (1, 2, 250, 500, 501):
        found = kth_smallest(values, k)
        assert found == in_order[k - 1] == torch.kthvalue(values, k).values and found.dtype == dtype
    before = values.clone()
    kth_smallest(values, 7)
    assert torch.equal(values, before), "nothing is moved"


def test_some_of_the_entries():
    few = Entries(torch.tensor([1, 4, 9]), torch.tensor([0.1, -2.0, 3.0]))
    kept = few.where(few.values > 0)
    assert len(few) == 3 and kept.indices.tolist() == [1, 9] and torch.equal(kept.values, torch.tensor([0.1, 3.0]))


def test_norms_of_large_matrices_are_those_of_double_precision():
    """Single precision sums sixteen million squares to 0.1 % too little, more on one thread than on two."""
    X = torch.rand(4096, 4096, generator=generator(1))
    exact = float(X.double().square().sum())
    assert norm(X) == pytest.approx(exact**0.5, rel=1e-12) and inner(X, X) == pytest.approx(exact, rel=1e-12)
    assert abs(float(torch.dot(X.flatten(), X.flatten())) / exact - 1) > 1e-7, "else this test would say nothing"
    assert norm(1e-30 * X) == pytest.approx(1e-30 * exact**0.5, rel=1e-6) and norm(X[:0]) == 0


def test_what_is_not_a_number_is_not_hidden():
    assert at_least_zero(-1e-9) == 0 and at_least_zero(2.0) == 2 and at_least_zero(float("nan")) != 0
