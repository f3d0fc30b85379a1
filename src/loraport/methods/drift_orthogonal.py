"""Drift-orthogonal reuse: the LoRA without the directions in which the distillation moved most. Ours; no paper."""

from __future__ import annotations

import torch

from loraport.methods.layer import Layer, Update
from loraport.methods.settings import DRIFT_ORTHOGONAL, DriftOrthogonalSettings
from loraport.spectral.krylov import leading_basis
from loraport.spectral.projections import numerical_rank, projected_away

SEED = 0
"""Of the randomised search for the drift's leading directions: the same on every run, whatever the run's own seed."""


def drift_orthogonal(layer: Layer, settings: DriftOrthogonalSettings = DRIFT_ORTHOGONAL) -> Update:
    """Return the LoRA's update made orthogonal to the drift's k leading directions on both sides (ours).

    D' = (I − U_k·U_kᵀ)·D_lora·(I − V_k·V_kᵀ), with U_k, V_k the top singular vectors of D_fft

    NP-LoRA (arXiv 2511.11051) removes one adapter's leading input directions from another when both are merged; here
    the drift takes the place of the other adapter, and outputs are treated as inputs are. Nothing of the drift is taken
    back. Where the k-th and the next singular value of the drift are equal, which one is removed is arbitrary.
    """
    shape = layer.drift.shape
    k = min(settings.directions, *shape)
    basis = leading_basis(layer.drift, k, generator=torch.Generator().manual_seed(SEED))
    k = min(k, numerical_rank(basis.S, (shape[0], shape[1])))
    return Update(projected_away(layer.lora, basis.U[:, :k], basis.Vh[:k].mT), None, {"k": k})
