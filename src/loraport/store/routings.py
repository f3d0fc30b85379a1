"""The routing of a layer's drift as an entry of the cache holds it, and whether it is that of its weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.methods.layer import Layer
from loraport.spectral.basis import Basis
from loraport.spectral.kernels import at_usual_scale, largest_size, mirrored, times_few
from loraport.spectral.routing import Routing
from loraport.store.packing import matrix_shape, pack, random_vectors, unpack

COARSE = ("outside",)
"""What is never compared with a threshold, and is kept in 16 bits."""

TOLERANCES = {"C": 1e-4, "outside": 1e-3}
"""What random products may differ by, as a share of the largest of them."""


def pack_routing(routing: Routing) -> dict[str, Tensor]:
    """Return what is kept: C, the senders' strengths, and of a tall layer the Gram matrix of what is outside."""
    parts = {"C": routing.C, "send": routing.send.double()}
    if routing.outside_gram is not None:
        parts["outside"] = pack_symmetric(routing.outside_gram)
    return pack(parts, COARSE)


def unpack_routing(stored: Mapping[str, Tensor], device: torch.device | str = "cpu") -> Routing:
    """Return the routing as an entry has it."""
    C = unpack(stored, "C", device)
    outside = unpack_symmetric(unpack(stored, "outside", device)) if "outside" in stored else None
    return Routing(C, stored["send"].to(device, C.dtype), outside)


def checked_routing(stored: Mapping[str, Tensor], layer: Layer, key: str) -> Routing | str:
    """Return the routing of this drift from an entry, or what in it is not of this drift."""
    upright = layer.transposed() if layer.is_wide else layer
    basis, D = upright.basis, upright.drift
    n, send, tall = D.shape[1], stored.get("send"), D.shape[0] > D.shape[1]
    around = matrix_shape(stored, "outside", coarse=True) if "outside" in stored else None
    if matrix_shape(stored, "C") != (n, n) or around != (((n + 1) // 2, n + 1) if tall else None):
        return "it lacks parts of a routing, or has others"
    if send is None or send.shape != (n,) or not torch.isfinite(send).all() or basis is None:
        return "it lacks parts of a routing, or has others"
    routing = unpack_routing(stored, D.device)
    return routing if _fits(routing, D, basis, key) else "its routing is not that of the weights"


def _fits(routing: Routing, D: Float[Tensor, "out n"], basis: Basis, key: str) -> bool:
    """Tell whether a routing is that of this drift, by products with two random vectors.

    In single precision, as the weights are: such products are exact to a tenth of what is asked.
    """
    scale = 1.0 if at_usual_scale(D) else largest_size(D)
    y = random_vectors(key, D.shape[1]).to(D)
    image = _times(D, times_few(basis.Vh.mT, y), scale)
    inside = times_few(routing.C, y.to(routing.C.dtype))
    sent = routing.column_norms.double().square()
    pairs = [(basis.project_left(image), inside / scale, TOLERANCES["C"])]
    if routing.outside_gram is not None:
        sent += routing.outside_gram.diagonal()
        outside = times_few(routing.outside_gram, y) / scale**2 + times_few(routing.C.mT, inside) / scale**2
        returned = times_few(basis.Vh, _times(D.mT, image, scale))
        pairs.append((returned, outside, TOLERANCES["outside"]))
    pairs.append((routing.send.double().square(), sent, TOLERANCES["outside"]))
    differ = [(one.double() - other.double()).abs().max() > share * one.abs().max() for one, other, share in pairs]
    return not bool(torch.stack(differ).any())


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
    return mirrored(torch.cat([lines[:, :n], long_rows.flip(0)[n % 2 :]]))


def _times(D: Tensor, X: Tensor, scale: float) -> Tensor:
    """Return D·X / scale of a few columns."""
    return times_few(D if scale == 1 else D / scale, X)
