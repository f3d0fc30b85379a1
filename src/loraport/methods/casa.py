"""CASA: cluster-aware spectral arbitration (arXiv 2605.01929, §4), whole, on one layer; read it from top to bottom.

    Eq. 2      both updates in the source's singular basis: C_lora, C_fft         spectral/routing.py
    Eq. 3–4    leading directions that the LoRA turns into each other: clusters   spectral/clusters.py
    Eq. 5–7    clusters that the drift uses most dominate                         spectral/arbitration.py
    Eq. 8      off them, the drift is taken back                                  spectral/correction.py
    Eq. 9–13   on them, the riskiest entries are where both push the same way     spectral/arbitration.py
    Eq. 14     of these, only the stronger of the two updates remains             spectral/arbitration.py

Symbols are those of `help(loraport)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.errors import SettingsError
from loraport.methods.layer import Layer, Parts, Update
from loraport.methods.settings import PAPER, CasaSettings
from loraport.spectral.arbitration import (
    arbitrated_part,
    count_borderline,
    dominant_directions,
    dominant_mask,
    over_activation_risk,
    risk_candidates,
    risk_threshold,
)
from loraport.spectral.basis import Basis, energy_rank
from loraport.spectral.clusters import cluster_sizes, singular_clusters
from loraport.spectral.correction import Removal
from loraport.spectral.kernels import Entries, entries_at
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import Routing, routing_factors


def casa(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """Return the LoRA's update, restored where the drift is weak, arbitrated where both push the same way (Eq. 2–14).

    D_casa = D_lora − restore·(I − P_U)·D_fft·(I − P_V) − U·[K ∘ sign(C_lora) ∘ min(|C_lora|, |C_fft|)]·Vᵀ
    with P_U, P_V the projectors on dominant receivers and senders (`dominant_receivers`, `dominant_senders`) and K the
    arbitrated entries (`arbitrated`), all in `Decisions`.

    A zero LoRA does not transfer to zero: off the dominant mask the rule writes −C_fft, so a strength slider on the
    result also scales that counter-drift; `casa_parts` writes it apart. Where we differ from the paper: bases are thin,
    and what lies outside them is handled as a block (a full SVD completes them arbitrarily); Eq. 14 is read as its
    prose has it (see `arbitrated_part`). A wide layer is the transpose of a tall one.
    """
    if layer.is_wide:
        return casa(layer.transposed(), settings).transposed()
    decisions = decide(layer, settings)
    return decided_update(layer, decisions, settings)


def decide(layer: Layer, settings: CasaSettings = PAPER) -> Decisions:
    """Return which directions dominate and which entries are arbitrated, in a square or tall layer (Eq. 2–7, 9–13).

    Entries are compared with thresholds in the precision of the drift's routing (`precision_for`): double where that is
    affordable, since an entry that is rounded across its threshold changes the result, unlike one that is only a little
    off. A weight of zeros has no leading direction, and so neither clusters nor anything that dominates; directions
    that are only rounding take no part in arbitration.
    """
    drift_routing, basis = layer.routing(), _basis_of(layer)  # Eq. 2: C_fft
    C_fft, dtype = drift_routing.C, drift_routing.C.dtype
    factors = routing_factors(LowRank(layer.lora.B.to(dtype), layer.lora.A.to(dtype)), basis)  # Eq. 2: C_lora, factored
    C_lora = factors.dense()
    # Only comparisons need `dtype`: the products of these factors with the LoRA's own come later, in the LoRA's dtype.
    lora_routing = LowRank(factors.B.to(layer.lora.B.dtype), factors.A.to(layer.lora.A.dtype))

    k, S = leading_directions(basis, settings), basis.S_as(torch.float64)  # Eq. 3
    labels = singular_clusters(C_lora[:k, :k].double(), S[:k], tau=settings.tau, eps=settings.eps)  # Eq. 4
    sizes = cluster_sizes(labels)

    send, receive = _strengths(drift_routing, k, settings)  # what Eq. 5–6 take the means of
    dominant_senders = dominant_directions(send, labels, sizes, q_dom=settings.q_dom)  # Eq. 5–6, the text below
    dominant_receivers = dominant_directions(receive, labels, sizes, q_dom=settings.q_dom)
    shared = (basis, labels, sizes, lora_routing, C_lora, drift_routing, dominant_senders, dominant_receivers)
    if not settings.arbitrate:
        no_entries = labels.new_empty(0)
        return Decisions(*shared, no_entries)

    candidates = risk_candidates(C_lora, C_fft, dominant_receivers, dominant_senders, basis.rank)  # Eq. 7, 9
    risk = over_activation_risk(candidates, C_lora, C_fft, labels, len(sizes), eps=settings.eps_context)  # Eq. 10–13
    threshold = risk_threshold(risk, settings.q_act)  # the text below Eq. 13
    arbitrated = candidates.indices[risk > threshold]
    routings = (C_lora, factors.column_norms), (C_fft, drift_routing.column_norms)
    borderline = count_borderline(candidates, risk, routings, threshold, uncertainty=basis.uncertainty(dtype))
    return Decisions(*shared, arbitrated, borderline)


def decided_update(layer: Layer, decisions: Decisions, settings: CasaSettings) -> Update:
    """Return the update that the decisions about a square or tall layer lead to (Eq. 8, 14)."""
    entries = arbitrated_part(decisions.C_lora, decisions.drift_routing.C, decisions.arbitrated_indices)  # Eq. 14
    removal = decisions.removal(layer.drift, settings.restore, entries)  # Eq. 8
    return Update(layer.lora, removal, decisions.facts(settings), lora_routing=decisions.lora_routing)


def casa_parts(layer: Layer, settings: CasaSettings = PAPER) -> Parts:
    """Return CASA's update in two: what is left of the LoRA, and what is taken back of the drift (Eq. 8, 14).

    adapter       = D_lora − U·[K ∘ (|C_lora| ≤ |C_fft|) ∘ C_lora]·Vᵀ
    counter-drift = −restore·(I − P_U)·D_fft·(I − P_V) − U·[K ∘ (|C_lora| > |C_fft|) ∘ C_fft]·Vᵀ

    Arbitration keeps the stronger of the two. Where that is the drift, the LoRA's entry is removed: the adapter
    changes. Where it is the LoRA, the drift's entry is taken back: that is counter-drift, as restoration is. So either
    part is its own update with entries left out, the first of the LoRA, the second of −D_fft, and they add up to
    `casa`. With a zero LoRA all is in the second, without a drift all is in the first.
    """
    if layer.is_wide:
        return casa_parts(layer.transposed(), settings).transposed()
    decisions = decide(layer, settings)
    facts, indices, routing = decisions.facts(settings), decisions.arbitrated_indices, decisions.lora_routing
    C_lora, C_fft = (Entries(indices, entries_at(C, indices)) for C in (decisions.C_lora, decisions.drift_routing.C))
    lora_wins = C_lora.values.abs() > C_fft.values.abs()
    from_lora = decisions.removal(layer.drift, 0.0, C_lora.where(~lora_wins))
    from_drift = decisions.removal(layer.drift, settings.restore, C_fft.where(lora_wins))
    adapter = Update(layer.lora, from_lora, facts, lora_routing=routing)
    return Parts(adapter, Update(layer.lora.scaled(0.0), from_drift, facts, lora_routing=routing.scaled(0.0)))


@dataclass(frozen=True)
class Decisions:
    """What CASA decides about each entry of the routing of one square or tall layer, and what it is decided by."""

    basis: Basis
    labels: Int[Tensor, " k"]
    """The cluster of each leading direction."""
    sizes: Int[Tensor, " m"]
    """How many directions each cluster has."""
    lora_routing: LowRank
    """C_lora in factors."""
    C_lora: Float[Tensor, "n n"]
    drift_routing: Routing
    """C_fft, and what the drift sends and receives."""
    dominant_senders: Bool[Tensor, " n"]
    """P_V as a mask: the right directions that it projects on."""
    dominant_receivers: Bool[Tensor, " n"]
    """P_U as a mask: the left directions that it projects on."""
    arbitrated_indices: Int[Tensor, " a"]
    """Flat indices of the arbitrated entries; none where arbitration is off."""
    borderline: int = 0
    """How many candidates lie closer to the threshold of arbitration than the arithmetic is exact."""

    @property
    def restored(self) -> Bool[Tensor, "n n"]:
        """Entries off the dominant mask, from which the drift is taken back; on it, what is not arbitrated stays."""
        return ~dominant_mask(self.dominant_receivers, self.dominant_senders)

    @property
    def arbitrated(self) -> Bool[Tensor, "n n"]:
        """K: the arbitrated entries as a mask."""
        mask = torch.zeros_like(self.C_lora, dtype=torch.bool)
        mask.view(-1)[self.arbitrated_indices] = True
        return mask

    def removal(self, D_fft: Float[Tensor, "out n"], restore: float, entries: Entries) -> Removal:
        """Return what is removed: so much of the drift off the mask (Eq. 8), and single entries (Eq. 14)."""
        routing, entries = self.drift_routing.to(D_fft.dtype), entries.to(D_fft.dtype)
        return Removal(D_fft, self.basis, routing, self.dominant_receivers, self.dominant_senders, restore, entries)

    def facts(self, settings: CasaSettings) -> dict[str, Any]:
        """Return what a report says of the layer. With `restore` 0, or without a drift, no entry is restored."""
        k = len(self.labels)
        weak = (~self.dominant_receivers).double().mean() * (~self.dominant_senders).double().mean()
        restored = weak * self.drift_routing.send.any() if settings.restore > 0 else torch.zeros_like(weak)
        largest = self.sizes.max().double() / k if k else torch.zeros_like(weak)
        largest_share, restored_share = torch.stack([largest, restored]).tolist()
        return {
            "k": k,
            "clusters": len(self.sizes),
            "largest_cluster": largest_share,
            "restored": restored_share,
            "arbitrated": len(self.arbitrated_indices),
            "borderline": self.borderline,
        }


def leading_directions(basis: Basis, settings: CasaSettings) -> int:
    """Return k of Eq. 3 for this layer's shape."""
    return energy_rank(basis.S_as(torch.float64), settings.energy if basis.is_square else settings.energy_rectangular)


def _strengths(drift_routing: Routing, k: int, settings: CasaSettings) -> tuple[Tensor, Tensor]:
    """Return how much each direction sends and receives, over the whole drift or only inside the k × k block."""
    if settings.densities == "whole":
        return drift_routing.send, drift_routing.receive
    return drift_routing.leading(k)


def _basis_of(layer: Layer) -> Basis:
    if layer.basis is None:
        raise SettingsError("CASA needs the singular basis of the source weight; pass decompose(W_s) as Layer.basis")
    return layer.basis
