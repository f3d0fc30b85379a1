"""Picking entries by numpy against torch's own slow functions."""

import pytest
import torch

from loraport.spectral.clusters import connected_labels
from loraport.spectral.selection import Entries, entries_at, kth_smallest, positive_places, true_places
from tests.layers import generator


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_places_and_entries_are_those_of_the_mask(share):
    X = torch.randn(17, 23, generator=generator(1))
    mask = torch.rand(17, 23, generator=generator(2)) < share
    places = true_places(mask)
    assert torch.equal(places, mask.flatten().nonzero().squeeze(1))
    assert torch.equal(entries_at(X, places), X[mask])
    assert torch.equal(entries_at(X.mT, places), X.T.reshape(-1)[places]), "of the matrix as it is read, not as it lies"


@pytest.mark.parametrize("by_rows", [True, False])
def test_positive_entries_in_some_rows_or_columns(by_rows):
    X = torch.randn(17, 23, generator=generator(4)).round()  # with zeros, which are not positive
    X = X if by_rows else X.mT.contiguous().mT
    rows, columns = (torch.rand(n, generator=generator(5)) < 0.3 for n in X.shape)
    mask = (X > 0) & (rows[:, None] | columns)
    assert torch.equal(positive_places(X, rows, columns), true_places(mask))
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
    assert len(few) == 3 and kept.places.tolist() == [1, 9] and torch.equal(kept.values, torch.tensor([0.1, 3.0]))


def test_a_link_counts_in_either_direction():
    links = torch.zeros(5, 5, dtype=torch.bool)
    links[3, 0] = links[1, 4] = True
    assert connected_labels(links).tolist() == [0, 1, 2, 0, 1] == connected_labels(links.mT).tolist()
    assert connected_labels(torch.zeros(5, 5, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]
