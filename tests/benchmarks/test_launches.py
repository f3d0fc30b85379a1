"""What a card would be asked is counted rightly, and a further LoRA does not wait for one more often than it did."""

import pytest
import torch
from benchmarks.launches import counted, further_lora

from loraport.spectral import kernels
from tests.layers import generator

X = torch.randn(6, 6, generator=generator(0))
WORK = {
    "a product": (lambda: X @ X, 1, 0),
    "views are nothing": (lambda: X.mT[1:].view(5, 6), 0, 0),
    "a number": (lambda: float(X.sum()), 2, 1),
    "a question": (lambda: bool((X > 0).any()), 3, 1),
    "entries of a mask": (lambda: X[X > 0], 2, 1),
    "entries at places": (lambda: X[torch.tensor([1, 2])], None, 0),
    "places": (lambda: kernels.true_indices(X > 0), 2, 1),
    "eigenvectors": (lambda: torch.linalg.eigh(X), None, 1),
    "in place": (lambda: X.clone().add_(1).masked_fill_(X > 0, 0), 4, 0),
}


@pytest.mark.parametrize("name", WORK)
def test_operators_and_waits_are_counted(name):
    work, operators, waits = WORK[name]
    found = counted(work)
    assert found.waits.total() == waits
    assert operators in (None, found.operators)


def test_the_way_of_a_card_is_counted():
    assert not kernels.is_on_card(X) and kernels.kth_smallest(X.flatten(), 3) == X.flatten().sort().values[2]
    seen = []
    counted(lambda: seen.append(kernels.is_on_card(X)))
    assert seen == [True] and not kernels.is_on_card(X)


@pytest.mark.parametrize(("shape", "most"), [((230, 230), 20), ((300, 230), 21), ((230, 300), 23)], ids=str)
def test_a_further_lora_waits_for_a_card_no_more_often_than_it_did(shape, most):
    """At 20 µs and more each: it was 55. If there is a reason for one more, raise the number and say so."""
    found = counted(further_lora(shape, 4))
    assert 1 < found.waits.total() <= most, found.waits
    assert found.operators < 800
