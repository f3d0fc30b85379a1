"""What is packed comes back as accurately as is said, in as few bytes; symmetric matrices as they were, in half."""

import pytest
import torch

from loraport.spectral.routing import Routing
from loraport.store.packing import pack, unpack
from loraport.store.routings import pack_routing, pack_symmetric, unpack_routing, unpack_symmetric
from tests.layers import generator


@pytest.mark.parametrize(
    ("dtype", "coarse", "size", "error"),
    [(torch.float64, (), 4, 6e-10), (torch.float32, (), 3, 1.6e-7), (torch.float32, ("X",), 2, 4e-5)],
    ids=["32 bits", "24 bits", "16 bits"],
)
def test_a_row_moves_by_no_more_than_is_said(dtype, coarse, size, error):
    X = torch.randn(6, 200, generator=generator(1), dtype=dtype) * torch.logspace(-20, 3, 6, dtype=dtype)[:, None]
    X[2] = 0
    stored = pack({"X": X}, coarse)
    assert sum(one.nbytes for name, one in stored.items() if name != "X.scale") == size * X.numel()
    back = unpack(stored, "X")
    assert back.dtype == (dtype if not coarse else torch.float32) and (X < 0).any()
    off = (back.double() - X.double()).norm(dim=1)
    assert (off <= error * X.double().norm(dim=1)).all() and off.sum() > 0


@pytest.mark.parametrize("n", [1, 2, 5, 8, 33])
def test_a_packed_symmetric_matrix_comes_back(n):
    X = torch.randn(n, n)
    X = X + X.mT
    lines = pack_symmetric(X)
    assert lines.shape == ((n + 1) // 2, n + 1)
    assert torch.equal(unpack_symmetric(lines), X)


def test_what_is_not_symmetric_does_not():
    X = torch.randn(5, 5)
    assert torch.equal(unpack_symmetric(pack_symmetric(X)), X.tril() + X.tril(-1).mT) and not torch.equal(X, X.mT)


def test_a_routing_comes_back_and_a_square_layers_has_nothing_outside():
    C, outside = torch.randn(5, 5, dtype=torch.float64), torch.randn(5, 5)
    routing = unpack_routing(pack_routing(Routing(C, C.norm(dim=0), outside @ outside.mT)))
    assert torch.allclose(routing.C, C, rtol=0, atol=1e-8) and torch.equal(routing.send, C.norm(dim=0))
    assert torch.allclose(routing.outside_gram, outside @ outside.mT, rtol=0, atol=1e-3)
    square = unpack_routing(pack_routing(Routing(C, C.norm(dim=0))))
    assert torch.equal(square.C, routing.C) and square.outside_gram is None
