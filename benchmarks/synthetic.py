"""Synthetic models at Wan's real shapes and in its real layouts, with spectra that are hard in every way.

    python -m benchmarks.synthetic FOLDER [--size 1.3b] [--blocks 30]

Writes source/ (fp32 shards), target/ (bf16) and lora.safetensors. Each weight is Q₁·diag(S)·Q₂ with orthogonal factors
(two random cosine transforms each) and a known spectrum: a steep head, then plateaus and a tail whose neighbours are
nearly equal, down to small values. 90 % of the energy lies in 30 to 60 % of the directions.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path

import torch
from diffusers import WanTransformer3DModel
from scipy.fft import dct
from torch import Tensor

from loraport.files.formats.safetensors_write import Pending, save_safetensors
from loraport.files.names.lookup import canonical_layer

SIZES = {
    "1.3b": {"num_attention_heads": 12, "attention_head_dim": 128, "ffn_dim": 8960, "num_layers": 30},
    "14b": {"num_attention_heads": 40, "attention_head_dim": 128, "ffn_dim": 13824, "num_layers": 40},
}
DRIFT, LORA, RANK = 0.03, 0.03, 32
"""‖D_fft‖ / ‖W‖, ‖D_lora‖ / ‖W‖ and the LoRA's rank."""


def config_of(size: str) -> dict[str, int]:
    """`1.3b`, `14b`, or a width such as `256` with the 1.3B model's proportions."""
    if size in SIZES:
        return SIZES[size]
    width = int(size)
    return {"num_attention_heads": 2, "attention_head_dim": width // 2, "ffn_dim": width * 35 // 6, "num_layers": 30}


def shapes(config: dict[str, int], blocks: int) -> dict[str, tuple[int, ...]]:
    """Every parameter of diffusers' own model, by diffusers' names."""
    with torch.device("meta"):
        model = WanTransformer3DModel(**{**config, "num_layers": blocks, "text_dim": 64, "freq_dim": 32})
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def generator(name: str, salt: int) -> torch.Generator:
    """The same numbers for the same parameter, in whatever order they are asked for."""
    return torch.Generator().manual_seed(sum(ord(c) * 31**i for i, c in enumerate(name)) % 2**40 + salt)


def spectrum(n: int) -> Tensor:
    """Descending: a head of 2 %, twelve plateaus of near-equal values, a slow tail to 3 % of the mean; ΣS² = n."""
    place = torch.arange(n, dtype=torch.float64) / n
    steps = (place * 12).floor() / 12
    S = 0.02 + 0.3 * (1 - place) + 3 * torch.exp(-place * 60) + 1.2 * torch.exp(-steps * 3.2)
    return S * (n / S.square().sum()) ** 0.5


def turned(X: Tensor, g: torch.Generator) -> Tensor:
    """Q·X for a random orthogonal Q: signs, a cosine transform, signs, a cosine transform."""
    for _ in range(2):
        signs = torch.where(torch.rand(X.shape[0], 1, generator=g) < 0.5, -1.0, 1.0)
        X = torch.from_numpy(dct((X * signs).numpy(), axis=0, norm="ortho"))
    return X


def weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """A matrix with that spectrum; other parameters are small noise."""
    g = generator(name, 0)
    if len(shape) != 2:
        return torch.randn(shape, generator=g) * 0.02
    if shape[0] < shape[1]:
        return weight(name, shape[::-1]).mT.contiguous()
    right = turned(torch.diag(spectrum(shape[1])).float(), g).mT
    return turned(torch.nn.functional.pad(right, (0, 0, 0, shape[0] - shape[1])), g).contiguous()


def drifted_weight(name: str, shape: tuple[int, ...]) -> Tensor:
    """The same after the drift, in bfloat16."""
    return drifted(name, weight(name, shape)).bfloat16()


def drifted(name: str, W: Tensor) -> Tensor:
    """The weight after a full-rank drift that is denser in some directions than in others."""
    X = torch.randn(W.shape, generator=generator(name, 1))
    if W.dim() == 2:
        X = X * torch.rand(W.shape[1], generator=generator(name, 2)).square()
    return W + X * (DRIFT * W.norm() / X.norm())


def write_models(folder: Path, config: dict[str, int], blocks: int) -> None:
    """source/transformer as two fp32 shards with an index, target/transformer as one bf16 file, and a rank-32 LoRA."""
    table = shapes(config, blocks)
    source, target = folder / "source" / "transformer", folder / "target" / "transformer"
    source.mkdir(parents=True, exist_ok=True)
    target.mkdir(parents=True, exist_ok=True)
    names = list(table)
    weight_map = {}
    for number, half in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"diffusion_pytorch_model-{number:05d}-of-00002.safetensors"
        pending = {n: Pending(torch.float32, table[n], partial(weight, n, table[n])) for n in half}
        save_safetensors(source / file, pending, {"format": "pt"})
        weight_map.update(dict.fromkeys(half, file))
    index = {"metadata": {"total_size": 0}, "weight_map": weight_map}
    (source / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    pending = {n: Pending(torch.bfloat16, s, partial(drifted_weight, n, s)) for n, s in table.items()}
    save_safetensors(target / "diffusion_pytorch_model.safetensors", pending, {"format": "pt"})


def layers_of(table: dict[str, tuple[int, ...]]) -> dict[str, tuple[str, tuple[int, int]]]:
    """The ten Linears of every block: original name -> (diffusers' parameter, shape)."""
    linear = {n: s for n, s in table.items() if n.startswith("blocks.") and n.endswith(".weight") and len(s) == 2}
    layers = {n.removesuffix(".weight"): (n, s) for n, s in linear.items()}
    return {canonical_layer(layer, "diffusers") or layer: found for layer, found in layers.items()}


def write_lora(path: Path, table: dict[str, tuple[int, ...]], salt: int = 0) -> None:
    """A ComfyUI LoRA over the ten Linears of every block; ‖W‖² is its spectrum's."""
    tensors = {}
    for layer, (name, shape) in layers_of(table).items():
        g = generator(name, 3 + 7 * salt)
        B, A = torch.randn(shape[0], RANK, generator=g), torch.randn(RANK, shape[1], generator=g)
        B *= LORA * min(shape) ** 0.5 / (B @ A).norm()
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = Pending.of(A.bfloat16())
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = Pending.of(B.bfloat16())
    save_safetensors(path, tensors, {"format": "pt"})


def prepared(folder: Path, size: str, blocks: int, loras: int = 1) -> dict[str, tuple[int, ...]]:
    """The folder with both models and so many LoRAs (lora.safetensors, lora-1 …); what is there is not made again."""
    config = config_of(size)
    table = shapes(config, blocks)
    done = folder / f"made-{size}-{blocks}"
    if not done.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.glob("made-*"):
            other.unlink()
        write_models(folder, config, blocks)
        for lora in folder.glob("lora*.safetensors"):
            lora.unlink()
        done.touch()
    for number in range(loras):
        place = folder / (f"lora-{number}.safetensors" if number else "lora.safetensors")
        if not place.is_file():
            write_lora(place, table, number)
    return table


def main() -> None:
    """Parse and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--blocks", type=int, default=30)
    parser.add_argument("--size", default="1.3b", help="1.3b, 14b or a width")
    parser.add_argument("--loras", type=int, default=1)
    given = parser.parse_args()
    prepared(given.folder, given.size, given.blocks, given.loras)


if __name__ == "__main__":
    main()
