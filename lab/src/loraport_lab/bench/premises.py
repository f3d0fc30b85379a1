"""What the method supposes of a pair and an adapter, as numbers of each layer: how small the drift is, and where."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from loraport.analysis.measures.rigidity import spectral_change
from loraport.compute import layer_generator
from loraport.errors import SettingsError
from loraport.inputs.rank import auto_rank
from loraport.methods.casa import casa
from loraport.methods.layer import Layer
from loraport.spectral.head import head_share
from loraport.spectral.kernels import norm


def premises(layers: Mapping[str, Layer]) -> dict[str, Tensor]:
    """Return one value a layer of each: [layers]."""
    rows = [_of_layer(name, layer) for name, layer in layers.items()]
    return {key: torch.tensor([row[key] for row in rows], dtype=torch.float64) for key in rows[0]}


def _of_layer(name: str, layer: Layer) -> dict[str, float]:
    if layer.basis is None or layer.target is None:
        raise SettingsError("the premises need the singular bases of both weights")
    weight = norm(layer.basis.S)
    update = casa(layer)
    kept = update.kept_correction(
        update.factorized(auto_rank(layer.lora.rank, low_rank=False), layer_generator(0, name))
    )
    lora, basis = (layer.lora.transposed(), layer.basis.transposed()) if layer.is_wide else (layer.lora, layer.basis)
    # ‖D·v_i‖, as the drift's routing has it of the upright layer
    sent = torch.linalg.vector_norm(torch.linalg.qr(lora.B).R @ (lora.A @ basis.Vh.mT), dim=0)
    facts = update.facts
    return {
        "drift": norm(layer.drift) / weight,
        "rho2": spectral_change(layer.basis.S, layer.target.S),
        "lora": layer.lora.norm() / weight,
        "head_drift": head_share(layer.routing().send),
        "head_lora": head_share(sent),
        "clusters": facts["clusters"] / max(1, facts["k"]),
        "largest_cluster": facts["largest_cluster"],
        "restored": facts["restored"],
        "arbitrated": facts["arbitrated"] / len(layer.basis.S) ** 2,
        "kept": float("nan") if kept is None else kept,
    }
