"""DoRA, LoHa and LoKr of three layers of a tiny family of rank 2, as files, and what they add by the definitions."""

import torch
from safetensors.torch import load_file, save_file

LAYERS = ["blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.2"]


def written(family, name, tensors):
    path = family.folder / f"{name}.safetensors"
    save_file({f"diffusion_model.{key}": tensor.contiguous() for key, tensor in tensors.items()}, path)
    return str(path)


def dora(family):
    """Factors of three layers, and magnitudes that differ from the rows' own norms by a tenth."""
    generator = torch.Generator().manual_seed(3)
    tensors = {}
    for layer in LAYERS:
        (B, A), W = family.factors[layer], family.source_state[f"{layer}.weight"]
        wobble = 1 + 0.1 * torch.randn(len(W), 1, generator=generator)
        tensors |= {f"{layer}.lora_A.weight": A, f"{layer}.lora_B.weight": B, f"{layer}.alpha": torch.tensor(4.0)}
        tensors |= {f"{layer}.dora_scale": W.norm(dim=1, keepdim=True) * wobble}
    return written(family, "dora", tensors)


def loha(family):
    generator = torch.Generator().manual_seed(4)
    tensors = {}
    for layer in LAYERS:
        out, inn = family.source_state[f"{layer}.weight"].shape
        for number in "12":
            tensors[f"{layer}.hada_w{number}_a"] = torch.randn(out, 2, generator=generator) / 10
            tensors[f"{layer}.hada_w{number}_b"] = torch.randn(2, inn, generator=generator)
    return written(family, "loha", tensors)


def lokr(family):
    generator = torch.Generator().manual_seed(5)
    tensors = {}
    for layer in LAYERS:
        out, inn = family.source_state[f"{layer}.weight"].shape
        tensors[f"{layer}.lokr_w1"] = torch.randn(2, 4, generator=generator) / 10
        tensors[f"{layer}.lokr_w2"] = torch.randn(out // 2, inn // 4, generator=generator)
    return written(family, "lokr", tensors)


MAKERS = {"DoRA": dora, "LoHa": loha, "LoKr": lokr}


def added(family, place, state, layer):
    """What an adapter adds to a weight, by the definition: DoRA normalises the rows of W + D."""
    tensors = {key.removeprefix(f"diffusion_model.{layer}."): value.double() for key, value in load_file(place).items()}
    W = state[f"{layer}.weight"].double()
    if "hada_w1_a" in tensors:
        return (tensors["hada_w1_a"] @ tensors["hada_w1_b"]) * (tensors["hada_w2_a"] @ tensors["hada_w2_b"])
    if "lokr_w1" in tensors:
        return torch.kron(tensors["lokr_w1"], tensors["lokr_w2"])
    merged = W + 4 / 2 * tensors["lora_B.weight"] @ tensors["lora_A.weight"]
    return tensors["dora_scale"] * merged / merged.norm(dim=1, keepdim=True) - W
