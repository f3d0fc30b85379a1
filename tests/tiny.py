"""Tiny models of the Wan family in every layout that real ones come in: deterministic, 80 kB, all roles.

States are `{canonical parameter name: tensor}`; the writers spell, prefix, split and wrap them as the real files do.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.files.names.lookup import parameter_in

State = dict[str, Tensor]

DIM, FFN, TEXT, FREQUENCIES, CHANNELS = 24, 40, 16, 8, 4


def tiny_shapes(blocks: int = 2, dim: int = DIM, ffn: int = FFN, gates: bool = False) -> dict[str, tuple[int, ...]]:
    """Every parameter of a text-to-video Wan: square, tall and wide layers, norms, the 3-D convolution."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embedding.weight": (dim, CHANNELS, 1, 2, 2),
        "patch_embedding.bias": (dim,),
    }

    def linear(name: str, out: int, inn: int) -> None:
        shapes[f"{name}.weight"], shapes[f"{name}.bias"] = (out, inn), (out,)

    linear("text_embedding.0", dim, TEXT)
    linear("text_embedding.2", dim, dim)
    linear("time_embedding.0", dim, FREQUENCIES)
    linear("time_embedding.2", dim, dim)
    linear("time_projection.1", 6 * dim, dim)
    for block in (f"blocks.{number}" for number in range(blocks)):
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for layer in "qkvo":
                linear(f"{attention}.{layer}", dim, dim)
            shapes[f"{attention}.norm_q.weight"] = shapes[f"{attention}.norm_k.weight"] = (dim,)
        shapes[f"{block}.norm3.weight"] = shapes[f"{block}.norm3.bias"] = (dim,)
        linear(f"{block}.ffn.0", ffn, dim)
        linear(f"{block}.ffn.2", dim, ffn)
        shapes[f"{block}.modulation"] = (1, 6, dim)
        if gates:
            linear(f"{block}.to_gate_compress", dim, dim)
    linear("head.head", 4 * CHANNELS, dim)
    shapes["head.modulation"] = (1, 2, dim)
    return shapes


def tiny_state(
    seed: int = 0,
    *,
    blocks: int = 2,
    dim: int = DIM,
    ffn: int = FFN,
    gates: bool = False,
    dtype: torch.dtype = torch.float32,
) -> State:
    """A random model: matrices of spectral norm about 2, everything else small."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (torch.randn(shape, generator=generator) / shape[-1] ** 0.5).to(dtype)
        for name, shape in tiny_shapes(blocks, dim, ffn, gates).items()
    }


def drifted(state: Mapping[str, Tensor], seed: int = 1, size: float = 0.1) -> State:
    """The model after a distillation: each tensor moved by noise of the given relative Frobenius norm."""
    generator = torch.Generator().manual_seed(seed)
    moved = {}
    for name, tensor in state.items():
        noise = torch.randn(tensor.shape, generator=generator)
        moved[name] = (tensor.float() + noise * (size * tensor.float().norm() / noise.norm())).to(tensor.dtype)
    return moved


def lora_factors(
    state: Mapping[str, Tensor], seed: int = 2, rank: int = 4, size: float = 0.1
) -> dict[str, tuple[Tensor, Tensor]]:
    """{layer: (B, A)} for every linear layer in the blocks, gates left out; ‖B·A‖ is the given share of ‖W‖."""
    generator = torch.Generator().manual_seed(seed)
    factors = {}
    for name, W in state.items():
        if not (name.startswith("blocks.") and name.endswith(".weight") and W.dim() == 2) or "gate" in name:
            continue
        B = torch.randn(W.shape[0], rank, generator=generator)
        A = torch.randn(rank, W.shape[1], generator=generator)
        factors[name.removesuffix(".weight")] = (B * (size * W.float().norm() / (B @ A).norm()), A)
    return factors


def write_lora(path: Path, factors: Mapping[str, tuple[Tensor, Tensor]], prefix: str = "diffusion_model.") -> Path:
    """A LoRA file with original names, `lora_A` / `lora_B` and no alpha."""
    tensors = {}
    for layer, (B, A) in factors.items():
        tensors[f"{prefix}{layer}.lora_A.weight"], tensors[f"{prefix}{layer}.lora_B.weight"] = A, B
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def in_diffusers_names(state: Mapping[str, Tensor]) -> State:
    """The same tensors under the names of diffusers; names that it does not know stay."""
    return {parameter_in(name, "diffusers") or name: tensor for name, tensor in state.items()}


def write_original(path: Path, state: Mapping[str, Tensor], prefix: str = "") -> Path:
    """One file with original names, such as ComfyUI's (`model.diffusion_model.` or nothing) and Krea's (`model.`)."""
    save_file({prefix + name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})
    return path


def write_shards(
    folder: Path,
    state: Mapping[str, Tensor],
    *,
    count: int = 3,
    index: bool = True,
    stem: str = "diffusion_pytorch_model",
) -> Path:
    """A folder of shards with the given names as they are, with or without their index."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number in range(count):
        name = f"{stem}-{number + 1:05d}-of-{count:05d}.safetensors"
        keys = list(state)[number::count]
        save_file({key: state[key].contiguous() for key in keys}, folder / name, metadata={"format": "pt"})
        weight_map.update(dict.fromkeys(keys, name))
    if index:
        text = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
        (folder / f"{stem}.safetensors.index.json").write_text(text)
    return folder


def write_diffusers(
    folder: Path, state: Mapping[str, Tensor], *, shards: int = 1, index: bool = True, inner: str = "transformer"
) -> Path:
    """A diffusers pipeline: `model_index.json`, and diffusers' names in `transformer/` as one file or as shards."""
    place = folder / inner
    place.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text('{"_class_name": "WanPipeline"}')
    (place / "config.json").write_text('{"_class_name": "WanTransformer3DModel"}')
    if shards > 1:
        write_shards(place, in_diffusers_names(state), count=shards, index=index)
    else:
        write_original(place / "diffusion_pytorch_model.safetensors", in_diffusers_names(state))
    return folder


def write_pickle(
    path: Path,
    parts: Mapping[str, Mapping[str, Tensor]],
    *,
    prefix: str = "model.",
    wrapped: bool = True,
) -> Path:
    """A trainer's file, {part: state}: keys with `model.`, and with FSDP's infixes as moving averages have them."""

    def spelled(name: str) -> str:
        if not wrapped:
            return prefix + name
        if name.startswith("blocks."):
            blocks, number, rest = name.split(".", 2)
            name = f"{blocks}.{number}._fsdp_wrapped_module.{rest}"
        return f"{prefix}_fsdp_wrapped_module.{name}"

    torch.save({part: {spelled(name): tensor for name, tensor in state.items()} for part, state in parts.items()}, path)
    return path


def _is_quantised(name: str, tensor: Tensor) -> bool:
    """Which weights real converters quantise: the matrices of the blocks."""
    return name.startswith("blocks.") and name.endswith(".weight") and tensor.dim() == 2


FP8_LAYOUTS = ("plain", "comfy, older", "comfy, header", "comfy, notes", "lightx2v", "musubi")


def in_fp8(
    state: Mapping[str, Tensor], layout: str, dtype: torch.dtype = torch.float8_e4m3fn
) -> tuple[State, dict[str, str]]:
    """(tensors, header) of a model in one of FP8_LAYOUTS; scales are chosen so that the largest value fits."""
    tensors, notes = {}, {}
    note = json.dumps({"format": str(dtype).removeprefix("torch.")}).encode()
    for name, W in state.items():
        if not _is_quantised(name, W):
            tensors[name] = W if layout != "plain" else W.to(torch.bfloat16)
            continue
        layer, top = name.removesuffix(".weight"), torch.finfo(dtype).max
        blocks = W.view(W.shape[0], 2 if layout == "musubi" else 1, -1)
        scale = blocks.abs().amax(2, keepdim=True) / top
        if layout == "plain":
            scale = torch.ones(())
        elif layout.startswith("comfy"):
            scale = W.abs().max() / top
        tensors[name] = (blocks / scale).to(dtype).view(W.shape)
        if layout == "comfy, older":
            tensors |= {f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.tensor(0.5)}
        elif layout == "musubi":
            tensors[f"{layer}.scale_weight"] = scale
        elif layout == "lightx2v":
            tensors[f"{layer}.weight_scale"] = scale.view(-1, 1)
        elif layout != "plain":
            tensors |= {f"{layer}.weight_scale": scale, f"{layer}.input_scale": torch.tensor(0.5)}
        if layout == "comfy, notes":
            tensors[f"{layer}.comfy_quant"] = torch.tensor(list(note), dtype=torch.uint8)
        notes[layer] = json.loads(note)
    if layout == "comfy, older":
        tensors["scaled_fp8"] = torch.zeros(2, dtype=dtype)
    header = {"_quantization_metadata": json.dumps({"layers": notes})} if layout == "comfy, header" else {}
    return tensors, header


def write_fp8(
    path: Path, state: Mapping[str, Tensor], layout: str, dtype: torch.dtype = torch.float8_e4m3fn, prefix: str = ""
) -> Path:
    """One file in one of FP8_LAYOUTS, with original names."""
    tensors, header = in_fp8(state, layout, dtype)
    save_file({prefix + name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata=header)
    return path


def write_gguf(
    path: Path, state: Mapping[str, Tensor], kind: str = "Q8_0", notes: Mapping[str, Sequence[int]] | None = None
) -> Path:
    """A GGUF file as ComfyUI-GGUF's tools write it: original names, matrices of the blocks quantised, the rest F32.

    Types that the package cannot quantise to get blocks of zeros. `notes` are original shapes by name.
    """
    import gguf

    type_ = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, "wan")
    for name, shape in (notes or {}).items():
        writer.add_array(f"comfy.gguf.orig_shape.{name}", list(shape))
    for name, W in state.items():
        if not _is_quantised(name, W):
            writer.add_tensor(name, W.float().numpy())
            continue
        try:
            data = gguf.quants.quantize(W.numpy(), type_)
        except (NotImplementedError, gguf.quants.QuantError):
            size, width = gguf.GGML_QUANT_SIZES[type_]
            data = np.zeros((W.shape[0], max(W.shape[1] // size, 1) * width), np.uint8)
        writer.add_tensor(name, data, raw_dtype=type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
