"""LoRAs of the small models in every dialect and kind that users have."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from tests.frozen.models import DIM, State, in_diffusers_names, save

Factors = dict[str, tuple[Tensor, Tensor]]
SOME = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.2")


def factors(state: Mapping[str, Tensor], seed: int = 2, rank: int = 4, size: float = 0.1) -> Factors:
    """Return {layer: (A, B)} for every matrix in the blocks; the norm of B·A is a share of the weight's."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for name, W in state.items():
        if name.startswith("blocks.") and name.endswith(".weight") and W.dim() == 2:
            A = torch.randn(rank, W.shape[1], generator=generator)
            B = torch.randn(len(W), rank, generator=generator)
            found[name.removesuffix(".weight")] = A, B * (size * W.norm() / (B @ A).norm())
    return found


def comfy(found: Factors, alpha: float | None = None) -> State:
    """Return ComfyUI's tensors: lora_A and lora_B, or lora_down and lora_up with an alpha."""
    down, up = ("lora_A", "lora_B") if alpha is None else ("lora_down", "lora_up")
    tensors = {}
    for layer, (A, B) in found.items():
        name = f"diffusion_model.{layer}"
        tensors |= {f"{name}.{down}.weight": A, f"{name}.{up}.weight": B}
        tensors |= {} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}
    return tensors


def diffusers(found: Factors, prefix: str = "transformer.") -> State:
    """Return the tensors by diffusers' names."""
    tensors = {}
    for layer, (A, B) in found.items():
        name = prefix + in_diffusers_names(f"{layer}.weight").removesuffix(".weight")
        tensors |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B}
    return tensors


def kohya(found: Factors) -> State:
    """Return the tensors by flat names, with an alpha."""
    tensors = {}
    for layer, (A, B) in found.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, f"{name}.alpha": torch.tensor(2.0)}
    return tensors


def save_peft(folder: Path, found: Factors) -> None:
    """Write a PEFT folder with its configuration."""
    save(folder / "adapter_model.safetensors", diffusers(found, "base_model.model."))
    fields = {
        "peft_type": "LORA",
        "r": 4,
        "lora_alpha": 6,
        "alpha_pattern": {"attn1.to_q": 3},
        "target_modules": ["to_q"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(fields))


def kinds(state: State, found: Factors) -> dict[str, State]:
    """Return one file for each kind of adapter that is more than two factors."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    made: dict[str, State] = {kind: {} for kind in ("dora", "loha", "lokr", "diff")}
    for layer in SOME:
        (A, B), W, name = found[layer], state[f"{layer}.weight"], f"diffusion_model.{layer}"
        out, inn = W.shape
        made["dora"] |= {f"{name}.lora_A.weight": A, f"{name}.lora_B.weight": B, f"{name}.alpha": torch.tensor(3.0)}
        made["dora"] |= {f"{name}.dora_scale": W.norm(dim=1, keepdim=True) * (1 + 0.1 * drawn(out, 1))}
        for number in "12":
            made["loha"][f"{name}.hada_w{number}_a"] = drawn(out, 2) / 10
            made["loha"][f"{name}.hada_w{number}_b"] = drawn(2, inn)
        made["lokr"] |= {f"{name}.lokr_w1": drawn(2, 4) / 10, f"{name}.lokr_w2": drawn(out // 2, inn // 4) / 10}
        made["diff"] |= {f"{name}.diff": drawn(out, inn) / 100, f"{name}.diff_b": drawn(out) / 100}
    made["diff"] |= {"diffusion_model.blocks.0.norm3.diff": drawn(DIM) / 100}
    made["mixed"] = comfy(found) | made["diff"] | {"diffusion_model.blocks.0.self_attn.norm_q.diff": drawn(DIM) / 100}
    kernel = state["patch_embedding.weight"].shape
    made["locon"] = comfy({layer: found[layer] for layer in SOME}, 2.0) | {
        "diffusion_model.patch_embedding.lora_down.weight": drawn(2, *kernel[1:]) / 10,
        "diffusion_model.patch_embedding.lora_up.weight": drawn(kernel[0], 2, 1, 1, 1) / 10,
        "diffusion_model.patch_embedding.alpha": torch.tensor(1.0),
    }
    return made


def unet_lora(unet: State, encoder: State | None) -> State:
    """Return a LoRA of some layers of a U-Net, convolutions too, and of its text encoder."""
    generator, tensors = torch.Generator().manual_seed(4), {}
    places = {
        f"unet.{name}": W for name, W in unet.items() if name.endswith(("attn1.to_q.weight", "resnets.0.conv1.weight"))
    }
    places |= {f"text_encoder.{name}": W for name, W in (encoder or {}).items() if name.endswith("q_proj.weight")}
    for name, W in places.items():
        layer, ones = name.removesuffix(".weight"), [1] * (W.dim() - 2)
        tensors[f"{layer}.lora_A.weight"] = torch.randn(2, *W.shape[1:], generator=generator)
        tensors[f"{layer}.lora_B.weight"] = torch.randn(len(W), 2, *ones, generator=generator) / 50
    return tensors


def hunyuan_lora() -> State:
    """Return a LoRA of HunyuanVideo-1.5 by diffusers' names."""
    generator, tensors, width = torch.Generator().manual_seed(5), {}, 16
    attention = (*(f"to_{x}" for x in "qkv"), *(f"add_{x}_proj" for x in "qkv"), "to_out.0", "to_add_out")
    for block in ("transformer_blocks.0", "transformer_blocks.1"):
        for layer in (*(f"attn.{name}" for name in attention), "ff.net.2"):
            inn = 4 * width if layer.startswith("ff") else width
            tensors[f"transformer.{block}.{layer}.lora_A.weight"] = torch.randn(2, inn, generator=generator)
            tensors[f"transformer.{block}.{layer}.lora_B.weight"] = torch.randn(width, 2, generator=generator)
    return tensors


def one_file_lora() -> State:
    """Return kohya's LoRA of two layers of such a file, one of them the text encoder's."""
    generator, tensors = torch.Generator().manual_seed(10), {}
    for layer in (
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_q",
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj",
    ):
        tensors[f"{layer}.lora_down.weight"] = torch.randn(2, 8, generator=generator)
        tensors[f"{layer}.lora_up.weight"] = torch.randn(8, 2, generator=generator) / 50
        tensors[f"{layer}.alpha"] = torch.tensor(1.0)
    return tensors
