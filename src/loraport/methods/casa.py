"""CASA: cluster-aware spectral arbitration (arXiv 2605.01929, §4), whole, on one layer."""

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
    risky_entries,
)
from loraport.spectral.basis import Basis, energy_rank
from loraport.spectral.clusters import cluster_sizes, singular_clusters
from loraport.spectral.correction import Taken
from loraport.spectral.kernels import Entries, entries_at
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import Routing, routing_factors


@dataclass(frozen=True)
class Arbitration:
    """What CASA sees in one square or tall layer, and what it decides about each entry of the n × n routing."""

    basis: Basis
    labels: Int[Tensor, " k"]
    lora: LowRank
    """C_lora in factors."""
    C_lora: Float[Tensor, "n n"]
    drift: Routing
    senders: Bool[Tensor, " n"]
    receivers: Bool[Tensor, " n"]
    places: Int[Tensor, " a"]
    """Entries where only the stronger of the two updates remains, in the rows laid end to end; none where it is off."""
    borderline: int = 0
    """Entries and links that lie closer to their threshold than the arithmetic is exact."""

    @property
    def restored(self) -> Bool[Tensor, "n n"]:
        """Entries off the dominant mask, from which the drift is taken back; on it, what is not arbitrated stays."""
        return ~dominant_mask(self.receivers, self.senders)

    @property
    def arbitrated(self) -> Bool[Tensor, "n n"]:
        """The arbitrated entries as a mask."""
        mask = torch.zeros_like(self.C_lora, dtype=torch.bool)
        mask.view(-1)[self.places] = True
        return mask

    def taken(self, D_fft: Float[Tensor, "out n"], restore: float, struck: Entries) -> Taken:
        """What is taken of the update: so much of the drift off the mask (Eq. 8), and single entries (Eq. 14)."""
        drift, struck = self.drift.to(D_fft.dtype), struck.to(D_fft.dtype)
        return Taken(D_fft, self.basis, drift, self.receivers, self.senders, restore, struck)

    def facts(self, settings: CasaSettings) -> dict[str, Any]:
        """What a report says of the layer. With `restore` 0, or without a drift, no entry is restored."""
        sizes, k = cluster_sizes(self.labels), len(self.labels)
        weak = float((~self.receivers).double().mean() * (~self.senders).double().mean())
        takes_back = settings.restore > 0 and bool(self.drift.send.any())
        return {
            "k": k,
            "clusters": len(sizes),
            "largest_cluster": int(sizes.max()) / k if k else 0.0,
            "restored": weak if takes_back else 0.0,
            "arbitrated": len(self.places),
            "borderline": self.borderline,
        }


def arbitration(layer: Layer, settings: CasaSettings = PAPER) -> Arbitration:
    """Clusters, dominance and risk of a square or tall layer (Eq. 2–7, 9–13).

    Thresholds are met in the precision of `precision_for`. A weight of zeros has no leading direction, and so neither
    clusters nor anything that dominates; directions that are only rounding take no part in arbitration.
    """
    drift, basis = layer.routing(), _basis_of(layer)  # Eq. 2
    k, dtype = leading_directions(basis, settings), drift.C.dtype  # Eq. 3
    lora = routing_factors(LowRank(layer.lora.B.to(dtype), layer.lora.A.to(dtype)), basis)  # Eq. 2
    C_lora, S = lora.dense(), basis.S_as(torch.float64)[:k]
    labels = singular_clusters(C_lora[:k, :k].double(), S, tau=settings.tau, eps=settings.eps)  # Eq. 4
    lora = LowRank(lora.B.to(layer.lora.B.dtype), lora.A.to(layer.lora.A.dtype))
    send, receive = _strengths(drift, k, settings)  # Eq. 5–6
    senders = dominant_directions(send, labels, q_dom=settings.q_dom)
    receivers = dominant_directions(receive, labels, q_dom=settings.q_dom)
    if not settings.arbitrate:
        return Arbitration(basis, labels, lora, C_lora, drift, senders, receivers, labels[:0])
    candidates = risk_candidates(C_lora, drift.C, receivers, senders, basis.rank)  # Eq. 7, 9
    risk = over_activation_risk(candidates, C_lora, drift.C, labels, eps=settings.eps_context)  # Eq. 10–13
    arbitrated = risky_entries(candidates, risk, q_act=settings.q_act)
    close = count_borderline(
        candidates, risk, C_lora, drift.C, q_act=settings.q_act, uncertainty=basis.uncertainty(dtype)
    )
    return Arbitration(basis, labels, lora, C_lora, drift, senders, receivers, arbitrated, close)


def casa(layer: Layer, settings: CasaSettings = PAPER) -> Update:
    """The LoRA's update, restored where the distillation is weak, arbitrated where both push the same way (Eq. 2–14).

    D_casa = D_lora − restore·(I − P_U)·D_fft·(I − P_V) − U·[K ∘ sign(C_lora) ∘ min(|C_lora|, |C_fft|)]·Vᵀ
    with P_U, P_V the projectors on dominant receivers and senders and K the arbitrated entries.

    A zero LoRA does not transfer to zero: off the dominant mask the rule writes −C_fft, so a strength slider on the
    result also scales that counter-drift; `casa_parts` writes it apart. Where we differ from the paper: bases are thin,
    and what lies outside them is handled as a block (a full SVD completes them arbitrarily); Eq. 14 is read as its
    prose has it (see `arbitrated_part`). A wide layer is the transpose of a tall one.
    """
    if layer.is_wide:
        return casa(layer.transposed(), settings).transposed()
    return arbitrated_update(layer, arbitration(layer, settings), settings)  # Eq. 2–13, 8 and 14


def arbitrated_update(layer: Layer, seen: Arbitration, settings: CasaSettings) -> Update:
    """The update that the decisions about a square or tall layer lead to (Eq. 8, 14)."""
    struck = arbitrated_part(seen.C_lora, seen.drift.C, seen.places)  # Eq. 14
    taken = seen.taken(layer.drift, settings.restore, struck)  # Eq. 8
    return Update(layer.lora, taken, seen.facts(settings), seen=seen.lora)


def casa_parts(layer: Layer, settings: CasaSettings = PAPER) -> Parts:
    """CASA's update in two: what is left of the LoRA, and what is taken back of the drift (Eq. 8, 14).

    adapter       = D_lora − U·[K ∘ (|C_lora| ≤ |C_fft|) ∘ C_lora]·Vᵀ
    counter-drift = −restore·(I − P_U)·D_fft·(I − P_V) − U·[K ∘ (|C_lora| > |C_fft|) ∘ C_fft]·Vᵀ

    Arbitration keeps the stronger of the two. Where that is the drift, the LoRA's entry is struck out: the adapter
    changes. Where it is the LoRA, the drift's entry is taken back: that is counter-drift, as restoration is. So either
    part is its own update with entries left out, the first of the LoRA, the second of −D_fft, and they add up to
    `casa`. With a zero LoRA all is in the second, without a drift all is in the first.
    """
    if layer.is_wide:
        return casa_parts(layer.transposed(), settings).transposed()
    seen = arbitration(layer, settings)  # Eq. 2–13
    facts, places = seen.facts(settings), seen.places
    C_lora, C_fft = (Entries(places, entries_at(X, places)) for X in (seen.C_lora, seen.drift.C))
    stronger = C_lora.values.abs() > C_fft.values.abs()
    from_lora = seen.taken(layer.drift, 0.0, C_lora.where(~stronger))
    from_drift = seen.taken(layer.drift, settings.restore, C_fft.where(stronger))
    adapter = Update(layer.lora, from_lora, facts, seen=seen.lora)
    return Parts(adapter, Update(layer.lora.scaled(0.0), from_drift, facts, seen=seen.lora.scaled(0.0)))


def leading_directions(basis: Basis, settings: CasaSettings) -> int:
    """k of Eq. 3 for this layer's shape."""
    return energy_rank(basis.S_as(torch.float64), settings.energy if basis.is_square else settings.energy_rectangular)


def _strengths(drift: Routing, k: int, settings: CasaSettings) -> tuple[Tensor, Tensor]:
    """How much each direction sends and receives, over the whole drift or only inside the k × k block."""
    if settings.densities == "whole":
        return drift.send, drift.receive
    return drift.leading(k)


def _basis_of(layer: Layer) -> Basis:
    if layer.basis is None:
        raise SettingsError("CASA needs the singular basis of the source weight; pass decompose(W_s) as Layer.basis")
    return layer.basis
