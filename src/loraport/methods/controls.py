"""Controls: simple rules that a method must beat before its mechanism deserves the credit."""

from __future__ import annotations

from dataclasses import replace

from loraport.methods.casa import casa, casa_parts
from loraport.methods.layer import Layer, Parts, Update
from loraport.methods.settings import PAPER, UNDO, CasaSettings, UndoSettings
from loraport.spectral.kernels import norm


def undo(layer: Layer, settings: UndoSettings = UNDO) -> Update:
    """Return uniform undo: D' = D_lora − β·D_fft, the same share of the drift in every direction."""
    return Update(layer.lora, -settings.amount * layer.drift)


def undo_parts(layer: Layer, settings: UndoSettings = UNDO) -> Parts:
    """Return uniform undo in two: D_lora as it is, and −β·D_fft."""
    return Parts.of_undo(undo(layer, settings))


def undo_matched(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """Return undo of as much energy as CASA restores: β = restore · ‖(I − P_U)·D_fft·(I − P_V)‖ / ‖D_fft‖."""
    restored = restore_only(layer, settings)
    size = norm(layer.drift)
    beta = restored.change_norm() / size if size else 0.0
    return Update(layer.lora, -beta * layer.drift, {**restored.facts, "amount": beta})


def undo_matched_parts(layer: Layer, settings: CasaSettings = PAPER) -> Parts:
    """Return matched undo in two: D_lora as it is, and −β·D_fft."""
    return Parts.of_undo(undo_matched(layer, settings))


def direct_matched(layer: Layer, transferred: Update) -> Update:
    """Return the LoRA at the size of another method's update: λ = ‖D'‖ / ‖D_lora‖ before truncation.

    The control of every method that shrinks or grows the LoRA. A zero LoRA stays zero; a layer to which the other
    method gives no adapter gets none here.
    """
    if transferred.reason is not None:
        return transferred
    size = layer.lora.norm()
    strength = transferred.norm() / size if size else 1.0
    return Update(layer.lora.scaled(strength), None, {**transferred.facts, "amount": strength})


def rollback(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """Return what CASA restores, without the LoRA: D' = −restore·(I − P_U)·D_fft·(I − P_V), the target rolled back."""
    restored = restore_only(layer, settings)
    return replace(restored, low_rank=layer.lora.scaled(0.0), lora_routing=None)


def rollback_parts(layer: Layer, settings: CasaSettings = PAPER) -> Parts:
    """Return rollback in two: it is counter-drift alone, and its adapter is zero."""
    whole = rollback(layer, settings)
    return Parts(Update(whole.low_rank, None, whole.facts), whole)


def restore_only(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """Return CASA without arbitration (Table 2)."""
    return casa(layer, replace(settings, arbitrate=False))


def restore_only_parts(layer: Layer, settings: CasaSettings = PAPER) -> Parts:
    """Return restoration in two: D_lora as it is, and −restore·(I − P_U)·D_fft·(I − P_V)."""
    return casa_parts(layer, replace(settings, arbitrate=False))


def arbitrate_only(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """Return CASA without restoration (Table 2)."""
    return casa(layer, replace(settings, restore=0.0))


def arbitrate_only_parts(layer: Layer, settings: CasaSettings = PAPER) -> Parts:
    """Return arbitration in two: the LoRA without the entries that lose, and minus the drift's entries that lose."""
    return casa_parts(layer, replace(settings, restore=0.0))
