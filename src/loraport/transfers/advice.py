"""What the weights of a transfer's own layers speak for, from what was measured of them: nothing is read again."""

from __future__ import annotations

from collections.abc import Iterable

from loraport.diagnosis.rule.advice import Advice, advise
from loraport.diagnosis.rule.traits import LayerTraits, traits_of
from loraport.inputs.accelerator import AcceleratedModel
from loraport.inputs.open import TransferInputs
from loraport.transfers.results import LayerResult


def pair_advice(inputs: TransferInputs, rows: Iterable[LayerResult]) -> Advice | None:
    """Return the advice of the rule that `loraport diagnose` has; None where no layer was looked at for it."""
    known = [row for row in rows if row.drift is not None and row.lora is not None]
    traits = [
        LayerTraits(
            row.drift or 0.0,
            row.floor or 0.0,
            row.status == "copied" or (row.source_rounded and not row.drift),
            row.lora or 0.0,
            row.head_drift,
            row.few_directions,
        )
        for row in known
    ]
    moved = [one for one in traits if one.drift and not one.rounding]
    if not traits or (moved and all(one.head_drift is None for one in moved)):
        return None
    beside = isinstance(inputs.target, AcceleratedModel) and inputs.target.on_source
    return advise(traits_of(traits, of=len(known), beside=beside, quantized=quantized_kinds(inputs)))


def quantized_kinds(inputs: TransferInputs) -> tuple[str, ...]:
    """Return the formats with scales whose rounding lies under the drift; an accelerator's own drift has none."""
    target = inputs.target
    if isinstance(target, AcceleratedModel):
        return target.quantized if target.on_source else (*inputs.source.quantized, *target.quantized)
    return (*inputs.source.quantized, *target.quantized)
