"""Core undo: the LoRA takes back only the drift inside its own subspaces. Ours; no paper."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from loraport.methods.layer import Layer, Update
from loraport.spectral.projections import on_span, span_of
from loraport.spectral.svd import LowRank


@dataclass(frozen=True)
class CoreSettings:
    """Core undo has nothing to set."""


def core(layer: Layer, settings: CoreSettings = CoreSettings()) -> Update:
    """The LoRA's update without the drift between its own input and output subspaces (ours).

    D' = D_lora − P_B·D_fft·P_A, with P_B, P_A the projectors on the columns of B and the rows of A:
    B' = B and A' = A − B⁺·D_fft·P_A

    The rank stays the LoRA's own, exactly, and no basis of a weight is needed. Outside of span(B) and span(A) the
    distilled weight is left alone. Directions of B and A that are only rounding do not count, so a LoRA padded with
    zeros gives the same update. Where B is zero nothing is taken: unlike CASA's, a zero LoRA stays a zero LoRA; but a
    strength slider on the result scales the taken drift too.
    """
    B, A = layer.lora.B, layer.lora.A
    left, right = span_of(B), span_of(A.mT)
    seen = on_span((left.U.mT @ layer.drift).mT, right.U).mT  # P_B's coordinates of P_B·D_fft·P_A
    pulled_back = left.Vh.mT @ (seen / left.S[:, None])  # B⁺·D_fft·P_A
    size = torch.linalg.vector_norm(layer.drift)
    share = float(torch.linalg.vector_norm(seen) / size) if size else 0.0
    return Update(LowRank(B, A - pulled_back, layer.lora.lost_energy), None, {"amount": share})
