"""The two products do what the plain ones do, however the matrix lies."""

import pytest
import torch

from loraport.spectral import kernels as products
from loraport.spectral.kernels import lower_gram, times_few


@pytest.mark.parametrize("by_rows", [True, False])
@pytest.mark.parametrize("few", [256, 2])
def test_a_matrix_times_a_few_columns(by_rows, few, monkeypatch):
    monkeypatch.setattr(products, "FEW", few)
    A = torch.randn(7, 5, dtype=torch.float64) if by_rows else torch.randn(5, 7, dtype=torch.float64).mT
    X = torch.randn(5, 3, dtype=torch.float64)
    assert A.is_contiguous() is by_rows
    assert torch.allclose(times_few(A, X), A @ X, rtol=1e-14)


@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (40, 17), (4, 1)])
@pytest.mark.parametrize("rows", [2048, 7])
def test_the_lower_triangle_of_a_gram_matrix(shape, rows, monkeypatch):
    monkeypatch.setattr(products, "ROWS", rows)
    X = torch.randn(shape)
    exact = X.double().mT @ X.double()
    assert torch.allclose(lower_gram(X, torch.float64).tril(), exact.tril(), rtol=1e-13, atol=1e-13)
    assert torch.allclose(lower_gram(X, torch.float32).tril(), exact.tril().float(), atol=1e-5)


def test_above_the_diagonal_something_is_left_out():
    X = torch.randn(40, 16)
    assert not torch.allclose(lower_gram(X, torch.float64).triu(1), (X.double().mT @ X.double()).triu(1))
