"""Orthogonal undo: as much of the drift stays as is asked for, whatever the LoRA holds of it. Ours; no paper."""

from __future__ import annotations

from loraport.methods.layer import Layer, Parts, Update
from loraport.methods.settings import UNDO_ORTHOGONAL, UndoOrthogonalSettings
from loraport.spectral.kernels import energy
from loraport.spectral.low_rank import inner_with


def undo_orthogonal(layer: Layer, settings: UndoOrthogonalSettings = UNDO_ORTHOGONAL) -> Update:
    """Return uniform undo of the LoRA without what it holds of the drift (ours).

    D' = D_lora − (β + a)·D_fft with a = ⟨D_lora, D_fft⟩ / ‖D_fft‖², so that ⟨D', D_fft⟩ = −β·‖D_fft‖²

    Target and update together then hold (1 − β) of the drift. Plain undo leaves 1 − β + a: where the LoRA itself works
    against the drift (a < 0, often by more than β, since a LoRA is larger than a mild drift), it takes back too much,
    and this rule puts some of the drift back instead. β = 0 is the LoRA made orthogonal to the drift, which has been
    published as orthogonal shift and helps little by itself. Without a drift the LoRA comes back as it is.
    """
    amount = _amount(layer, settings)
    return Update(layer.lora, -amount * layer.drift, {"amount": amount})


def undo_orthogonal_parts(layer: Layer, settings: UndoOrthogonalSettings = UNDO_ORTHOGONAL) -> Parts:
    """Return orthogonal undo in two: D_lora as it is, and −(β + a)·D_fft."""
    return Parts.of_undo(undo_orthogonal(layer, settings))


def _amount(layer: Layer, settings: UndoOrthogonalSettings) -> float:
    """Return β + a; 0 without a drift."""
    size = energy(layer.drift)
    return settings.amount + inner_with(layer.lora, layer.drift) / size if size else 0.0
