"""Controls: simple rules that a method must beat before its mechanism deserves the credit."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from loraport.methods.casa import PAPER, CasaSettings, casa
from loraport.methods.layer import Layer, Update


@dataclass(frozen=True)
class UndoSettings:
    """How much of the whole drift is taken back."""

    amount: float = 0.25
    """β: 0 is direct reuse, 1 rolls the layer back to source + LoRA."""


def undo(layer: Layer, settings: UndoSettings = UndoSettings()) -> Update:
    """Uniform undo: D' = D_lora − β·D_fft, the same share of the drift in every direction."""
    return Update(layer.lora, -settings.amount * layer.drift)


def undo_matched(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """Uniform undo of as much energy as CASA restores: β = restore · ‖(I − P_U)·D_fft·(I − P_V)‖ / ‖D_fft‖."""
    restored = restore_only(layer, settings)
    size = float(torch.linalg.vector_norm(layer.drift))
    taken = float(torch.linalg.vector_norm(restored.correction)) if restored.correction is not None else 0.0
    beta = taken / size if size else 0.0
    return Update(layer.lora, -beta * layer.drift, {**restored.facts, "amount": beta})


def direct_matched(layer: Layer, transferred: Update) -> Update:
    """Direct reuse at the size of another method's update: λ = ‖D'‖ / ‖D_lora‖ before truncation.

    The control of every method that shrinks or grows the LoRA. A zero LoRA stays zero; a layer to which the other
    method gives no adapter gets none here.
    """
    if transferred.reason is not None:
        return transferred
    size = layer.lora.norm()
    strength = transferred.norm() / size if size else 1.0
    return Update(layer.lora.scaled(strength), None, {**transferred.facts, "amount": strength})


def rollback(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """CASA's masks, the LoRA set to zero: D' = −restore·(I − P_U)·D_fft·(I − P_V): the target rolled back, no style."""
    restored = restore_only(layer, settings)
    return Update(layer.lora.scaled(0.0), restored.correction, restored.facts)


def restore_only(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """CASA without arbitration (Table 2)."""
    return casa(layer, replace(settings, arbitrate=False))


def arbitrate_only(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """CASA without restoration (Table 2)."""
    return casa(layer, replace(settings, restore=0.0))
