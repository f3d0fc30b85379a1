"""LoRA-X's transfer rule (arXiv 2501.16559, ICLR 2025), applied to any LoRA; Cross-LoRA's too, at equal sizes."""

from __future__ import annotations

from loraport.errors import SettingsError
from loraport.methods.layer import Layer, Update
from loraport.methods.settings import LORAX, LoraxSettings
from loraport.methods.subspace import leading, without_spectrum
from loraport.spectral.projections import projected


def lorax(layer: Layer, settings: LoraxSettings = LORAX) -> Update:
    """Return the LoRA's update projected onto the target's leading singular directions (LoRA-X's third equation).

    D' = P_t·D_lora·Q_t, with P_t = U_k·U_kᵀ and Q_t = V_k·V_kᵀ from the target weight: B' = P_t·B, A' = A·Q_t

    The same map as Cross-LoRA's (arXiv 2508.05232, seventh equation) at equal sizes: its least-squares alignment of the
    source's directions reproduces the target's exactly, and the source cancels. The rank stays the LoRA's own; the size
    never grows. Where we differ: LoRA-X trains its adapters inside the source's subspace, we project LoRAs that were
    not; its paper reports that these lose clearly. Models of unequal sizes are refused elsewhere.
    """
    if layer.target is None:
        raise SettingsError("lora-x needs the singular basis of the target weight; pass decompose(W_t) as Layer.target")
    if (same := without_spectrum(layer.lora, target=layer.target)) is not None:
        return same
    kept = leading(layer.target, settings.subspace)
    return Update(projected(layer.lora, kept.U, kept.Vh.mT), None, {"k_target": len(kept.S)})
