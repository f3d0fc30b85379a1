"""Pairs of tiny models with a drift of planted size and place, and LoRAs for them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.spectral.head import head_count
from tests import tiny


def moved(state: Mapping[str, Tensor], *, head: float, size: float = 0.05, seed: int = 1) -> tiny.State:
    """The model after a distillation that puts this share of its energy into the first tenth of the directions."""
    generator = torch.Generator().manual_seed(seed)
    after = dict(state)
    for name, W in state.items():
        if name.startswith("blocks.") and name.endswith(".weight") and W.dim() == 2:
            after[name] = W + _drift(W, head, size, generator)
    return after


def _drift(W: Tensor, head: float, size: float, generator: torch.Generator) -> Tensor:
    if W.shape[0] < W.shape[1]:
        return _drift(W.mT, head, size, generator).mT
    V = torch.linalg.svd(W, full_matrices=False).Vh.mT
    count = head_count(V.shape[1])
    parts = []
    for share, directions in ((head, V[:, :count]), (1 - head, V[:, count:])):
        part = torch.randn(len(W), directions.shape[1], generator=generator) @ directions.mT
        parts.append(share**0.5 * part / part.norm())
    return size * W.norm() * (parts[0] + parts[1])


def write_model(path: Path, state: Mapping[str, Tensor], **header: str) -> Path:
    """One file with original names."""
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt", **header})
    return path


def write_lora(path: Path, state: Mapping[str, Tensor], *, size: float = 0.1, rank: int = 4, **header: str) -> Path:
    """A LoRA for all linear layers of the blocks, with fields in its header."""
    tensors = {}
    for layer, (B, A) in tiny.lora_factors(state, rank=rank, size=size).items():
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = A
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = B
    save_file(tensors, path, metadata={"format": "pt", **header})
    return path
