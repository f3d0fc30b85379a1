"""The head of a spectrum without a decomposition, against the decomposition."""

import pytest
import torch

from loraport.spectral.head import energy_inside, head_count, head_directions, head_share
from tests.layers import generator, orthogonal


@pytest.mark.parametrize("shape", [(120, 120), (200, 120)])
def test_the_heads_directions_hold_what_the_exact_ones_hold(shape):
    out, n = shape
    S = 1 / (1 + torch.arange(n, dtype=torch.float64)) ** 0.5
    W = orthogonal(out, 0)[:, :n] @ torch.diag(S) @ orthogonal(n, 1)
    D = W @ torch.randn(n, n, generator=generator(2), dtype=torch.float64)  # concentrated, but not in the head alone
    exact = torch.linalg.svd(W, full_matrices=False).Vh[: head_count(n)].mT
    found = head_directions(W, generator(3))
    assert torch.allclose(found.mT @ found, torch.eye(head_count(n), dtype=torch.float64), atol=1e-9)
    assert energy_inside(D, found) == pytest.approx(energy_inside(D, exact), abs=0.01)
    assert torch.equal(found, head_directions(W, generator(3)))


def test_a_zero_update_has_no_share_and_a_small_weight_has_a_head():
    assert energy_inside(torch.zeros(4, 4), torch.eye(4)[:, :1]) is None
    assert [head_count(n) for n in (1, 10, 11, 256)] == [1, 1, 2, 26]
    assert head_directions(torch.eye(5), generator(0)).shape == (5, 1)
    assert head_share(torch.zeros(5)) == 0
