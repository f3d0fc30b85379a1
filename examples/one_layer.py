"""One layer, from files to a number: how far each method moves it, on a model and a LoRA that this program makes.

Run it: python examples/one_layer.py
"""

import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file

import loraport

LAYER = "blocks.0.self_attn.q"
SIZE, RANK = 64, 4


def make_files(folder: Path) -> None:
    """Write a base model of one layer, its distilled variant, and a LoRA in ComfyUI's dialect."""
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    W_s = noise(SIZE, SIZE) / SIZE**0.5
    drift = 0.1 * noise(SIZE, SIZE) / SIZE**0.5
    save_file({f"{LAYER}.weight": W_s}, folder / "base.safetensors")
    save_file({f"{LAYER}.weight": W_s + drift}, folder / "distilled.safetensors")
    factors = {"lora_A.weight": 0.1 * noise(RANK, SIZE), "lora_B.weight": 0.1 * noise(SIZE, RANK)}
    keys = {f"diffusion_model.{LAYER}.{name}": factor for name, factor in factors.items()}
    keys[f"diffusion_model.{LAYER}.alpha"] = torch.tensor(float(RANK))
    save_file(keys, folder / "style.safetensors")


def by_hand(folder: Path) -> None:
    """Take the steps of a transfer on one layer: read, decompose, apply a method, factor again."""
    source = loraport.open_checkpoint(folder / "base.safetensors")
    target = loraport.open_checkpoint(folder / "distilled.safetensors")
    lora = loraport.read_lora(folder / "style.safetensors").updates[LAYER]
    W_s = source.read_weight(LAYER)
    assert isinstance(lora, loraport.LowRank)  # what we wrote: not a LoHa, LoKr, DoRA or whole difference
    layer = loraport.Layer(lora, target.read_weight(LAYER) - W_s, loraport.decompose(W_s))
    for name in ("direct", "direct:1.15", "undo:0.25", "rollback", "casa"):
        update = loraport.find_recipe(name)(layer).dense()
        low = loraport.factorize(update, 2 * RANK, generator=torch.Generator().manual_seed(0))
        size = float(update.norm() / W_s.norm())
        print(f"{name:12} |D'| / |W| = {size:.3f}, rank {2 * RANK} keeps {1 - low.lost_energy:.1%} of its energy")


def in_one_call(folder: Path) -> None:
    """Let the program take the same steps, and write a file."""
    config = loraport.TransferConfig(
        lora=str(folder / "style.safetensors"),
        source=str(folder / "base.safetensors"),
        target=str(folder / "distilled.safetensors"),
        output=str(folder / "moved.safetensors"),
    )
    result = loraport.transfer(config)
    layer = result.layers[0]
    print(f"{Path(result.output).name}: {layer.name}, rank {layer.rank_in} -> {layer.rank_out}")
    print(f"kept {layer.kept_energy:.1%} of the energy, {layer.kept_correction:.1%} of what CASA changed")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        make_files(Path(name))
        by_hand(Path(name))
        in_one_call(Path(name))
