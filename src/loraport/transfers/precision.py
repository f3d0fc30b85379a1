"""Say what rounding costs a finished transfer: in the factors that are written, and in decisions with thresholds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch

from loraport.files.adapters.casting import balanced, rounding_loss
from loraport.inputs.open import TransferInputs
from loraport.spectral.low_rank import LowRank
from loraport.transfers.results import LayerResult

MATTERS = 0.01
"""Share of an update that rounding to the output's dtype may change without a note: bf16 changes 0.2 %."""

CLOSE = 1e-4
"""Share of a layer's entries on the threshold of arbitration from which on the user gets a note."""


def with_rounding(inputs: TransferInputs, layers: Iterable[LayerResult], dtype: torch.dtype) -> tuple[LayerResult, ...]:
    """Return the rows, with what rounding costs the layers that are plain copies."""
    rows = []
    for row in layers:
        update = inputs.lora.updates.get(row.name)
        if row.status == "copied" and row.rounding is None and isinstance(update, LowRank):
            row = replace(row, rounding=rounding_loss(balanced(update, dtype), dtype))
        rows.append(row)
    return tuple(rows)


def precision_notes(layers: Sequence[LayerResult], dtype: str) -> list[str]:
    """Say where rounding changes more of an update than a reader would expect."""
    notes, of = [], f"of {len(layers)} layers"
    if rounded := [row for row in layers if (row.rounding or 0) > MATTERS]:
        worst = max(rounded, key=lambda row: row.rounding or 0)
        remedy = "bf16 or fp32" if dtype == "fp16" else "fp32"
        notes.append(
            f"rounding to {dtype} changes the update by more than 1 % in {len(rounded)} {of} ({worst.name}: "
            f"{100 * (worst.rounding or 0):.2g} %); {remedy} keeps it"
        )
    if close := [row for row in layers if (row.borderline or 0) > CLOSE * row.shape[0] * row.shape[1]]:
        notes.append(
            f"in {len(close)} {of} more than one entry in ten thousand lies on the threshold of arbitration, where "
            f"rounding decides ({close[0].name}: {close[0].borderline} entries); another machine may decide otherwise"
        )
    return notes
