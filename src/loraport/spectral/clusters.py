"""Clusters of singular directions: the connected parts of the graph of rotations that the LoRA predicts (Eq. 4)."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.spectral.kernels import true_indices


def predicted_rotation(C_lora: Float[Tensor, "k k"], S: Float[Tensor, " k"], *, eps: float) -> Float[Tensor, "k k"]:
    """Return how far the LoRA turns direction j into direction i, to first order (Eq. 4).

    R(i, j) = |C_lora(i, j)| / (|S_i − S_j| + eps), and 0 on the diagonal.
    """
    gap = (S[:, None] - S[None, :]).abs_()
    return C_lora.abs().div_(gap.add_(eps)).fill_diagonal_(0)


def singular_clusters(
    C_lora: Float[Tensor, "k k"], S: Float[Tensor, " k"], *, tau: float, eps: float
) -> Int[Tensor, " k"]:
    """Return the cluster number of each leading direction (Eq. 4 and the text below it).

    i and j are connected where R(i, j) > tau or R(j, i) > tau; clusters are the connected components, numbered by their
    first member. The rotation is symmetrised by that "or", so a directed and an undirected reading agree.
    """
    return connected_labels(predicted_rotation(C_lora, S, eps=eps) > tau)


def connected_labels(linked: Bool[Tensor, "k k"]) -> Int[Tensor, " k"]:
    """Return the connected component of each node of a graph, whichever way links point, numbered by first members."""
    nodes = torch.arange(len(linked), device=linked.device)
    links = true_indices(linked)
    one, other = links // max(1, len(linked)), links % max(1, len(linked))
    root, jumps = nodes, len(linked).bit_length()
    while True:
        # Every root hooks to the least root across a link from its tree; then pointers jump, each twice as far, until
        # all stand at a root. All on the tensors' device, where a card has thousands of links at once.
        ends = root[one], root[other]
        least = torch.minimum(*ends)
        hooked = root.clone()
        for end in ends:
            hooked.scatter_reduce_(0, end, least, "amin")
        for _ in range(jumps):
            hooked = hooked[hooked]
        if torch.equal(hooked, root):
            break
        root = hooked
    return ((root == nodes).cumsum(0) - 1)[root]  # a component's root is its first member


def cluster_sizes(labels: Int[Tensor, " k"]) -> Int[Tensor, " m"]:
    """Return the number of members of each cluster."""
    return torch.bincount(labels)
