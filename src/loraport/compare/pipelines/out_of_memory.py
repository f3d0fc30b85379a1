"""Tell that memory ran out from all other errors, and say so in one sentence."""

from __future__ import annotations

import torch

from loraport.errors import SettingsError

_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "cublas_status_alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine has no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or any(word in str(error).lower() for word in _WORDS)


def no_memory_left(name: str, error: BaseException) -> SettingsError:
    """Return the sentence for a model that does not fit, whatever was tried."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return SettingsError(
        f"{name} does not fit into memory, one clip at once with all offload ({first:.160}); ask for fewer --frames or "
        "a smaller --size, or give another --device"
    )
