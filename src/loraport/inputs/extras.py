"""Check what a LoRA carries beside its factors (full differences, biases, norms) against its target."""

from __future__ import annotations

from dataclasses import replace

from loraport.files.adapters.division import layer_rows
from loraport.files.additions import PARAMETERS, check_finite, misfit_reason, parameter_of
from loraport.files.lora.kernels import same_weight, written_kernel
from loraport.files.lora.read import Lora
from loraport.files.names.dialects import WHOLE, LoraKey
from loraport.inputs.accelerator import Target


def fit_extras(lora: Lora, target: Target) -> Lora:
    """Return the LoRA without the extras that the target has no place for; they are listed as dropped.

    Kernels are written as the target has them: the LoRA's file may lack one (LoHa and LoKr store convolutions as
    matrices), and a kernel of ones and none are the same. Raises InputError for extras that are not finite.
    """
    parsed = [lora.parse(key) for key in lora.extras]
    layers = {name.rpartition(".")[0] for name in target}
    reasons = {one.key: reason for one in parsed if (reason := _without_place(one, lora, target, layers))}
    extras = {key: tensor for key, tensor in lora.extras.items() if key not in reasons}
    known = {name: target.shape(f"{name}.weight")[2:] for name in lora.layers if f"{name}.weight" in target}
    with_kernels = {
        name: replace(layer, kernel=written_kernel(layer.kernel, known[name])) if name in known else layer
        for name, layer in lora.layers.items()
    }
    return replace(lora, extras=extras, dropped=(*lora.dropped, *reasons.items()), layers=with_kernels)


def _without_place(key: LoraKey, lora: Lora, target: Target, layers: set[str]) -> str:
    """Return why an extra cannot be added to the target; "" if it can, or if it is unknown what it is added to."""
    if key.text_encoder or not key.part:
        return ""
    if key.part in WHOLE:
        check_finite(lora, key.key, lora.extras[key.key])
        return ""
    if not any(layer in layers or layer in target for layer, _ in key.pieces):
        return f"{target.where} has no such layer"
    stored = lora.extras[key.key]
    check_finite(lora, key.key, stored)
    if key.part not in PARAMETERS:
        return ""
    names = {layer: parameter_of(key, layer, target) for layer, _ in key.pieces}
    for layer, place in key.pieces:
        if names[layer] not in target:
            continue
        rows = layer_rows(stored, place) if place.fits(stored.shape) else stored
        if not same_weight(rows.shape, target.shape(names[layer])):
            return misfit_reason(rows.shape, target, names[layer])
    missing = [name for name in names.values() if name not in target]
    return f"{target.where} has no {missing[0]}" if len(missing) == len(names) else ""
