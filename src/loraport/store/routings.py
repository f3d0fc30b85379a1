"""The routing of a tall or wide layer's drift as the cache keeps it, and whether an entry is that of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loraport.methods.layer import Layer
from loraport.spectral.routing import Routing
from loraport.store.packing import matrix_shape, random_vectors, unpacked
from loraport.store.triangle import folded, unfolded

COARSE = ("outside",)
"""What is never compared with a threshold, and is kept in 16 bits."""

TOLERANCES = {"C": 1e-5, "outside": 1e-3}
"""What random products may differ by, as a share of the largest of them."""


def packed_routing(drift: Routing) -> dict[str, Tensor]:
    """What is kept: C, the senders' strengths, and the Gram matrix of what lies outside of the basis as a triangle."""
    if drift.outside_gram is None:
        raise ValueError("the routing of a square layer is not kept")
    return {"C": drift.C, "send": drift.send.double(), "outside": folded(drift.outside_gram)}


def routing_of(stored: Mapping[str, Tensor], device: torch.device) -> Routing:
    """The routing as an entry has it."""
    C, outside = (unpacked(stored, name, device) for name in ("C", "outside"))
    return Routing(C, stored["send"].to(device, C.dtype), unfolded(outside))


def routing_contradiction(stored: Mapping[str, Tensor], layer: Layer, key: str) -> str | None:
    """What in an entry is not the routing of this drift, by its shapes and by products with two random vectors."""
    upright = layer.transposed() if layer.is_wide else layer
    basis, D = upright.basis, upright.drift
    n, send = D.shape[1], stored.get("send")
    if matrix_shape(stored, "C") != (n, n) or matrix_shape(stored, "outside", coarse=True) != ((n + 1) // 2, n + 1):
        return "it lacks parts of a routing, or has others"
    if send is None or send.shape != (n,) or not torch.isfinite(send).all() or basis is None:
        return "it lacks parts of a routing, or has others"
    found = routing_of(stored, D.device)
    assert found.outside_gram is not None
    y = random_vectors(key, n).to(D).double()
    image = _times(D, basis.Vh.mT.double() @ y)
    inside = found.C.double() @ y
    outside = found.outside_gram.double() @ y + found.C.double().mT @ inside
    sent = found.C.double().square().sum(0) + found.outside_gram.double().diagonal()
    pairs = (
        (basis.project_left(image), inside, TOLERANCES["C"]),
        (basis.Vh.double() @ _times(D.mT, image), outside, TOLERANCES["outside"]),
        (found.send.double().square(), sent, TOLERANCES["outside"]),
    )
    if all(bool(((one - other).abs() <= close * one.abs().max()).all()) for one, other, close in pairs):
        return None
    return "its routing is not that of the weights"


def _times(D: Tensor, X: Tensor) -> Tensor:
    """D·X of a few columns, in double precision where the scale of the matrix asks for it."""
    largest = D.abs().max().clamp(min=torch.finfo(D.dtype).tiny)
    return (D / largest @ X.to(D.dtype)).double() * largest.double()
