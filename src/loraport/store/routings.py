"""The routing of a tall or wide layer's drift as an entry of the cache holds it, and whether it is that of its weights.

Of a square layer nothing is kept: its routing takes two products, and that of a tall or wide one most of a layer's.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loraport.methods.layer import Layer
from loraport.spectral.routing import Routing
from loraport.store.packing import matrix_shape, pack, random_vectors, unpack

COARSE = ("outside",)
"""What is never compared with a threshold, and is kept in 16 bits."""

TOLERANCES = {"C": 1e-5, "outside": 1e-3}
"""What random products may differ by, as a share of the largest of them."""


def pack_routing(routing: Routing) -> dict[str, Tensor]:
    """Return what is kept: C, the senders' strengths, and the Gram matrix of what lies outside of the basis."""
    if routing.outside_gram is None:
        raise ValueError("the routing of a square layer is not kept")
    parts = {"C": routing.C, "send": routing.send.double(), "outside": pack_symmetric(routing.outside_gram)}
    return pack(parts, COARSE)


def unpack_routing(stored: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Routing:
    """Return the routing as an entry has it."""
    C, outside = (unpack(stored, name, device) for name in ("C", "outside"))
    return Routing(C, stored["send"].to(device, C.dtype), unpack_symmetric(outside))


def routing_contradiction(stored: Mapping[str, Tensor], layer: Layer, key: str) -> str | None:
    """Return what in an entry is not the routing of this drift, by shapes and products with two random vectors."""
    upright = layer.transposed() if layer.is_wide else layer
    basis, D = upright.basis, upright.drift
    n, send = D.shape[1], stored.get("send")
    if matrix_shape(stored, "C") != (n, n) or matrix_shape(stored, "outside", coarse=True) != ((n + 1) // 2, n + 1):
        return "it lacks parts of a routing, or has others"
    if send is None or send.shape != (n,) or not torch.isfinite(send).all() or basis is None:
        return "it lacks parts of a routing, or has others"
    routing = unpack_routing(stored, D.device)
    assert routing.outside_gram is not None
    y = random_vectors(key, n).to(D).double()
    image = _times(D, basis.Vh.mT.double() @ y)
    inside = routing.C.double() @ y
    outside = routing.outside_gram.double() @ y + routing.C.double().mT @ inside
    sent = routing.C.double().square().sum(0) + routing.outside_gram.double().diagonal()
    pairs = (
        (basis.project_left(image), inside, TOLERANCES["C"]),
        (basis.Vh.double() @ _times(D.mT, image), outside, TOLERANCES["outside"]),
        (routing.send.double().square(), sent, TOLERANCES["outside"]),
    )
    if all(bool(((one - other).abs() <= share * one.abs().max()).all()) for one, other, share in pairs):
        return None
    return "its routing is not that of the weights"


def pack_symmetric(X: Tensor) -> Tensor:
    """Return a symmetric n × n matrix as ⌈n/2⌉ lines of n + 1 entries, half of its bytes.

    Row i of the lower triangle has i + 1 entries and row n − 1 − i has n − i: together they fill a line. The middle row
    of an odd n stands in its line twice.
    """
    n = len(X)
    line, column = torch.arange((n + 1) // 2, device=X.device)[:, None], torch.arange(n + 1, device=X.device)
    is_short = column <= line
    return X[torch.where(is_short, line, n - 1 - line), torch.where(is_short, column, column - line - 1)]


def unpack_symmetric(lines: Tensor) -> Tensor:
    """Return the symmetric matrix that was packed into these lines."""
    half, n = lines.shape[0], lines.shape[1] - 1
    # By a strided view, which takes a third of the time of indexing, as long as a layer's other work on a warm cache.
    # Line i begins with row i, whose entries behind the diagonal `tril` drops. Its other row begins at column i + 1,
    # i · (n + 1) + i + 1 entries from the start of all lines: a view with stride n + 2 shifts them all into place. That
    # view of the last line reaches over the end, hence the padding. The rows come out from the last upwards.
    long_rows = torch.nn.functional.pad(lines.flatten(), (0, n)).as_strided((half, n), (n + 2, 1), 1)
    lower = torch.cat([lines[:, :n], long_rows.flip(0)[n % 2 :]]).tril_()
    return lower + lower.tril(-1).mT


def _times(D: Tensor, X: Tensor) -> Tensor:
    """D·X of a few columns, in double precision where the scale of the matrix asks for it."""
    largest = D.abs().max().clamp(min=torch.finfo(D.dtype).tiny)
    return (D / largest @ X.to(D.dtype)).double() * largest.double()
