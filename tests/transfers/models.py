"""A source, a target and a LoRA on disk, and the configuration that joins them."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from loraport.inputs.config import TransferConfig
from tests import tiny


@dataclass(frozen=True)
class Family:
    """Where the three files lie, and what is in them."""

    folder: Path
    source_state: tiny.State
    target_state: tiny.State
    factors: dict
    source: str
    target: str
    lora: str

    def config(self, output: str = "out.safetensors", **changes) -> TransferConfig:
        given = {"lora": self.lora, "source": self.source, "target": self.target, "cache": str(self.folder / "cache")}
        return TransferConfig(**{**given, "output": str(self.folder / output), "dtype": "fp32", **changes})


def make_family(folder: Path, *, rank: int = 4, gates: bool = False, blocks: int = 2) -> Family:
    """An original-names source, a diffusers target (as FastWan's) and a ComfyUI LoRA of it."""
    source = tiny.tiny_state(0, blocks=blocks)
    target = tiny.drifted(source)
    if gates:
        extra = tiny.tiny_state(5, gates=True, blocks=blocks)
        target |= {name: tensor for name, tensor in extra.items() if "gate" in name}
    factors = tiny.lora_factors(source, rank=rank)
    return Family(
        folder,
        source,
        target,
        factors,
        str(tiny.write_original(folder / "source.safetensors", source)),
        str(tiny.write_diffusers(folder / "target", target)),
        str(tiny.write_lora(folder / "lora.safetensors", factors)),
    )


def deltas(path: str | Path, prefix: str = "diffusion_model.") -> dict:
    """{layer: B·A} of a written ComfyUI file."""
    tensors = load_file(path)
    ends = (".lora_B.weight", ".lora_A.weight")
    layers = {key.removeprefix(prefix).removesuffix(ends[0]) for key in tensors if key.endswith(ends[0])}
    return {
        layer: tensors[prefix + layer + ends[0]].double() @ tensors[prefix + layer + ends[1]].double()
        for layer in layers
    }


def make_rounded_family(folder: Path) -> Family:
    """A bf16 pair whose drift is within what rounding to bf16 makes by itself: 1.5 times it, in every layer."""
    made = make_family(folder)
    source = {name: W.bfloat16() for name, W in made.source_state.items()}
    rng = torch.Generator().manual_seed(9)
    target = {}
    for name, W in source.items():
        noise = torch.randn(W.shape, generator=rng)
        target[name] = (W.float() + 0.0025 * W.float().norm() / noise.norm() * noise).bfloat16()
    tiny.write_original(folder / "source.safetensors", source)
    tiny.write_diffusers(folder / "target", target)
    return replace(made, source_state=source, target_state=target)
