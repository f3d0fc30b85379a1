"""One layer's weight as it was read: its values in float32, what they were rounded to, and the hash of its bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from loraport.digests import content_hash
from loraport.errors import InputError
from loraport.files.formats.rounding import expected_error, narrowest, rounding_error
from loraport.files.formats.safetensors_read import ByteReader, StoredTensor
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


@dataclass(frozen=True)
class StoredWeight:
    """One layer's weight in memory as the file has it, with its hash. `on` makes numbers of it, where they are needed.

    What waits for its turn takes no more room than in the file, and what is done with every number of it is done where
    the work is: a processor's thread converts and checks 0.5 GB a second, a card a thousand.
    """

    tensor: Tensor
    step: Tensor | None
    fingerprint: str
    dtype: torch.dtype
    label: str
    """How messages name it."""

    def on(self, device: torch.device | str = "cpu") -> Weight:
        """Return the weight in float32 on a device. Raises InputError for NaN or infinite values."""
        W = self.tensor.to(device, non_blocking=True).float().flatten(1)
        # NaN spreads, so the extremes tell of all; one pass, no copy
        if W.numel() and not torch.isfinite(torch.stack(torch.aminmax(W))).all():
            raise InputError(f"{self.label} holds NaN or infinite values; use an undamaged file")
        step = None if self.step is None else self.step.to(device, non_blocking=True)
        return Weight(W, self.fingerprint, self.dtype, step)


def load_weight(stored: StoredTensor, layer: str, *, pinned: bool = False) -> StoredWeight:
    """Read the weight that a tensor holds; `pinned`: into memory that a card copies from without the processor."""
    label, step = f"{stored.path}: the weight of {layer}", None
    if stored.quantization is not None:
        tensor, step = stored.quantization.read()
    elif isinstance(stored.read, ByteReader):  # hashed on the way
        digest = content_hash(f"{stored.dtype} {stored.shape}")
        tensor = stored.read.watched(digest.update, pinned=pinned)
        return StoredWeight(tensor, None, digest.hexdigest(), stored.dtype, label)
    else:
        tensor = stored.read()
    return StoredWeight(tensor, step, fingerprint(tensor), stored.dtype, label)


def fingerprint(tensor: Tensor) -> str:
    """Return the hash of dtype, shape and bytes."""
    digest = content_hash(f"{tensor.dtype} {tuple(tensor.shape)}")
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
