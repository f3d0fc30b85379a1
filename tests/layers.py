"""Random layers with a spectrum, a drift and a LoRA, in float64."""

import torch

from loraport.methods.layer import Layer
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank

SHAPES = {"square": (24, 24), "tall": (40, 18), "wide": (18, 40)}


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def orthogonal(n: int, seed: int) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(n, n, generator=generator(seed), dtype=torch.float64)).Q


def random_weights(shape: tuple[int, int], seed: int, *, rank: int = 4, drift: float = 0.3, lora: float = 0.3):
    """(W_s, W_t, LowRank): a decaying spectrum with a plateau, a full-rank drift, a LoRA, of given relative sizes."""
    g = generator(seed)
    out, inn = shape
    n = min(shape)
    U = torch.linalg.qr(torch.randn(out, n, generator=g, dtype=torch.float64)).Q
    V = torch.linalg.qr(torch.randn(inn, n, generator=g, dtype=torch.float64)).Q
    S = 5.0 / (1 + torch.arange(n, dtype=torch.float64)) ** 0.6 + 0.05 * torch.rand(n, generator=g, dtype=torch.float64)
    S[n // 3 : n // 2] = S[n // 3 : n // 2].mean() + 1e-3 * torch.arange(n // 2 - n // 3, dtype=torch.float64).flip(0)
    W_s = U @ torch.diag(S.sort(descending=True).values) @ V.T
    F = torch.randn(out, inn, generator=g, dtype=torch.float64)
    B = torch.randn(out, rank, generator=g, dtype=torch.float64)
    A = torch.randn(rank, inn, generator=g, dtype=torch.float64)
    size = W_s.norm()
    B = B * (lora * size / (B @ A).norm())
    return W_s, W_s + F * (drift * size / F.norm()), LowRank(B, A)


def layer_of(W_s: torch.Tensor, W_t: torch.Tensor, lora: LowRank) -> Layer:
    return Layer(lora, W_t - W_s, decompose(W_s))


def both_bases(W_s: torch.Tensor, W_t: torch.Tensor, lora: LowRank) -> Layer:
    """The layer with the target's basis too, for the methods that project."""
    return Layer(lora, W_t - W_s, decompose(W_s), decompose(W_t))


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    """‖a − b‖ / ‖b‖."""
    return float((a - b).norm() / b.norm())
