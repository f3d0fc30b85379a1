"""Dominance, restoration, over-activation risk and arbitration: Eq. 5–14, one page in the paper, one page here.

The paper uses S twice; here `S` is the spectrum and the score of Eq. 13 is `risk`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.spectral.routing import directional_alignment


def routing_density(strength: Float[Tensor, " n"], labels: Int[Tensor, " k"]) -> Float[Tensor, " m"]:
    """Mean strength of a cluster's members, as senders or as receivers (Eq. 5–6): ρ(m) = mean_{i∈m} strength_i."""
    members = torch.bincount(labels).double()
    total = torch.zeros_like(members).index_add_(0, labels, strength[: len(labels)].double())
    return (total / members).to(strength.dtype)


def dominant_directions(
    strength: Float[Tensor, " n"], labels: Int[Tensor, " k"], *, q_dom: float
) -> Bool[Tensor, " n"]:
    """Members of the clusters whose density is at least the q_dom quantile over clusters (text below Eq. 6).

    Linear interpolation between clusters; directions beyond the k leading ones are never dominant themselves.
    """
    density = routing_density(strength, labels)
    threshold = torch.quantile(density.double(), q_dom).to(density.dtype)
    dominant = torch.zeros(len(strength), dtype=torch.bool, device=strength.device)
    dominant[: len(labels)] = (density >= threshold)[labels]
    return dominant


def dominant_mask(receivers: Bool[Tensor, " n"], senders: Bool[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    """D(i, j) = 1 iff i is in a dominant receiver or j in a dominant sender (Eq. 7)."""
    return receivers[:, None] | senders[None, :]


def over_activation_risk(
    C_lora: Float[Tensor, "n n"], C_fft: Float[Tensor, "n n"], labels: Int[Tensor, " k"]
) -> tuple[Float[Tensor, "n n"], Bool[Tensor, "n n"]]:
    """Risk(i, j) = C_lora · C_fft · Context, and where both updates push an entry the same way (Eq. 9, 12, 13).

    Context is the alignment of the two routing blocks around an entry, and 1 beyond the k leading directions.
    """
    k, risk = len(labels), C_lora * C_fft
    together = risk > 0
    aligned = directional_alignment(C_lora[:k, :k], C_fft[:k, :k], labels)
    risk[:k, :k] *= aligned[labels][:, labels]
    return risk, together


def risky_entries(risk: Float[Tensor, "n n"], candidates: Bool[Tensor, "n n"], *, q_act: float) -> Bool[Tensor, "n n"]:
    """Candidates whose risk exceeds the q_act quantile of the candidates' risks (text below Eq. 13).

    Exact, without a sort: exceeding the linearly interpolated quantile is exceeding its lower neighbour in order.
    """
    values = risk[candidates]
    if len(values) == 0:
        return torch.zeros_like(candidates)
    lower = torch.kthvalue(values, int(q_act * (len(values) - 1)) + 1).values
    return candidates & (risk > lower)


def arbitrated_part(
    C_lora: Float[Tensor, "n n"], C_fft: Float[Tensor, "n n"], arbitrated: Bool[Tensor, "n n"]
) -> Float[Tensor, "n n"]:
    """What arbitration takes from C_lora where both push the same way (Eq. 14): sign(C_lora) · min(|C_lora|, |C_fft|).

    The effective routing C_fft + C_casa becomes the stronger of the two, so C_casa = C_lora − C_fft where
    |C_lora| > |C_fft|, else 0. Eq. 14 as printed puts the subtraction inside the sign; taken literally it would cancel
    the distilled routing wherever that is the stronger one, against the paper's own prose and its published code, so we
    follow those two.
    """
    places = arbitrated.flatten().nonzero().squeeze(1)
    mine, theirs = C_lora.flatten()[places], C_fft.flatten()[places]
    found = torch.zeros_like(C_lora)
    found.view(-1)[places] = torch.where(mine.abs() < theirs.abs(), mine, theirs)
    return found
