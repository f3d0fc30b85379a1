"""Direct reuse: the LoRA as it is, or at another strength. The baseline that every method has to beat."""

from __future__ import annotations

from dataclasses import dataclass

from loraport.methods.layer import Layer, Update


@dataclass(frozen=True)
class DirectSettings:
    """How strong the LoRA is reused."""

    amount: float = 1.0
    """λ: 1.15 to 1.6 often repairs a faded LoRA as well as anything cleverer does."""


def direct(layer: Layer, settings: DirectSettings = DirectSettings()) -> Update:
    """The LoRA's own update times λ: D' = λ·B·A. Exact at the LoRA's own rank; the weights are not looked at."""
    return Update(layer.lora if settings.amount == 1 else layer.lora.scaled(settings.amount))
