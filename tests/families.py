"""Tiny models of diffusers' own classes, one a family, and their files as other projects write them.

The foreign layouts are written here by hand for one block each, not through the tables under test.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.files.names.families import FAMILIES as TABLES
from tests.image_families import (
    comfy_qwen_image,
    comfy_qwen_image_21,
    comfy_z_image,
    krea2,
    original_krea2,
    qwen_image,
    qwen_image_21,
    z_image,
)

State = dict[str, Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def canonical_parameter(name: str) -> str | None:
    """The canonical name of a parameter of diffusers' Wan; None where the table does not have it, or has more in it."""
    pieces = TABLES["wan"].parameter_pieces(name, "diffusers")
    return pieces[0][0] if len(pieces) == 1 else None


def hunyuan() -> Any:
    """HunyuanVideo-1.5, one block and one refiner, 8 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.HunyuanVideo15Transformer3DModel(
        in_channels=5,
        out_channels=2,
        num_attention_heads=1,
        attention_head_dim=8,
        num_layers=1,
        num_refiner_layers=1,
        mlp_ratio=2.0,
        text_embed_dim=6,
        text_embed_2_dim=4,
        image_embed_dim=6,
        rope_axes_dim=(4, 2, 2),
    )


def hunyuan_1() -> Any:
    """HunyuanVideo 1.0, a double and a single block and a refiner, 8 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.HunyuanVideoTransformer3DModel(
        in_channels=2,
        out_channels=2,
        num_attention_heads=1,
        attention_head_dim=8,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        patch_size=1,
        guidance_embeds=True,
        text_embed_dim=6,
        pooled_projection_dim=4,
        rope_axes_dim=(4, 2, 2),
    )


def minimax_h3(**changes: Any) -> Any:
    """MiniMax-H3, a block and a refiner: two heads of the real size, for which the model is 12 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    small: dict[str, Any] = {
        "num_attention_heads": 2,
        "hidden_size": 12,
        "num_layers": 1,
        "num_refiner_layers": 1,
        "ffn_dim": 10,
        "in_channels": 1,
        "audio_in_channels": 3,
        "text_dim": 6,
        "freq_dim": 8,
        "time_embed_hidden_dim": 14,
        "time_embed_dim": 9,
    }
    return diffusers.MiniMaxH3Transformer3DModel(**small | changes)


def flux_1() -> Any:
    """FLUX.1 dev, a double and a single block, 8 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.FluxTransformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        joint_attention_dim=6,
        pooled_projection_dim=4,
        guidance_embeds=True,
        axes_dims_rope=(4, 2, 2),
    )


def flux_2() -> Any:
    """FLUX.2 dev, a double and a single block, 8 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.Flux2Transformer2DModel(
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        num_attention_heads=1,
        attention_head_dim=8,
        joint_attention_dim=6,
        axes_dims_rope=(2, 2, 2, 2),
    )


def ltx_2() -> Any:
    """LTX-2.3, one block, 8 numbers wide."""
    import diffusers

    torch.manual_seed(0)
    switches = ("gated_attn", "cross_attn_mod", "audio_gated_attn", "audio_cross_attn_mod")
    return diffusers.LTX2VideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=1,
        attention_head_dim=8,
        cross_attention_dim=8,
        audio_in_channels=4,
        audio_out_channels=4,
        audio_num_attention_heads=1,
        audio_attention_head_dim=4,
        audio_cross_attention_dim=4,
        num_layers=1,
        use_prompt_embeddings=False,
        **dict.fromkeys(switches, True),
    )


def original_ltx_2(state: State) -> State:
    """LTX-2.3 as its makers store it, most of it."""
    names = {
        "proj_in.weight": "patchify_proj.weight",
        "audio_proj_in.bias": "audio_patchify_proj.bias",
        "time_embed.linear.weight": "adaln_single.linear.weight",
        "audio_time_embed.emb.timestep_embedder.linear_1.weight": (
            "audio_adaln_single.emb.timestep_embedder.linear_1.weight"
        ),
        "prompt_adaln.linear.weight": "prompt_adaln_single.linear.weight",
        "av_cross_attn_audio_v2a_gate.linear.weight": "av_ca_v2a_gate_adaln_single.linear.weight",
        "av_cross_attn_video_scale_shift.linear.bias": "av_ca_video_scale_shift_adaln_single.linear.bias",
        "transformer_blocks.0.attn1.norm_q.weight": "transformer_blocks.0.attn1.q_norm.weight",
        "transformer_blocks.0.audio_to_video_attn.to_q.weight": "transformer_blocks.0.audio_to_video_attn.to_q.weight",
        "transformer_blocks.0.attn1.to_gate_logits.bias": "transformer_blocks.0.attn1.to_gate_logits.bias",
        "transformer_blocks.0.video_a2v_cross_attn_scale_shift_table": (
            "transformer_blocks.0.scale_shift_table_a2v_ca_video"
        ),
        "transformer_blocks.0.prompt_scale_shift_table": "transformer_blocks.0.prompt_scale_shift_table",
        "scale_shift_table": "scale_shift_table",
        "proj_out.weight": "proj_out.weight",
    }
    return {f"model.diffusion_model.{theirs}": state[mine].contiguous().clone() for mine, theirs in names.items()}


def unet(levels: int, **changes: Any) -> Any:
    """A U-Net as in Stable Diffusion 1.5 (four levels) or XL (three, two transformer blocks, linear projections)."""
    import diffusers

    torch.manual_seed(0)
    large: dict[str, Any] = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 1, 2),
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 2,
        "projection_class_embeddings_input_dim": 12,
        "use_linear_projection": True,
    }
    both: dict[str, Any] = {
        "block_out_channels": (4, 4, 8, 8)[:levels],
        "norm_num_groups": 2,
        "attention_head_dim": 2,
        "cross_attention_dim": 6,
        "sample_size": 8,
    }
    return diffusers.UNet2DConditionModel(**both | (large if levels == 3 else {}) | changes)


def comfy_hunyuan(state: State) -> State:
    """HunyuanVideo-1.5 as ComfyUI stores it: q, k and v in one, the last modulation as (shift, scale)."""
    out = {}
    for leaf in ("weight", "bias"):
        for there, mine in (("img", ("to_q", "to_k", "to_v")), ("txt", ("add_q_proj", "add_k_proj", "add_v_proj"))):
            parts = [state[f"transformer_blocks.0.attn.{name}.{leaf}"] for name in mine]
            out[f"double_blocks.0.{there}_attn.qkv.{leaf}"] = torch.cat(parts)
        refiner = "context_embedder.token_refiner.refiner_blocks.0.attn"
        parts = [state[f"{refiner}.to_{letter}.{leaf}"] for letter in "qkv"]
        out[f"txt_in.individual_token_refiner.blocks.0.self_attn.qkv.{leaf}"] = torch.cat(parts)
        scale, shift = state[f"norm_out.linear.{leaf}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
        out[f"double_blocks.0.img_mod.lin.{leaf}"] = state[f"transformer_blocks.0.norm1.linear.{leaf}"]
        out[f"double_blocks.0.txt_mlp.2.{leaf}"] = state[f"transformer_blocks.0.ff_context.net.2.{leaf}"]
    out["double_blocks.0.img_attn.norm.query_norm.scale"] = state["transformer_blocks.0.attn.norm_q.weight"]
    return {f"model.diffusion_model.{name}": tensor.contiguous().clone() for name, tensor in out.items()}


def comfy_hunyuan_1(state: State) -> State:
    """HunyuanVideo 1.0 as ComfyUI stores it: also q, k, v and the inner layer of single blocks in one."""
    out = comfy_hunyuan(state)
    single = "single_transformer_blocks.0"
    for leaf in ("weight", "bias"):
        parts = [state[f"{single}.{name}.{leaf}"] for name in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")]
        out[f"model.diffusion_model.single_blocks.0.linear1.{leaf}"] = torch.cat(parts)
        out[f"model.diffusion_model.single_blocks.0.linear2.{leaf}"] = state[f"{single}.proj_out.{leaf}"].clone()
        out[f"model.diffusion_model.single_blocks.0.modulation.lin.{leaf}"] = state[f"{single}.norm.linear.{leaf}"]
        time = state[f"time_text_embed.guidance_embedder.linear_2.{leaf}"]
        out[f"model.diffusion_model.guidance_in.out_layer.{leaf}"] = time
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


def original_flux_2(state: State) -> State:
    """FLUX.2 as its makers and ComfyUI store it, most of it."""
    out: State = {}
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    names = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_guidance_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_guidance_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "double_stream_modulation_txt.linear": "double_stream_modulation_txt.lin",
        "single_stream_modulation.linear": "single_stream_modulation.lin",
        f"{double}.attn.to_out.0": "double_blocks.0.img_attn.proj",
        f"{double}.ff.linear_in": "double_blocks.0.img_mlp.0",
        f"{double}.ff_context.linear_out": "double_blocks.0.txt_mlp.2",
        f"{single}.attn.to_qkv_mlp_proj": "single_blocks.0.linear1",
        f"{single}.attn.to_out": "single_blocks.0.linear2",
        "proj_out": "final_layer.linear",
    }
    out |= {f"{theirs}.weight": state[f"{mine}.weight"] for mine, theirs in names.items()}
    for stream, mine in (("img", [f"to_{x}" for x in "qkv"]), ("txt", [f"add_{x}_proj" for x in "qkv"])):
        parts = [state[f"{double}.attn.{name}.weight"] for name in mine]
        out[f"double_blocks.0.{stream}_attn.qkv.weight"] = torch.cat(parts)
    scale, shift = state["norm_out.linear.weight"].chunk(2)
    out["final_layer.adaLN_modulation.1.weight"] = torch.cat([shift, scale])
    out["double_blocks.0.img_attn.norm.query_norm.scale"] = state[f"{double}.attn.norm_q.weight"]
    out["single_blocks.0.norm.key_norm.scale"] = state[f"{single}.attn.norm_k.weight"]
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


def original_flux_1(state: State) -> State:
    """FLUX.1 as its makers and ComfyUI store it, most of it."""
    out: State = {}
    double, single = "transformer_blocks.0", "single_transformer_blocks.0"
    names = {
        "x_embedder": "img_in",
        "context_embedder": "txt_in",
        "time_text_embed.timestep_embedder.linear_1": "time_in.in_layer",
        "time_text_embed.guidance_embedder.linear_2": "guidance_in.out_layer",
        "time_text_embed.text_embedder.linear_1": "vector_in.in_layer",
        f"{double}.norm1.linear": "double_blocks.0.img_mod.lin",
        f"{double}.attn.to_out.0": "double_blocks.0.img_attn.proj",
        f"{double}.attn.to_add_out": "double_blocks.0.txt_attn.proj",
        f"{double}.ff.net.0.proj": "double_blocks.0.img_mlp.0",
        f"{double}.ff_context.net.2": "double_blocks.0.txt_mlp.2",
        f"{single}.norm.linear": "single_blocks.0.modulation.lin",
        f"{single}.proj_out": "single_blocks.0.linear2",
        "proj_out": "final_layer.linear",
    }
    fused = {
        "double_blocks.0.img_attn.qkv": [f"{double}.attn.to_{letter}" for letter in "qkv"],
        "double_blocks.0.txt_attn.qkv": [f"{double}.attn.add_{letter}_proj" for letter in "qkv"],
        "single_blocks.0.linear1": [*(f"{single}.attn.to_{letter}" for letter in "qkv"), f"{single}.proj_mlp"],
    }
    for leaf in ("weight", "bias"):
        out |= {f"{theirs}.{leaf}": state[f"{mine}.{leaf}"] for mine, theirs in names.items()}
        out |= {
            f"{theirs}.{leaf}": torch.cat([state[f"{one}.{leaf}"] for one in mine]) for theirs, mine in fused.items()
        }
        scale, shift = state[f"norm_out.linear.{leaf}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    out["double_blocks.0.txt_attn.norm.key_norm.scale"] = state[f"{double}.attn.norm_added_k.weight"]
    out["single_blocks.0.norm.query_norm.scale"] = state[f"{single}.attn.norm_q.weight"]
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


def original_unet(state: State) -> State:
    """Some of a U-Net as original single files have it."""
    pairs = {
        "down_blocks.1.resnets.0.conv1": "input_blocks.4.0.in_layers.2",
        "down_blocks.1.attentions.1.proj_in": "input_blocks.5.1.proj_in",
        "down_blocks.1.attentions.1.transformer_blocks.0.attn2.to_k": (
            "input_blocks.5.1.transformer_blocks.0.attn2.to_k"
        ),
        "down_blocks.1.downsamplers.0.conv": "input_blocks.6.0.op",
        "mid_block.resnets.1.conv2": "middle_block.2.out_layers.3",
        "up_blocks.1.attentions.2.transformer_blocks.0.ff.net.2": "output_blocks.5.1.transformer_blocks.0.ff.net.2",
        "up_blocks.1.upsamplers.0.conv": "output_blocks.5.2.conv",
        "conv_out": "out.2",
    }
    if "add_embedding.linear_1.weight" in state:
        pairs["add_embedding.linear_1"] = "label_emb.0.0"
    return {f"model.diffusion_model.{theirs}.weight": state[f"{mine}.weight"] for mine, theirs in pairs.items()}


def tencent_hunyuan(state: State) -> State:
    """HunyuanVideo-1.5 as Tencent stores it, all of it: q, k and v apart in the blocks and in one in the refiners."""
    block, refiner = "transformer_blocks.0", "context_embedder.token_refiner.refiner_blocks.0"
    theirs_block, theirs_refiner = "double_blocks.0", "txt_in.individual_token_refiner.blocks.0"
    names = {
        "x_embedder.proj": "img_in.proj",
        "context_embedder.proj_in": "txt_in.input_embedder",
        "proj_out": "final_layer.linear",
        "cond_type_embed": "cond_type_embedding",
        "context_embedder_2.norm": "byt5_in.layernorm",
        **{f"context_embedder_2.linear_{number}": f"byt5_in.fc{number}" for number in (1, 2, 3)},
        "image_embedder.norm_in": "vision_in.proj.0",
        "image_embedder.linear_1": "vision_in.proj.1",
        "image_embedder.linear_2": "vision_in.proj.3",
        "image_embedder.norm_out": "vision_in.proj.4",
        **{
            f"context_embedder.time_text_embed.text_embedder.linear_{i}": f"txt_in.c_embedder.linear_{i}"
            for i in (1, 2)
        },
        f"{block}.norm1.linear": f"{theirs_block}.img_mod.linear",
        f"{block}.norm1_context.linear": f"{theirs_block}.txt_mod.linear",
        f"{block}.attn.to_out.0": f"{theirs_block}.img_attn_proj",
        f"{block}.attn.to_add_out": f"{theirs_block}.txt_attn_proj",
        f"{refiner}.attn.to_out.0": f"{theirs_refiner}.self_attn_proj",
        f"{refiner}.ff.net.0.proj": f"{theirs_refiner}.mlp.fc1",
        f"{refiner}.ff.net.2": f"{theirs_refiner}.mlp.fc2",
        f"{refiner}.norm_out.linear": f"{theirs_refiner}.adaLN_modulation.1",
        f"{refiner}.norm1": f"{theirs_refiner}.norm1",
        f"{refiner}.norm2": f"{theirs_refiner}.norm2",
    }
    for number, fc in (("1", "0"), ("2", "2")):
        names[f"time_embed.timestep_embedder.linear_{number}"] = f"time_in.mlp.{fc}"
        names[f"context_embedder.time_text_embed.timestep_embedder.linear_{number}"] = f"txt_in.t_embedder.mlp.{fc}"
    for letter in "qkv":
        names[f"{block}.attn.to_{letter}"] = f"{theirs_block}.img_attn_{letter}"
        names[f"{block}.attn.add_{letter}_proj"] = f"{theirs_block}.txt_attn_{letter}"
    for letter in "qk":
        names[f"{block}.attn.norm_{letter}"] = f"{theirs_block}.img_attn_{letter}_norm"
        names[f"{block}.attn.norm_added_{letter}"] = f"{theirs_block}.txt_attn_{letter}_norm"
    for mine, theirs in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
        names |= {f"{block}.{mine}.net.0.proj": f"{theirs_block}.{theirs}.fc1"}
        names |= {f"{block}.{mine}.net.2": f"{theirs_block}.{theirs}.fc2"}
    out = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        if layer in names:
            out[f"{names[layer]}.{leaf}"] = tensor
    for leaf in ("weight", "bias"):
        parts = [state[f"{refiner}.attn.to_{letter}.{leaf}"] for letter in "qkv"]
        out[f"{theirs_refiner}.self_attn_qkv.{leaf}"] = torch.cat(parts)
        scale, shift = state[f"norm_out.linear.{leaf}"].chunk(2)
        out[f"final_layer.adaLN_modulation.1.{leaf}"] = torch.cat([shift, scale])
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


H3_NAMES = {
    "proj_in": "video_patch_proj",
    "audio_proj_in": "audio_patch_proj",
    "context_embedder": "condition_proj",
    "time_embedder.linear_1": "time_embedder.proj_in",
    "time_embedder.linear_2": "time_embedder.proj_out",
    "token_refiner.final_norm": "token_refiner.final_norm",
    "norm_out.norm": "final_layer.norm",
    "norm_out.linear": "final_layer.adaln_proj.linear",
    "proj_out": "final_layer.video_out",
    "audio_proj_out": "final_layer.audio_out",
}
H3_IN_BLOCKS = {
    "attn.to_out.0": "attn.out_proj",
    "attn.norm_q": "attn.q_norm",
    "attn.norm_k": "attn.k_norm",
    "ff.net.0.proj": "mlp.fc1",
    "ff.net.2": "mlp.fc2",
    "norm1": "norm1",
    "norm2": "norm2",
    "adaln_proj.linear": "adaln_proj.linear",
}


def original_h3(state: State, *, interleaved: bool = False) -> State:
    """MiniMax-H3 as ComfyUI stores it, all of it, or with the rows of q, k and v head by head, as MiniMax does."""
    names = dict(H3_NAMES)
    for mine, theirs in (("transformer_blocks", "blocks"), ("token_refiner.refiner_blocks", "token_refiner.blocks")):
        blocks = {name.removeprefix(f"{mine}.").split(".")[0] for name in state if name.startswith(f"{mine}.")}
        names |= {f"{mine}.{i}.{a}": f"{theirs}.{i}.{b}" for i in blocks for a, b in H3_IN_BLOCKS.items()}
    out = {}
    for name, tensor in state.items():
        layer, _, leaf = name.rpartition(".")
        if layer in names:
            swapped = layer.endswith("ff.net.0.proj")
            out[f"{names[layer]}.{leaf}"] = torch.cat(tensor.chunk(2)[::-1]) if swapped else tensor
        if layer.endswith("attn.to_q"):
            parts = [state[f"{layer[:-1]}{letter}.{leaf}"] for letter in "qkv"]
            heads = [part.reshape(-1, 128, *part.shape[1:]) for part in parts]
            fused = torch.stack(heads, dim=1).flatten(0, 2) if interleaved else torch.cat(parts)
            out[f"{names[layer.replace('to_q', 'to_out.0')].replace('out_proj', 'qkv_proj')}.{leaf}"] = fused
    return {name: tensor.contiguous().clone() for name, tensor in out.items()}


PRUNED = {"transformer_layers_per_block": (0, 1, 2), "mid_block_type": "UNetMidBlock2D"}
"""As SSD-1B's: fewer transformer blocks, none in the middle, one residual block less."""


def sdxl_and_pruned() -> tuple[Any, Any, dict[str, str]]:
    """(an SDXL, a model with blocks of it as SSD-1B has them, layer of that -> the layer that it was).

    As wide as it takes to tell random layers from each other by the subspaces of half of their energy.
    """
    wide: dict[str, Any] = {"block_out_channels": (8, 24, 24), "norm_num_groups": 4, "cross_attention_dim": 24}
    source = unet(3, **wide, transformer_layers_per_block=(1, 2, 4))
    target = unet(3, **wide, **PRUNED, reverse_transformer_layers_per_block=[[2, 2, 4], [2, 1, 1], 1])
    mine, theirs = source.state_dict(), target.state_dict()
    inner = re.compile(r"(.*transformer_blocks)\.(\d+)\.(.*)")
    origin: dict[str, str] = {}
    state: dict[str, Any] = {}
    for name, tensor in theirs.items():
        old, found = name, inner.fullmatch(name)
        if found:
            left, had = (sum(1 for one in model if one.startswith(f"{found[1]}.") and one.endswith(found[3]))
                         for model in (theirs, mine))  # fmt: skip
            old = f"{found[1]}.{int(found[2]) + (had - left)}.{found[3]}"
        noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(len(state)))
        state[name] = mine[old] + 0.02 * mine[old].norm() / noise.norm() * noise
        origin[name.removesuffix(".weight")] = old.removesuffix(".weight")
    target.load_state_dict(state)
    return source, target, origin


def write_pipeline(folder: Path, state: State, inner: str, kind: str) -> Path:
    """A diffusers folder: an index, and one network in one file with its configuration."""
    (folder / inner).mkdir(parents=True)
    (folder / "model_index.json").write_text(f'{{"_class_name": "{kind}"}}')
    (folder / inner / "config.json").write_text("{}")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / inner / WEIGHTS)
    return folder


@dataclass(frozen=True)
class Tiny:
    """One family in the tests."""

    family: str
    model: Callable[[], Any]
    foreign: Callable[[State], State]
    formats: tuple[str, ...] = ("comfy", "diffusers", "peft", "kohya")


FAMILIES = {
    "hunyuanvideo-1.5": Tiny("hunyuanvideo-1.5", hunyuan, comfy_hunyuan, ("comfy", "diffusers", "peft", "kohya")),
    "hunyuanvideo": Tiny("hunyuanvideo", hunyuan_1, comfy_hunyuan_1),
    "minimax-h3": Tiny("minimax-h3", minimax_h3, original_h3),
    "flux.1": Tiny("flux.1", flux_1, original_flux_1),
    "flux.2": Tiny("flux.2", flux_2, original_flux_2),
    "ltx-2": Tiny("ltx-2", ltx_2, original_ltx_2),
    "sd1.5": Tiny("sd1.5", lambda: unet(4), original_unet),
    "sdxl": Tiny("sdxl", lambda: unet(3), original_unet),
    "krea2": Tiny("krea2", krea2, original_krea2),
    "qwen-image": Tiny("qwen-image", qwen_image, comfy_qwen_image),
    "qwen-image-2.1": Tiny("qwen-image-2.1", qwen_image_21, comfy_qwen_image_21),
    "z-image": Tiny("z-image", z_image, comfy_z_image),
}


def factors(model: Any, rank: int = 2) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (A, B)} of every linear layer and convolution, by diffusers' name; kernels unfolded."""
    generator = torch.Generator().manual_seed(1)
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            continue
        out, inn, *kernel = module.weight.shape
        A = torch.randn(rank, inn, *kernel, generator=generator)
        found[name] = A, torch.randn(out, rank, *(1 for _ in kernel), generator=generator)
    return found


IMAGE_PIPELINES = {
    "krea2": "Krea2Pipeline",
    "qwen-image": "QwenImagePipeline",
    "qwen-image-2.1": "QwenImage21Pipeline",
    "z-image": "ZImagePipeline",
}
PIPELINES = {
    "hunyuanvideo": ("HunyuanVideoPipeline", "text_encoder_2", "tokenizer_2"),
    "flux.1": ("FluxPipeline", "text_encoder_2", "tokenizer_2"),
    "flux.2": ("Flux2KleinPipeline",),
    "ltx-2": ("LTX2Pipeline", "audio_vae", "connectors", "vocoder"),
}
"""The pipelines that load LoRAs, with the parts that not all have."""
HEADERS = {
    "hunyuanvideo": {"modelspec.architecture": "hunyuan-video/lora"},
    "flux.2": {"modelspec.architecture": "Flux.2-klein-base-4b/lora"},
}
"""What a trainer writes that tells families apart whose layers are called alike."""


class NoProcessor:
    """In the place of a tokenizer: every text is one token."""

    @property
    def tokenizer(self) -> NoProcessor:
        return self

    def encode(self, text: str) -> list[int]:
        return [0]

    def apply_chat_template(self, *_: Any, **__: Any) -> list[list[int]]:
        return [[0]]


def image_pipeline(family: str, model: Any) -> Any:
    """diffusers' own pipeline around a model, with nothing else in it."""
    import diffusers

    kind = getattr(diffusers, IMAGE_PIPELINES[family])
    needed = [one.name for one in signature(kind).parameters.values() if one.default is one.empty]
    given: dict[str, Any] = dict.fromkeys(needed) | {"transformer": model}
    if "processor" in needed:  # Qwen-Image 2.1's pipeline counts the tokens of its prompt as it is made
        given["processor"] = NoProcessor()
    return kind(**given)


def bare_pipeline(family: str, model: Any) -> Any:
    """The pipeline of a family around its network alone."""
    import diffusers

    kind, *more = PIPELINES[family]
    parts = dict.fromkeys(("text_encoder", "tokenizer", "vae", "scheduler", *more))
    return getattr(diffusers, kind)(**parts, transformer=model)


def fused_by_diffusers(family: str, model: Any, path: Path) -> None:
    """A file loaded as its users load it, and baked in: the pipelines' way for U-Nets, else the model's own."""
    import diffusers
    from diffusers.loaders.lora_pipeline import MiniMaxH3LoraLoaderMixin

    if TABLES[family].component == "unet":
        large = family == "sdxl"
        kind = diffusers.StableDiffusionXLPipeline if large else diffusers.StableDiffusionPipeline
        others = ("vae", "text_encoder", "tokenizer") + (
            ("text_encoder_2", "tokenizer_2") if large else ("safety_checker", "feature_extractor")
        )
        pipe = kind(**dict.fromkeys(others), unet=model, scheduler=diffusers.EulerDiscreteScheduler(steps_offset=1))
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    elif family in PIPELINES:
        pipe = bare_pipeline(family, model)
        pipe.load_lora_weights(path.parent, weight_name=path.name)
    elif family in IMAGE_PIPELINES:
        image_pipeline(family, model).load_lora_weights(path.parent, weight_name=path.name)
    elif family == "minimax-h3":

        class Pipe(MiniMaxH3LoraLoaderMixin):  # type: ignore[misc]  # what its modular pipeline has of it
            transformer, components, hf_device_map = model, {"transformer": model}, None

        Pipe().load_lora_weights(path.parent, weight_name=path.name)
    else:
        model.load_lora_adapter(path.parent, weight_name=path.name)
    model.fuse_lora()
    model.unload_lora()


def delta(A: Tensor, B: Tensor) -> Tensor:
    """B·A in float64, with a kernel in the shape of the weight."""
    return (B.double().flatten(1) @ A.double().flatten(1)).reshape(B.shape[0], *A.shape[1:])
