"""Weights and updates into which a structure is planted, so that a statistic can be asked to find it."""

import torch
from torch import Tensor

from loraport.spectral.basis import SingularBasis
from tests.layers import generator, orthogonal


def basis_with(S: Tensor, seed: int = 0, out: int | None = None, inn: int | None = None) -> SingularBasis:
    """A weight's basis with this spectrum and random directions."""
    n = len(S)
    return SingularBasis(orthogonal(out or n, seed)[:, :n], S, orthogonal(inn or n, seed + 1)[:n])


def plateaus(count: int, size: int, *, inside: float = 1e-4) -> tuple[Tensor, Tensor]:
    """(S, labels): a staircase of `count` steps of `size` values that differ by `inside`; the steps are 0.5 apart."""
    labels = torch.arange(count).repeat_interleave(size)
    return 1.0 + 0.5 * (count - labels).double() - inside * torch.arange(count * size).double(), labels


def separate(n: int) -> Tensor:
    """A spectrum whose values are all 0.5 apart."""
    return 1.0 + 0.5 * torch.arange(n, 0, -1).double()


def noise(*shape: int, seed: int) -> Tensor:
    """Standard normal entries in float64."""
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def inside_blocks(labels: Tensor, size: float, seed: int) -> Tensor:
    """A routing matrix with entries of the given size inside the blocks on the diagonal, and nothing elsewhere."""
    same = labels[:, None] == labels[None, :]
    return size * noise(len(labels), len(labels), seed=seed) * same


def dense(C: Tensor, basis: SingularBasis) -> Tensor:
    """The update with this routing."""
    return basis.U @ C @ basis.Vh


def turned(basis: SingularBasis, labels: Tensor, seed: int) -> SingularBasis:
    """The basis with its directions turned freely inside each cluster, left and right alike."""
    turn = torch.zeros(len(labels), len(labels), dtype=torch.float64)
    for m in labels.unique():
        here = (labels == m).nonzero().flatten()
        turn[here[:, None], here[None, :]] = orthogonal(len(here), seed + int(m))
    return SingularBasis(basis.U @ turn, basis.S, turn.mT @ basis.Vh)
