"""Direct reuse: the LoRA as it is, or at another strength. The baseline that every method has to beat."""

from __future__ import annotations

from loraport.methods.layer import Layer, Update
from loraport.methods.settings import DIRECT, DirectSettings


def direct(layer: Layer, settings: DirectSettings = DIRECT) -> Update:
    """Return the LoRA's own update times λ: D' = λ·B·A, exact at its own rank; the weights are not looked at."""
    return Update(layer.lora if settings.amount == 1 else layer.lora.scaled(settings.amount))
