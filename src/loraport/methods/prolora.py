"""ProLoRA (arXiv 2506.04244): subspace and null space projected apart, on one layer."""

from __future__ import annotations

from loraport.errors import SettingsError
from loraport.methods.layer import Layer, Update
from loraport.methods.settings import PROLORA, ProloraSettings
from loraport.methods.subspace import leading, similarity, without_spectrum
from loraport.spectral.basis import Basis
from loraport.spectral.low_rank import LowRank
from loraport.spectral.projections import off_span, on_span, projected, projected_away, side_by_side


def prolora(layer: Layer, settings: ProloraSettings = PROLORA) -> Update:
    """Return two blocks of the LoRA's update, projected from the source's spaces onto the target's (ProLoRA's Eq. 3).

    D' = P_t·P_s·D_lora·Q_s·Q_t + P_t'·P_s'·D_lora·Q_s'·Q_t', with P = U_k·U_kᵀ, Q = V_k·V_kᵀ and X' = I − X
    without null space: the first block alone; with cross terms: (P_t·P_s + P_t'·P_s')·D_lora·(Q_s·Q_t + Q_s'·Q_t')

    Built from the factors, B' = [P_t·P_s·B, P_t'·P_s'·B] and A' likewise: rank 2r exactly, r in both variants. The size
    never grows; a random update on equal models keeps √(ab + (1−a)(1−b)) of it, a = k/out, b = k/in. The paper has no
    code, and this is what could be recovered of it. Where we chose: the cut-off (stated nowhere), and the layer filter
    as min(Φ_left, Φ_right) ≥ phi_min. That filter says something on truncated bases only: see `overlap`.
    """
    bases = _bases_of(layer)
    if (same := without_spectrum(layer.lora, source=bases[0], target=bases[1])) is not None:
        return same
    source, target = (leading(basis, settings.subspace) for basis in bases)
    phi = similarity(source, target)
    ks, kt = len(source.S), len(target.S)
    facts = {"k": ks, "k_target": kt, "overlap": phi, "overlap_random": min(ks, kt) / max(layer.drift.shape)}
    if phi < settings.phi_min:
        return Update.none(
            layer.lora,
            f"source and target subspaces overlap by {phi:.3f}, less than phi_min {settings.phi_min:g} "
            f"(unrelated ones: {facts['overlap_random']:.3f}); --phi-min 0 keeps every layer",
            facts,
        )
    return Update(_moved(layer.lora, source, target, settings), None, facts)


def _moved(lora: LowRank, source: Basis, target: Basis, settings: ProloraSettings) -> LowRank:
    """Return the LoRA's factors, projected as the settings ask."""
    if settings.cross_terms:
        B = on_span(on_span(lora.B, source.U), target.U) + off_span(off_span(lora.B, source.U), target.U)
        V_s, V_t, A = source.Vh.mT, target.Vh.mT, lora.A.mT
        return LowRank(B, (on_span(on_span(A, V_s), V_t) + off_span(off_span(A, V_s), V_t)).mT, lora.lost_energy)
    inside = projected(projected(lora, source.U, source.Vh.mT), target.U, target.Vh.mT)
    if not settings.null_space:
        return inside
    outside = projected_away(projected_away(lora, source.U, source.Vh.mT), target.U, target.Vh.mT)
    return side_by_side(inside, outside)


def _bases_of(layer: Layer) -> tuple[Basis, Basis]:
    if layer.basis is None or layer.target is None:
        raise SettingsError(
            "prolora needs the singular bases of both weights; pass decompose(W_s) as Layer.basis and decompose(W_t) "
            "as Layer.target"
        )
    return layer.basis, layer.target
