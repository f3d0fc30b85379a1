"""One layer's weight as it was read: its values in float32, what they were rounded to, and the hash of its bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.errors import InputError
from loraport.files.formats.rounding import expected_error, narrowest, rounding_error
from loraport.files.formats.safetensors_read import StoredTensor
from loraport.lazy_property import lazy_property


@dataclass(frozen=True)
class Weight:
    """One layer's weight as it was read."""

    matrix: Float[Tensor, "out in"]
    """float32; a convolution's kernel is out × (in · kernel positions)."""
    fingerprint: str
    dtype: torch.dtype
    """That of the file; float32 where it holds codes."""
    _step: Tensor | None = None

    @lazy_property
    def precision(self) -> torch.dtype | None:
        """The dtype whose grid the values lie on, which may be narrower than the file's; None where it holds codes."""
        return None if self._step is not None else narrowest(self.matrix, self.dtype)

    @lazy_property
    def rounding(self) -> float:
        """Expected ‖W − W_before‖_F, W_before the weight before it was rounded to what the file holds."""
        if self._step is not None:
            return expected_error(self._step)
        return rounding_error(self.matrix, self.precision or self.dtype)


def read_weight(stored: StoredTensor, layer: str) -> Weight:
    """Return the weight that a tensor holds. Raises InputError for NaN or infinite values."""
    tensor, step = (stored.read(), None) if stored.quantization is None else stored.quantization.read()
    W = tensor.float().flatten(1)
    if W.numel() and not all(torch.isfinite(bound) for bound in torch.aminmax(W)):  # NaN spreads; one pass, no copy
        raise InputError(f"{stored.path}: the weight of {layer} holds NaN or infinite values; use an undamaged file")
    return Weight(W, fingerprint(tensor), stored.dtype, step)


def fingerprint(tensor: Tensor) -> str:
    """Return BLAKE2b (256 bits) of dtype, shape and bytes."""
    digest = hashlib.blake2b(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode(), digest_size=32)
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
