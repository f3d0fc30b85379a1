"""A published rule that is expected not to help here: a lab that could not show it to fail would be worthless."""

from __future__ import annotations

import torch
from torch import Tensor

from loraport.errors import SettingsError
from loraport.methods.layer import Layer
from loraport.spectral.basis import Basis


def theseus(layer: Layer) -> Tensor:
    """Return the LoRA carried from the source's singular directions to the target's, paired by their places.

    D' = T_out·D·T_in with the isometries that take u_i of the source to u_i of the target and v_i to v_i: the polar
    factors of U_t·Σ·U_sᵀ and V_s·Σ·V_tᵀ, as Theseus (arXiv 2602.12952) has them where it sees no data. A pair (u, v)
    may have either sign, and the formula says nothing of it: here each of the target has the one nearer to the source.
    What the LoRA has outside of both bases stays; the polar factor is arbitrary there. Singular values that change
    places under the drift are paired wrongly, and near-equal ones by chance: hence a negative control.
    """
    if layer.basis is None or layer.target is None:
        raise SettingsError("theseus needs the singular bases of both weights")
    source, target = layer.basis, layer.target
    signs = _nearer_signs(source, target)
    D = layer.lora.dense()
    D = _carried(D, source.U, target.U * signs)
    return _carried(D.mT, source.Vh.mT, target.Vh.mT * signs).mT


def _nearer_signs(source: Basis, target: Basis) -> Tensor:
    """Return the sign of each of the target's pairs that brings it nearer to the source's pair."""
    alike = (source.U * target.U).sum(0) + (source.Vh * target.Vh).sum(1)
    return torch.where(alike < 0, -1.0, 1.0).to(alike.dtype)


def _carried(D: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return columns of D taken from one set of orthonormal directions to another; what is outside of both stays."""
    inside = source.mT @ D
    outside = D - source @ inside
    return target @ inside + outside - target @ (target.mT @ outside)
