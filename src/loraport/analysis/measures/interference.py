"""Where a LoRA and a drift meet, block by block, and whether they push the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from loraport.analysis.measures.concentration import block_energy
from loraport.spectral.routing import block_sums


@dataclass(frozen=True)
class Interference:
    """How much of two routing matrices agrees and disagrees, as shares of ‖C_lora‖·‖C_fft‖ over the k × k block.

    constructive − destructive is the cosine of the two. `chance` is what each would be if every entry's relative sign
    were a coin flip: only what exceeds it is interference.
    """

    constructive: float
    destructive: float
    chance: float


def overlap(
    C_lora: Float[Tensor, "k k"], C_fft: Float[Tensor, "k k"], labels: Int[Tensor, " k"]
) -> Float[Tensor, "m m"]:
    """Return where both updates route much: the product of their RMS energies per block (paper §3.4); even is 1."""
    return block_energy(C_lora, labels) * block_energy(C_fft, labels)


def interference(C_lora: Float[Tensor, "k k"], C_fft: Float[Tensor, "k k"], labels: Int[Tensor, " k"]) -> Interference:
    """Return constructive and destructive mass: Σ over blocks of the positive and of the negative ⟨C_lora, C_fft⟩.

    Blocks, not entries: inside a block single directions may turn freely. The chance level takes a block's inner
    product as normal with variance Σ (C_lora·C_fft)², and as a single coin flip where the block is one entry.
    """
    size = float(torch.linalg.vector_norm(C_lora.double()) * torch.linalg.vector_norm(C_fft.double()))
    if size == 0:
        return Interference(0.0, 0.0, 0.0)
    inner = block_sums(C_lora * C_fft, labels)
    sizes = torch.bincount(labels)
    spread = block_sums((C_lora.double() * C_fft.double()).square(), labels).sqrt()
    single = (sizes[:, None] * sizes[None, :]) == 1
    expected = torch.where(single, spread, math.sqrt(2 / math.pi) * spread).sum() / 2
    constructive, destructive = float(inner.clamp(min=0).sum()), -float(inner.clamp(max=0).sum())
    return Interference(constructive / size, destructive / size, float(expected) / size)


def head_interference(C_lora: Float[Tensor, "k k"], C_fft: Float[Tensor, "k k"], share: float = 0.1) -> float | None:
    """Return the share of Σ |C_lora·C_fft| in entries whose receiver or sender is in the first tenth of directions.

    The paper finds interference in the head; spread evenly over the entries the share is 1 − 0.9² = 0.19. No clusters
    are involved. None where the two never meet.
    """
    both = (C_lora.double() * C_fft.double()).abs()
    whole, head = float(both.sum()), max(1, math.ceil(share * len(both)))
    return 1 - float(both[head:, head:].sum()) / whole if whole else None


def majority(mask: Bool[Tensor, "k k"], labels: Int[Tensor, " k"]) -> Bool[Tensor, "m m"]:
    """Return the blocks of which more than half of the entries are marked, as the paper's map of interventions does."""
    sizes = torch.bincount(labels).double()
    return block_sums(mask.double(), labels) > sizes[:, None] * sizes[None, :] / 2
