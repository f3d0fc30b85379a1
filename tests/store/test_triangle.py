"""Folded symmetric matrices come back as they were, in half of the entries."""

import pytest
import torch

from loraport.store.triangle import folded, unfolded


@pytest.mark.parametrize("n", [1, 2, 5, 8, 33])
def test_a_folded_symmetric_matrix_comes_back(n):
    X = torch.randn(n, n)
    X = X + X.mT
    lines = folded(X)
    assert lines.shape == ((n + 1) // 2, n + 1)
    assert torch.equal(unfolded(lines), X)


def test_what_is_not_symmetric_does_not():
    X = torch.randn(5, 5)
    assert torch.equal(unfolded(folded(X)), X.tril() + X.tril(-1).mT) and not torch.equal(X, X.mT)
