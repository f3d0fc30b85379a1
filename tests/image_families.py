"""Tiny image models of diffusers' own classes, and their files as ComfyUI and the original projects write them.

The foreign layouts are written here by hand, not through the tables under test.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

State = dict[str, Tensor]


def krea2() -> Any:
    """Krea 2, one block of each kind: four heads of q for one of k and v, 24 numbers wide, and text of 8."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.Krea2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        attention_head_dim=6,
        num_attention_heads=4,
        num_key_value_heads=1,
        intermediate_size=20,
        timestep_embed_dim=8,
        text_hidden_dim=8,
        num_text_layers=3,
        text_num_attention_heads=2,
        text_num_key_value_heads=2,
        text_intermediate_size=12,
        num_layerwise_text_blocks=1,
        num_refiner_text_blocks=1,
        axes_dims_rope=(2, 2, 2),
    )
    return with_noise_in_parameters(model)


def with_noise_in_parameters(model: Any) -> Any:
    """A model whose parameters that begin as zeros or ones tell themselves apart."""
    for parameter in model.parameters():
        if parameter.dim() < 2 or not parameter.any():
            torch.nn.init.normal_(parameter)
    return model


def original_krea2(state: State) -> State:
    """Krea 2 as its makers and ComfyUI store it, all of it."""
    whole = {
        "img_in": "first",
        "time_embed.linear_1": "tmlp.0",
        "time_embed.linear_2": "tmlp.2",
        "time_mod_proj": "tproj.1",
        "txt_in.linear_1": "txtmlp.1",
        "txt_in.linear_2": "txtmlp.3",
        "text_fusion.projector": "txtfusion.projector",
        "final_layer.linear": "last.linear",
    }
    inner = {
        "attn.to_q": "attn.wq",
        "attn.to_k": "attn.wk",
        "attn.to_v": "attn.wv",
        "attn.to_gate": "attn.gate",
        "attn.to_out.0": "attn.wo",
        "ff.gate": "mlp.gate",
        "ff.up": "mlp.up",
        "ff.down": "mlp.down",
    }
    norms = {"norm1": "prenorm", "norm2": "postnorm", "attn.norm_q": "attn.qknorm.qnorm",
             "attn.norm_k": "attn.qknorm.knorm"}  # fmt: skip
    outer = {"txt_in.norm.weight": "txtmlp.0.scale", "final_layer.norm.weight": "last.norm.scale",
             "final_layer.scale_shift_table": "last.modulation.lin"}  # fmt: skip
    block = re.compile(r"(transformer_blocks|text_fusion\.layerwise_blocks|text_fusion\.refiner_blocks)\.(\d+)\.(.*)")
    out = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        if found := block.fullmatch(name):
            start = (
                found[1].replace("transformer_blocks", "blocks").replace("text_fusion", "txtfusion") + f".{found[2]}"
            )
            rest = found[3].removesuffix(".weight")
            if rest == "scale_shift_table":
                out[f"{start}.mod.lin"] = tensor.flatten()
            else:
                out[f"{start}.{norms[rest]}.scale" if rest in norms else f"{start}.{inner[rest]}.weight"] = tensor
        else:
            out[outer.get(name) or f"{whole[layer]}.{leaf}"] = tensor
    return {f"model.diffusion_model.{name}": tensor.contiguous().clone() for name, tensor in out.items()}


def qwen_image() -> Any:
    """Qwen-Image, one block, 12 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.QwenImageTransformer2DModel(
        in_channels=4,
        out_channels=1,
        num_layers=1,
        attention_head_dim=6,
        num_attention_heads=2,
        joint_attention_dim=8,
        axes_dims_rope=(2, 2, 2),
    )
    return with_noise_in_parameters(model)


def comfy_qwen_image(state: State) -> State:
    """Qwen-Image as ComfyUI stores it, and everybody else: diffusers' names."""
    return {f"model.diffusion_model.{name}": tensor.contiguous().clone() for name, tensor in state.items()}


def qwen_image_21() -> Any:
    """Qwen-Image 2.1, one block, 12 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.QwenImage21Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=6,
        num_attention_heads=2,
        context_in_dim=8,
        axes_dims_rope=(2, 2, 2),
    )
    return with_noise_in_parameters(model)


def comfy_qwen_image_21(state: State) -> State:
    """Qwen-Image 2.1 as ComfyUI stores it: the gate and the inner layer in one, the gate's rows first."""
    out = dict(state)
    inner = "transformer_blocks.0.img_mlp"
    parts = [out.pop(f"{inner}.{name}.weight") for name in ("gate_layer", "proj")]
    return comfy_qwen_image(out | {f"{inner}.gate_up.weight": torch.cat(parts)})


def z_image() -> Any:
    """Z-Image, one layer and one of each refiner, 24 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    model = diffusers.ZImageTransformer2DModel(
        in_channels=2,
        dim=24,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=8,
        axes_dims=[4, 4, 4],
        axes_lens=[8, 8, 8],
    )
    return with_noise_in_parameters(model)


def comfy_z_image(state: State) -> State:
    """Z-Image as ComfyUI stores it: q, k and v in one, other names of norms, of the way out and of both ends."""
    out = {}
    for name, tensor in state.items():
        for mine, theirs in (
            ("attention.to_out.0.", "attention.out."),
            ("attention.norm_q.", "attention.q_norm."),
            ("attention.norm_k.", "attention.k_norm."),
            ("all_x_embedder.2-1.", "x_embedder."),
            ("all_final_layer.2-1.", "final_layer."),
        ):
            name = name.replace(mine, theirs)
        out[name] = tensor
    for block in ("layers.0", "noise_refiner.0", "context_refiner.0"):
        parts = [out.pop(f"{block}.attention.to_{letter}.weight") for letter in "qkv"]
        out[f"{block}.attention.qkv.weight"] = torch.cat(parts)
    return comfy_qwen_image(out)
