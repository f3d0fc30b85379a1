"""Matrices in fewer bits, bases as an entry of the cache holds them, and whether an entry is that of its weight.

A matrix is kept as whole numbers with a scale for each row: in 32 bits where it is in double precision, which is what
decides about entries near a threshold; in 24 where it is in single; in 16 where nothing is compared with it. A row of
a basis then moves by 6e-10, 1.6e-7 or 4e-5 of itself. Vectors are kept as they are.

Of a basis the smaller factor is kept, V of a square or tall weight and U of a wide one, and of the other only the
directions with singular values below a hundredth of their root mean square: the others follow from the weight, which a
run reads anyway (`HalfBasis`). An entry has a third to a half of the bytes of all three factors in float32.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.digests import text_digest
from loraport.spectral.basis import Basis, HalfBasis, count_strong
from loraport.spectral.kernels import EXACT_UP_TO, energy, times_few

_SCALE = ".scale"
_LOW = ".low"


def pack(tensors: Mapping[str, Tensor], coarse: Collection[str] = ()) -> dict[str, Tensor]:
    """Return vectors as they are, matrices in 32 or 24 bits by their precision, those named `coarse` in 16.

    All on the device of the tensors, so that what is used is what will be read back, without a way to main memory.
    """
    stored: dict[str, Tensor] = {}
    for name, X in tensors.items():
        if X.dim() == 1:
            stored[name] = X.contiguous()
            continue
        bits = 16 if name in coarse else 32 if X.dtype == torch.float64 else 24
        wide = X.double()
        # a scale a row: directions of little weight have small entries, which one scale for all would round away
        scale = wide.abs().amax(dim=1) / (2 ** (bits - 1) - 1) if X.numel() else wide.new_zeros(len(X))
        whole = (wide / scale.where(scale > 0, 1)[:, None]).round_().to(torch.int32)
        stored[name + _SCALE] = scale
        if bits == 24:
            # No dtype has 24 bits: the upper 16 in one tensor, the lowest 8 in another. The shift rounds down, so
            # whole = 256 · upper + lowest holds for negative numbers too.
            stored[name + _LOW] = (whole & 255).to(torch.uint8).contiguous()
            whole >>= 8
        stored[name] = whole.to(torch.int32 if bits == 32 else torch.int16).contiguous()
    return stored


def unpack(stored: Mapping[str, Tensor], name: str, device: torch.device | str = "cpu") -> Tensor:
    """Return a matrix of an entry: what was kept in 32 bits in double precision, the rest in single."""
    whole, scale = (stored[part].to(device, non_blocking=True) for part in (name, name + _SCALE))
    scale = scale[:, None]
    if whole.dtype == torch.int32:
        return whole * scale
    if name + _LOW in stored:  # whole numbers of 24 bits are exact in float32, which has 24 too
        return whole.float().mul_(256).add_(stored[name + _LOW].to(device, non_blocking=True)).mul_(scale.float())
    return whole.float().mul_(scale.float())


def matrix_shape(stored: Mapping[str, Tensor], name: str, *, coarse: bool = False) -> tuple[int, ...] | None:
    """Return the shape of a packed matrix; None where parts are missing or wrong, or it is in 16 bits and not `coarse`.

    The checksum says that an entry is as it was written, not who wrote it: it may be from a program with a fault.
    """
    whole, scale, low = (stored.get(name + end) for end in ("", _SCALE, _LOW))
    if whole is None or scale is None or whole.dtype not in (torch.int32, torch.int16) or whole.dim() != 2:
        return None
    if low is None and whole.dtype == torch.int16 and not coarse:
        return None
    if scale.dtype != torch.float64 or scale.shape != whole.shape[:1] or not torch.isfinite(scale).all():
        return None
    if low is not None and (low.dtype != torch.uint8 or low.shape != whole.shape or whole.dtype != torch.int16):
        return None
    return tuple(whole.shape)


def pack_basis(basis: Basis) -> dict[str, Tensor]:
    """Return what is kept of a basis: the smaller factor, and the weak directions of the other; rows are directions."""
    upright = basis if basis.shape[0] >= basis.shape[1] else basis.transposed()
    if isinstance(upright, HalfBasis):
        S, small, weak = upright.S_exact, upright.Vh_exact, upright.weak
    else:
        S, small = upright.S, upright.Vh
        weak = upright.left_rows(count_strong(S))
    if len(S) > EXACT_UP_TO:  # such layers are compared with their thresholds in single precision: see `precision_for`
        small, weak = small.float(), weak.float()
    return pack({"S": S.double(), "small": small, "weak": weak})


def unpack_basis(stored: Mapping[str, Tensor], W: Float[Tensor, "out in"]) -> Basis:
    """Return the basis of the weight from an entry; the strong directions of the larger factor are W·vᵢ / Sᵢ."""
    S = stored["S"].to(W.device, non_blocking=True)
    small, weak = unpack(stored, "small", W.device), unpack(stored, "weak", W.device)
    if W.shape[0] >= W.shape[1]:
        return HalfBasis(W, S, small, weak)
    return HalfBasis(W.mT, S, small, weak).transposed()


TOLERANCE = 1e-5
"""What random products of an entry and of its weight may differ by, as a share: a hundred roundings."""


def is_whole(stored: Mapping[str, Tensor]) -> bool:
    """Return whether an entry has the parts of a basis, in shapes that fit each other, with S falling and finite."""
    S, small, weak = stored.get("S"), matrix_shape(stored, "small"), matrix_shape(stored, "weak")
    if S is None or S.dim() != 1 or S.dtype != torch.float64 or small is None or weak is None:
        return False
    if small != (len(S), len(S)) or len(S) == 0 or not torch.isfinite(S).all():
        return False
    return bool((S >= 0).all() and (S.diff() <= 0).all()) and weak[0] == len(S) - count_strong(S)


def checked_basis(stored: Mapping[str, Tensor], W: Float[Tensor, "out in"], key: str) -> Basis | str:
    """Return the basis of a weight from an entry, or what in it is not of this weight."""
    if not is_whole(stored):
        return "it lacks parts of a basis, or has others"
    n, weak_shape = min(W.shape), matrix_shape(stored, "weak")
    if len(stored["S"]) != n or weak_shape is None or (weak_shape[0] and weak_shape[1] != max(W.shape)):
        return "it is that of a weight of another shape"
    basis = unpack_basis(stored, W)
    return _contradiction(stored["S"], basis, W, key) or basis


def _contradiction(S_exact: Float[Tensor, " n"], basis: Basis, W: Float[Tensor, "out in"], key: str) -> str | None:
    """Return what in a basis is not of this weight, by products with two random vectors, or None.

    ΣS² = ‖W‖² · V·WᵀW·Vᵀ·y = S²·y · W·vᵢ = Sᵢ·uᵢ and unit length for the weak directions. The vectors follow from the
    key. Directions with singular values below 1e-3 of the largest are seen only as being among the weak.
    """
    if W.shape[0] < W.shape[1]:
        W, basis = W.mT, basis.transposed()
    S, largest, size = basis.S, float(basis.S[0]), energy(W)
    if abs(energy(S_exact) - size) > TOLERANCE * size:
        return "its singular values are not those of the weight"
    if largest == 0:
        return None
    # products with two vectors cost as much as reading the weight twice; a decomposition would be what the cache saves
    y = random_vectors(key, len(S)).to(W)
    share, image = (S / largest)[:, None], times_few(W, times_few(basis.Vh.mT, y / largest))
    product = times_few(basis.Vh, times_few(W.mT, image / largest))
    if not ((product - share.square() * y).abs() <= TOLERANCE * (1 + y.abs())).all():
        return "its directions are not those of the weight"
    strong = count_strong(S_exact)
    weak, few = basis.left_rows(strong), y[strong:]
    across = times_few(W, times_few(basis.Vh[strong:].mT, few / largest)) - times_few(weak.mT, share[strong:] * few)
    unit = times_few(weak, times_few(weak.mT, few)) - few
    if not ((across.abs() <= TOLERANCE).all() and (unit.abs() <= 100 * TOLERANCE * (1 + few.abs())).all()):
        return "its weak directions are not those of the weight"
    return None


def random_vectors(key: str, n: int) -> Float[Tensor, "n 2"]:
    """Return two random vectors, the same for the same key; each in one piece, as `times_few` likes them."""
    seed = int(text_digest(f"check {key}")[:14], 16)
    return torch.randn(2, n, generator=torch.Generator().manual_seed(seed)).mT
