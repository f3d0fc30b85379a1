"""Dominance, over-activation risk and arbitration: Eq. 5–7 and 9–14. Restoration, Eq. 8, is in `correction`.

The paper uses S twice; here `S` is the spectrum and the score of Eq. 13 is `risk`.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.spectral.clusters import cluster_sizes
from loraport.spectral.kernels import Entries, entries_at, kth_smallest, positive_indices
from loraport.spectral.routing import ALIGNMENT_EPS, directional_alignment


def routing_density(
    strength: Float[Tensor, " n"], labels: Int[Tensor, " k"], sizes: Int[Tensor, " m"]
) -> Float[Tensor, " m"]:
    """Return ρ(m) = mean_{i∈m} strength_i of each cluster m, as senders or as receivers (Eq. 5–6)."""
    members = sizes.double()
    total = torch.zeros_like(members).index_add_(0, labels, strength[: len(labels)].double())
    return (total / members).to(strength.dtype)


def dominant_directions(
    strength: Float[Tensor, " n"], labels: Int[Tensor, " k"], sizes: Int[Tensor, " m"] | None = None, *, q_dom: float
) -> Bool[Tensor, " n"]:
    """Return the members of the clusters whose density is at least the q_dom quantile over clusters (below Eq. 6).

    Linear interpolation between clusters; directions beyond the k leading ones are never dominant themselves. `sizes`:
    those of the clusters, where they are known; to count them a card is waited for.
    """
    if len(labels) == 0:
        return torch.zeros(len(strength), dtype=torch.bool, device=strength.device)
    density = routing_density(strength, labels, cluster_sizes(labels) if sizes is None else sizes)
    threshold = torch.quantile(density.double(), q_dom).to(density.dtype)
    dominant = torch.zeros(len(strength), dtype=torch.bool, device=strength.device)
    dominant[: len(labels)] = (density >= threshold)[labels]
    return dominant


def dominant_mask(dominant_receivers: Bool[Tensor, " n"], dominant_senders: Bool[Tensor, " n"]) -> Bool[Tensor, "n n"]:
    """Return D: 1 iff direction i belongs to a dominant receiver cluster or j to a dominant sender cluster (Eq. 7)."""
    return dominant_receivers[:, None] | dominant_senders[None, :]


def risk_candidates(
    C_lora: Float[Tensor, "n n"],
    C_fft: Float[Tensor, "n n"],
    dominant_receivers: Bool[Tensor, " n"],
    dominant_senders: Bool[Tensor, " n"],
    rank: int | None = None,
) -> Entries:
    """Return the dominant entries in which both updates push the same way, with C_lora · C_fft of each (Eq. 7, 9).

    Directions from `rank` on are not the weight's but its rounding's, so nothing there is a candidate.
    """
    product = C_lora * C_fft
    if rank is not None and rank < len(product):
        product[rank:] = 0
        product[:, rank:] = 0
    indices = positive_indices(product, dominant_receivers, dominant_senders)
    return Entries(indices, entries_at(product, indices))


def over_activation_risk(
    candidates: Entries,
    C_lora: Float[Tensor, "n n"],
    C_fft: Float[Tensor, "n n"],
    labels: Int[Tensor, " k"],
    count: int | None = None,
    *,
    eps: float = ALIGNMENT_EPS,
) -> Float[Tensor, " e"]:
    """Return Risk(i, j) = C_lora · C_fft · Context of each candidate (Eq. 12, 13).

    Context is the alignment of the two routing blocks around an entry, and 1 beyond the k leading directions.
    """
    n, k = len(C_lora), len(labels)
    aligned = directional_alignment(C_lora[:k, :k], C_fft[:k, :k], labels, count, eps=eps)
    context = torch.nn.functional.pad(aligned, (0, 1, 0, 1), value=1.0)  # one cluster more, for all directions beyond k
    groups = torch.nn.functional.pad(labels, (0, n - k), value=len(aligned))
    of_entries = context.index_select(1, groups).index_select(0, groups)
    return candidates.values * entries_at(of_entries, candidates.indices)


def risk_threshold(risk: Float[Tensor, " e"], q_act: float) -> Float[Tensor, ""]:
    """Return the risk that an arbitrated entry exceeds: the q_act quantile of all candidates' (below Eq. 13).

    Exact: exceeding the linearly interpolated quantile is exceeding its lower neighbour in order. Infinite where there
    are no candidates.
    """
    if len(risk) == 0:
        return risk.new_full((), torch.inf)
    # 0.85 · 20 is 16.999…: a place that is whole but for rounding counts as whole. The share 1e-15 serves places in the
    # thousands and millions, where doubles lie further apart than 1e-12, and 1e-12 small ones (q_act as 1 − 0.99).
    return kth_smallest(risk, int(q_act * (len(risk) - 1) * (1 + 1e-15) + 1e-12) + 1)


NEAR = 1e-3
"""Distance from the threshold, as a share of it, within which entries are looked at more closely."""


def count_borderline(
    candidates: Entries,
    risk: Float[Tensor, " e"],
    routings: tuple[tuple[Float[Tensor, "n n"], Float[Tensor, " n"]], ...],
    threshold: Float[Tensor, ""],
    *,
    uncertainty: float,
) -> int:
    """Return how many entries the error of the singular directions could put on the other side of the threshold.

    `routings`: both routing matrices, each with the norms of its columns. The paper has no such count. A direction that
    is off by `uncertainty` moves an entry of either routing by that share of its column's root mean square; counted is
    a candidate whose risk can move so as far as the threshold.
    """
    if len(candidates) == 0:
        return 0
    near = ((risk - threshold).abs() <= NEAR * threshold.abs()).nonzero().squeeze(1)
    indices, distance = candidates.indices[near], (risk[near] - threshold).abs()
    reach = torch.zeros_like(distance)
    for C, norms in routings:
        error = norms[indices % len(C)] * (uncertainty / len(C) ** 0.5)
        reach += error / entries_at(C, indices).abs()
    # Less one: the threshold is itself the risk of a candidate, which is thus at no distance and always counted.
    return max(0, int((distance <= reach * risk[near].abs()).sum()) - 1)


def arbitrated_part(
    C_lora: Float[Tensor, "n n"], C_fft: Float[Tensor, "n n"], arbitrated: Int[Tensor, " a"]
) -> Entries:
    """Return what arbitration removes from C_lora: sign(C_lora) · min(|C_lora|, |C_fft|) (Eq. 14).

    Both push the same way there, and the effective routing C_fft + C_casa becomes the stronger of the two, so
    C_casa = C_lora − C_fft where |C_lora| > |C_fft|, else 0. Eq. 14 as printed puts the subtraction inside the sign;
    taken literally it would cancel the distilled routing wherever that is the stronger one, against the paper's own
    prose and its published code, so we follow those two.
    """
    lora, drift = entries_at(C_lora, arbitrated), entries_at(C_fft, arbitrated)
    return Entries(arbitrated, torch.where(lora.abs() < drift.abs(), lora, drift))
