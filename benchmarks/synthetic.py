"""Synthetic models at Wan's real shapes and in its real layouts: random weights, a steep head and a long tail.

python benchmarks/synthetic.py FOLDER [--blocks 30]      writes source/ (fp32 shards), target/ (bf16), lora.safetensors
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from torch import Tensor

from loraport.weights.names import canonical_parameter
from loraport.weights.saving import Pending, save_safetensors

WAN_1_3B = {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30}
WAN_14B = {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40}
DRIFT, LORA, RANK = 0.03, 0.03, 32
"""‖D_fft‖ / ‖W‖, ‖D_lora‖ / ‖W‖ and the LoRA's rank."""


def shapes(config: dict[str, int], blocks: int) -> dict[str, tuple[int, ...]]:
    """Every parameter of diffusers' own model, by diffusers' names."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**{**config, "num_layers": blocks})
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def generator(name: str, salt: int) -> torch.Generator:
    """The same numbers for the same parameter, in whatever order they are asked for."""
    return torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**40 + salt)


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A matrix whose spectrum has a steep head and a slow tail (90 % of its energy in about 40 % of its directions)."""
    X = torch.randn(shape, generator=generator(name, 0))
    if len(shape) != 2:
        return X * 0.02
    n = shape[1]
    scales = 0.25 + 2.0 / (1 + 8 * torch.arange(n) / n) ** 1.5
    return X * scales / n**0.5


def drifted(name: str, shape: tuple[int, ...]) -> Tensor:
    """The weight after a full-rank drift that is denser in some directions than in others."""
    W, X = weight(name, shape), torch.randn(shape, generator=generator(name, 1))
    if len(shape) == 2:
        X = X * torch.rand(shape[1], generator=generator(name, 2)).square()
    return W + X * (DRIFT * W.norm() / X.norm())


def write_models(folder: Path, config: dict[str, int], blocks: int) -> None:
    """source/transformer as two fp32 shards with an index, target/transformer as one bf16 file, and a rank-32 LoRA."""
    table = shapes(config, blocks)
    source, target = folder / "source" / "transformer", folder / "target" / "transformer"
    source.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    names = list(table)
    halves = (names[: len(names) // 2], names[len(names) // 2 :])
    weight_map = {}
    for number, half in enumerate(halves, 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        pending = {n: Pending(torch.float32, table[n], lambda n=n: weight(n, table[n])) for n in half}
        save_safetensors(source / file, pending, {"format": "pt"})
        weight_map.update(dict.fromkeys(half, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (source / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    pending = {n: Pending(torch.bfloat16, s, lambda n=n, s=s: drifted(n, s).bfloat16()) for n, s in table.items()}
    save_safetensors(target / "diffusion_pytorch_model.safetensors", pending, {"format": "pt"})
    write_lora(folder / "lora.safetensors", table)


def write_lora(path: Path, table: dict[str, tuple[int, ...]]) -> None:
    """A ComfyUI LoRA over the ten Linears of every block."""
    tensors = {}
    for name, shape in table.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and len(shape) == 2):
            continue
        layer = (canonical_parameter(name, "diffusers") or name).removesuffix(".weight")
        g = generator(name, 3)
        B, A = torch.randn(shape[0], RANK, generator=g), torch.randn(RANK, shape[1], generator=g)
        B *= LORA * weight(name, shape).norm() / (B @ A).norm()
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = Pending.of(A.bfloat16())
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = Pending.of(B.bfloat16())
    save_safetensors(path, tensors, {"format": "pt"})


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--size", choices=["1.3b", "14b"], default="1.3b")
    given = parser.parse_args()
    write_models(given.folder, WAN_1_3B if given.size == "1.3b" else WAN_14B, given.blocks)


if __name__ == "__main__":
    main()
