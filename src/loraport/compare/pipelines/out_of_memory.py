"""Say in one sentence that a model does not fit into memory."""

from __future__ import annotations

from loraport.errors import SettingsError


def no_memory_left(name: str, error: BaseException) -> SettingsError:
    """Return the sentence for a model that does not fit, whatever was tried."""
    first = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return SettingsError(
        f"{name} does not fit into memory, one clip at once with all offload ({first:.160}); ask for fewer --frames or "
        "a smaller --size, or give another --device"
    )
