"""Small models of the Wan family, 64 wide, and a U-Net with its text encoder, as other projects write them."""

from __future__ import annotations

import json
import re
import struct
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save as serialised
from torch import Tensor

State = dict[str, Tensor]

DIM, FFN, TEXT, FREQUENCIES, CHANNELS = 64, 96, 32, 32, 4
DIFFUSERS = (
    ("self_attn.norm_", "attn1.norm_"), ("cross_attn.norm_", "attn2.norm_"), ("self_attn.o.", "attn1.to_out.0."),
    ("cross_attn.o.", "attn2.to_out.0."), ("self_attn.", "attn1.to_"), ("cross_attn.", "attn2.to_"),
    ("ffn.0.", "ffn.net.0.proj."), ("ffn.2.", "ffn.net.2."), ("norm3.", "norm2."),
    ("head.modulation", "scale_shift_table"), ("modulation", "scale_shift_table"), ("head.head.", "proj_out."),
    ("text_embedding.0.", "condition_embedder.text_embedder.linear_1."),
    ("text_embedding.2.", "condition_embedder.text_embedder.linear_2."),
    ("time_embedding.0.", "condition_embedder.time_embedder.linear_1."),
    ("time_embedding.2.", "condition_embedder.time_embedder.linear_2."),
    ("time_projection.1.", "condition_embedder.time_proj."),
)  # fmt: skip
"""Part of Wan's own name -> what diffusers says; the first that fits."""


def in_diffusers_names(name: str) -> str:
    """Return a parameter's name as diffusers spells it."""
    for old, new in DIFFUSERS:
        if old in f"{name}.":
            return f"{name}.".replace(old, new).removesuffix(".")
    return name


def wan(seed: int = 0, blocks: int = 2) -> State:
    """Return a random text-to-video Wan by its own names."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (DIM, CHANNELS, 1, 2, 2),
        "patch_embedding.bias": (DIM,),
    }

    def linear(name: str, out: int, inn: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inn), (out,)

    linear("text_embedding.0", DIM, TEXT)
    linear("text_embedding.2", DIM, DIM)
    linear("time_embedding.0", DIM, FREQUENCIES)
    linear("time_embedding.2", DIM, DIM)
    linear("time_projection.1", 6 * DIM, DIM)
    for block in (f"blocks.{number}" for number in range(blocks)):
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for layer in "qkvo":
                linear(f"{attention}.{layer}", DIM, DIM)
            shapes[f"{attention}.norm_q.weight"] = shapes[f"{attention}.norm_k.weight"] = (DIM,)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (DIM,)
        linear(f"{block}.ffn.0", FFN, DIM)
        linear(f"{block}.ffn.2", DIM, FFN)
        shapes[f"{block}.modulation"] = (1, 6, DIM)
    linear("head.head", 4 * CHANNELS, DIM)
    shapes["head.modulation"] = (1, 2, DIM)
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) / shape[-1] ** 0.5 for name, shape in shapes.items()}


def drifted(state: Mapping[str, Tensor], seed: int = 1, size: float = 0.1) -> State:
    """Return the model after a distillation: a few strong directions in each matrix, and noise in everything."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, W in state.items():
        noise = torch.randn(W.shape, generator=generator)
        if W.dim() == 2:
            B, A = torch.randn(len(W), 3, generator=generator), torch.randn(3, W.shape[1], generator=generator)
            noise += 2 * B @ A
        moved[name] = W + noise * (size * W.norm() / noise.norm())
    return moved


def pruned(state: Mapping[str, Tensor], survivors: Mapping[int, int]) -> State:
    """Return a model of fewer blocks: {its block: the block that it was}, trained on a little."""
    kept = {name: W for name, W in state.items() if not name.startswith("blocks.")}
    for new, old in survivors.items():
        kept |= {
            re.sub(r"^blocks\.\d+", f"blocks.{new}", n): W for n, W in state.items() if n.startswith(f"blocks.{old}.")
        }
    return drifted(kept, 5, 0.02)


def save(path: Path, state: Mapping[str, Tensor], prefix: str = "", notes: Mapping[str, str] | None = None) -> None:
    """Write one safetensors file, its notes in order: the library itself writes them in another order each time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = serialised({prefix + name: tensor.contiguous() for name, tensor in state.items()})
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    text = json.dumps({"__metadata__": {"format": "pt", **(notes or {})}, **header}).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[8 + size :])


def save_diffusers(folder: Path, state: Mapping[str, Tensor], shards: int = 1, inner: str = "transformer") -> None:
    """Write a pipeline's folder with diffusers' names, in one file or in shards with their index."""
    place, named = folder / inner, {in_diffusers_names(name): tensor for name, tensor in state.items()}
    place.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (place / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    stem = "diffusion_pytorch_model"
    if shards == 1:
        save(place / f"{stem}.safetensors", named)
        return
    where = {}
    for number in range(shards):
        name = f"{stem}-{number + 1:05d}-of-{shards:05d}.safetensors"
        some = {key: named[key] for key in list(named)[number::shards]}
        save(place / name, some)
        where |= dict.fromkeys(some, name)
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": where})
    (place / f"{stem}.safetensors.index.json").write_text(text)


def in_blocks(name: str, W: Tensor) -> bool:
    """Say whether converters store this weight in fewer bits: the matrices of the blocks."""
    return name.startswith("blocks.") and name.endswith(".weight") and W.dim() == 2


def save_fp8(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write ComfyUI's older scaled fp8."""
    tensors: State = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, W in state.items():
        if in_blocks(name, W):
            scale = W.abs().max() / torch.finfo(torch.float8_e4m3fn).max
            tensors[name] = (W / scale).to(torch.float8_e4m3fn)
            tensors[f"{name.removesuffix('.weight')}.scale_weight"] = scale
        else:
            tensors[name] = W
    save(path, tensors)


def save_gguf(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write Q8_0 as ComfyUI-GGUF's tools do."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    writer = gguf.GGUFWriter(str(path), "wan")
    for name, W in state.items():
        if in_blocks(name, W):
            writer.add_tensor(name, gguf.quants.quantize(W.numpy(), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, W.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def save_pickle(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write a trainer's file with two entries."""
    torch.save({part: {f"model.{n}": W for n, W in state.items()} for part in ("generator", "critic")}, path)


WIDE = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 2, "projection_class_embeddings_input_dim": 12,
    "use_linear_projection": True, "block_out_channels": (8, 24, 24), "norm_num_groups": 4, "attention_head_dim": 2,
    "cross_attention_dim": 24, "sample_size": 8,
}  # fmt: skip


def sdxl(depth: tuple[int, ...] = (1, 2, 4), **changes: object) -> State:
    """Return a U-Net of SDXL's kind."""
    import diffusers

    torch.manual_seed(0)
    return diffusers.UNet2DConditionModel(**{**WIDE, "transformer_layers_per_block": depth, **changes}).state_dict()


def ssd(source: State) -> State:
    """Return a U-Net with fewer transformer blocks, the last of each, and none in the middle: as SSD-1B."""
    up = [[2, 2, 4], [2, 1, 1], 1]
    theirs = sdxl((0, 1, 2), mid_block_type="UNetMidBlock2D", reverse_transformer_layers_per_block=up)
    inner, state = re.compile(r"(.*transformer_blocks)\.(\d+)\.(.*)"), {}
    for name in theirs:
        old, found = name, inner.fullmatch(name)
        if found:
            left, had = (
                sum(n.startswith(f"{found[1]}.") and n.endswith(found[3]) for n in m) for m in (theirs, source)
            )
            old = f"{found[1]}.{int(found[2]) + (had - left)}.{found[3]}"
        state[name] = source[old]
    return drifted(state, 6, 0.02)


def save_pipeline(folder: Path, unet: State, encoder: State | None = None) -> None:
    """Write an SDXL pipeline's folder: the U-Net, and a text encoder if there is one."""
    save(folder / "unet" / "diffusion_pytorch_model.safetensors", unet)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    (folder / "unet" / "config.json").write_text("{}")
    if encoder is not None:
        save(folder / "text_encoder" / "model.safetensors", encoder)
        (folder / "text_encoder" / "config.json").write_text('{"architectures": ["CLIPTextModel"]}')


def clip() -> State:
    """Return a tiny CLIP text encoder by transformers' long names."""
    generator, width = torch.Generator().manual_seed(8), 8
    shapes: dict[str, tuple[int, ...]] = {"embeddings.token_embedding.weight": (20, width)}
    shapes |= {"embeddings.position_embedding.weight": (6, width), "final_layer_norm.weight": (width,)}
    for block in ("encoder.layers.0", "encoder.layers.1"):
        for layer, (out, inn) in {
            **{f"self_attn.{x}_proj": (width, width) for x in ("q", "k", "v", "out")},
            "mlp.fc1": (12, width), "mlp.fc2": (width, 12),
        }.items():  # fmt: skip
            shapes[f"{block}.{layer}.weight"], shapes[f"{block}.{layer}.bias"] = (out, inn), (out,)
    return {f"text_model.{name}": torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def one_file(encoder: State) -> State:
    """Return some of a Stable Diffusion 1.5 as single files hold it: attention of its U-Net, and the text encoder."""
    generator, block = torch.Generator().manual_seed(9), "model.diffusion_model.input_blocks.4.1.transformer_blocks.0"
    layers = [f"{block}.attn{number}.to_{letter}.weight" for number in (1, 2) for letter in "qkv"]
    state = {layer: torch.randn(8, 8, generator=generator) for layer in layers}
    return state | {f"cond_stage_model.transformer.{name}": W for name, W in encoder.items()}
