"""Every kind of adapter, in every spelling, becomes every format and stays the same update; a family is a row."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.files.lora.read import read_lora
from loraport.files.lora.write import FORMATS
from loraport.files.names.families import FAMILIES as TABLES
from loraport.files.names.families import Naming, RowSlice, flattened

Shape = tuple[int, ...]
Adapter = tuple[dict[str, Tensor], Tensor]
"""The tensors of a layer by the endings of their keys, and the update in float64, as a matrix."""


@dataclass(frozen=True)
class Row:
    """A family: some layers of every shape that it has, and who spells them how."""

    layers: dict[str, Shape]
    spellings: dict[str, tuple[str, Naming]]
    """What a producer puts before the names, and whose names they are."""
    formats: tuple[str, ...]
    every: bool = True
    """Whether each producer is tried with each kind of adapter; else the first one alone, and all with LoRAs."""


UNET_PRODUCERS: dict[str, tuple[str, Naming]] = {
    "ComfyUI": ("diffusion_model.", "original"),
    "kohya": ("lora_unet_", "original"),
    "kohya, diffusers' names": ("lora_unet_", "diffusers"),
    "LyCORIS": ("lycoris_", "diffusers"),
    "diffusers": ("unet.", "diffusers"),
    "PEFT": ("base_model.model.", "diffusers"),
}

FAMILIES = {
    "wan": Row(
        {
            "blocks.0.self_attn.q": (8, 8),
            "blocks.0.ffn.0": (12, 8),
            "blocks.10.ffn.2": (8, 12),
            "patch_embedding": (8, 6, 1, 2, 2),
        },
        {
            "ComfyUI": ("diffusion_model.", "original"),
            "kohya": ("lora_unet_", "original"),
            "LyCORIS": ("lycoris_", "diffusers"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
            "FastVideo": ("", "fastvideo"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
    ),
    "flux.1": Row(
        {
            **{f"transformer_blocks.0.attn.to_{letter}": (8, 8) for letter in "qkv"},
            "transformer_blocks.3.ff_context.net.2": (8, 32),
            **{f"single_transformer_blocks.2.attn.to_{letter}": (8, 8) for letter in "qkv"},
            "single_transformer_blocks.2.proj_mlp": (32, 8),
            "x_embedder": (8, 4),
            "norm_out.linear": (16, 8),
        },
        {
            "ComfyUI": ("diffusion_model.", "original"),
            "kohya": ("lora_unet_", "original"),
            "OneTrainer": ("lora_transformer_", "diffusers"),
            "LyCORIS": ("lycoris_", "diffusers"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
            "fal": ("base_model.model.", "original"),
            "DiffSynth": ("", "diffusers"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
    ),
    "flux.2": Row(
        {
            **{f"transformer_blocks.0.attn.to_{letter}": (8, 8) for letter in "qkv"},
            "transformer_blocks.3.ff_context.linear_in": (48, 8),
            "single_transformer_blocks.2.attn.to_qkv_mlp_proj": (72, 8),
            "single_transformer_blocks.2.attn.to_out": (8, 32),
            "double_stream_modulation_img.linear": (48, 8),
            "norm_out.linear": (16, 8),
        },
        {
            "ComfyUI": ("diffusion_model.", "original"),
            "kohya": ("lora_unet_", "original"),
            "LyCORIS": ("lycoris_", "diffusers"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
    ),
    "ltx-2": Row(
        {
            "transformer_blocks.0.attn1.to_q": (8, 8),
            "transformer_blocks.47.audio_to_video_attn.to_q": (4, 8),
            "transformer_blocks.3.attn2.to_gate_logits": (2, 8),
            "transformer_blocks.3.audio_ff.net.2": (4, 16),
            "proj_in": (8, 4),
            "av_cross_attn_video_a2v_gate.linear": (8, 8),
            "prompt_adaln.emb.timestep_embedder.linear_1": (8, 6),
        },
        {
            "ComfyUI": ("diffusion_model.", "original"),
            "kohya": ("lora_unet_", "original"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
            "DiffSynth": ("", "original"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
    ),
    "hunyuanvideo-1.5": Row(
        {
            **{f"transformer_blocks.0.attn.to_{letter}": (8, 8) for letter in "qkv"},
            **{f"context_embedder.token_refiner.refiner_blocks.1.attn.to_{letter}": (8, 8) for letter in "qkv"},
            "transformer_blocks.10.ff.net.0.proj": (12, 8),
            "transformer_blocks.10.ff.net.2": (8, 12),
            "norm_out.linear": (16, 8),
            "x_embedder.proj": (8, 6, 1, 1, 1),
        },
        {
            "ComfyUI": ("diffusion_model.", "comfy"),
            "kohya for ComfyUI": ("lora_unet_", "comfy"),
            "diffusion-pipe": ("transformer.", "diffusion-pipe"),
            "Tencent": ("", "original"),
            "musubi-tuner": ("lora_unet_", "original"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
            "FastVideo": ("", "fastvideo"),
        },
        tuple(FORMATS),
    ),
    "minimax-h3": Row(
        {
            **{f"transformer_blocks.0.attn.to_{letter}": (256, 8) for letter in "qkv"},
            **{f"token_refiner.refiner_blocks.1.attn.to_{letter}": (128, 8) for letter in "qkv"},
            "transformer_blocks.10.ff.net.0.proj": (12, 8),
            "transformer_blocks.10.adaln_proj.linear": (12, 6),
            "norm_out.linear": (16, 8),
        },
        {
            "ComfyUI, ai-toolkit": ("diffusion_model.", "original"),
            "larryvrh": ("", "original"),
            "musubi-tuner": ("lora_unet_", "original"),
            "diffusers": ("transformer.", "diffusers"),
            "diffusers, of references": ("transformer_ref.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
            "DiffSynth": ("", "interleaved"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
    ),
    "sd1.5": Row(
        {
            "down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q": (8, 8),
            "up_blocks.1.attentions.2.transformer_blocks.0.attn2.to_v": (8, 12),
            "mid_block.attentions.0.proj_in": (8, 8, 1, 1),
            "down_blocks.3.resnets.1.conv2": (8, 6, 3, 3),
            "time_embedding.linear_1": (12, 8),
        },
        UNET_PRODUCERS,
        tuple(sorted(set(FORMATS) - {"tencent"})),
    ),
    "sdxl": Row(
        {
            "down_blocks.2.attentions.1.transformer_blocks.9.ff.net.0.proj": (12, 8),
            "up_blocks.0.attentions.2.proj_out": (8, 8),
            "up_blocks.1.upsamplers.0.conv": (8, 6, 3, 3),
            "mid_block.resnets.1.conv_shortcut": (8, 6, 1, 1),
            "add_embedding.linear_1": (8, 12),
        },
        UNET_PRODUCERS,
        tuple(sorted(set(FORMATS) - {"tencent"})),
    ),
    "krea2": Row(
        {
            "transformer_blocks.0.attn.to_q": (16, 16),
            "transformer_blocks.0.attn.to_v": (4, 16),
            "transformer_blocks.10.ff.down": (16, 24),
            "text_fusion.layerwise_blocks.1.ff.gate": (24, 8),
            "time_embed.linear_1": (16, 8),
            "final_layer.linear": (8, 16),
        },
        {
            "Krea, ai-toolkit, ComfyUI": ("diffusion_model.", "original"),
            "DiffSynth": ("", "original"),
            "musubi-tuner": ("lora_unet_", "original"),
            "SimpleTuner": ("lycoris_", "diffusers"),
            "diffusers": ("transformer.", "diffusers"),
            "older ai-toolkit": ("base_model.model.", "original"),
            "PEFT": ("base_model.model.", "diffusers"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
        every=False,
    ),
    "qwen-image": Row(
        {
            "transformer_blocks.0.attn.to_q": (8, 8),
            "transformer_blocks.59.attn.add_k_proj": (8, 8),
            "transformer_blocks.10.img_mod.1": (16, 8),
            "transformer_blocks.10.txt_mlp.net.2": (8, 12),
            "proj_out": (4, 8),
        },
        {
            "Lightning": ("", "diffusers"),
            "ai-toolkit": ("diffusion_model.", "diffusers"),
            "musubi-tuner": ("lora_unet_", "diffusers"),
            "SimpleTuner": ("lycoris_", "diffusers"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
        every=False,
    ),
    "z-image": Row(
        {
            **{f"layers.0.attention.to_{letter}": (8, 8) for letter in "qkv"},
            **{f"noise_refiner.1.attention.to_{letter}": (8, 8) for letter in "qkv"},
            "layers.29.feed_forward.w2": (8, 12),
            "layers.29.adaLN_modulation.0": (32, 4),
            "all_final_layer.2-1.linear": (4, 8),
            "layers.10.attention.to_out.0": (8, 8),
        },
        {
            "ai-toolkit": ("diffusion_model.", "diffusers"),
            "ComfyUI": ("diffusion_model.", "comfy"),
            "kohya for ComfyUI": ("lora_unet_", "comfy"),
            "musubi-tuner": ("lora_unet_", "diffusers"),
            "SimpleTuner": ("lycoris_", "diffusers"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
        every=False,
    ),
    "qwen-image-2.1": Row(
        {
            "transformer_blocks.0.img_mlp.gate_layer": (12, 8),
            "transformer_blocks.0.img_mlp.proj": (12, 8),
            "transformer_blocks.31.attn.to_v": (8, 8),
            "modulation.1": (16, 8),
        },
        {
            "ComfyUI": ("diffusion_model.", "comfy"),
            "kohya for ComfyUI": ("lora_unet_", "comfy"),
            "ai-toolkit": ("diffusion_model.", "diffusers"),
            "musubi-tuner": ("lora_unet_", "diffusers"),
            "diffusers": ("transformer.", "diffusers"),
            "PEFT": ("base_model.model.", "diffusers"),
        },
        tuple(sorted(set(FORMATS) - {"tencent"})),
        every=False,
    ),
}


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def lora(shape: Shape, seed: int, flat: bool) -> Adapter:
    A, B = drawn(seed, 2, *shape[1:]), drawn(seed + 1, shape[0], 2, *(1 for _ in shape[2:]))
    names = (".lora_down.weight", ".lora_up.weight") if flat else (".lora_A.weight", ".lora_B.weight")
    return dict(zip(names, (A, B), strict=True)), 1.5 * B.double().flatten(1) @ A.double().flatten(1)


def mid(shape: Shape, seed: int, flat: bool) -> Adapter:
    ones = [1 for _ in shape[2:]]
    down, up = drawn(seed, 2, shape[1], *ones), drawn(seed + 1, shape[0], 2, *ones)
    core = drawn(seed + 2, 2, 2, *shape[2:])
    delta = torch.einsum("om,mn...,ni->oi...", up.double().flatten(1), core.double(), down.double().flatten(1))
    keys = {".lora_down.weight": down, ".lora_up.weight": up, ".lora_mid.weight": core}
    return keys, 1.5 * delta.flatten(1)


def loha(shape: Shape, seed: int, flat: bool) -> Adapter:
    inn = math.prod(shape[1:])
    parts = [drawn(seed + i, *size) for i, size in enumerate([(shape[0], 2), (2, inn), (shape[0], 2), (2, inn)])]
    a1, b1, a2, b2 = (part.double() for part in parts)
    keys = dict(zip((".hada_w1_a", ".hada_w1_b", ".hada_w2_a", ".hada_w2_b"), parts, strict=True))
    return keys, 1.5 * (a1 @ b1) * (a2 @ b2)


def lokr(shape: Shape, seed: int, flat: bool) -> Adapter:
    w1, a, b = drawn(seed, 2, 2), drawn(seed + 1, shape[0] // 2, 2), drawn(seed + 2, 2, math.prod(shape[1:]) // 2)
    delta = 1.5 * torch.kron(w1.double(), a.double() @ b.double())
    return {".lokr_w1": w1, ".lokr_w2_a": a, ".lokr_w2_b": b}, delta


def whole(shape: Shape, seed: int, flat: bool) -> Adapter:
    w1, w2 = drawn(seed, 2, 2), drawn(seed + 1, shape[0] // 2, shape[1] // 2, *shape[2:])
    return {".lokr_w1": w1, ".lokr_w2": w2}, torch.kron(w1.double(), w2.double().flatten(1))


KINDS: dict[str, Callable[[Shape, int, bool], Adapter]] = {
    "LoRA": lora,
    "mid factor": mid,
    "LoHa": loha,
    "LoKr": lokr,
    "LoKr, whole": whole,
}
CASES = [
    (family, kind, who)
    for family, row in FAMILIES.items()
    for kind in KINDS
    for who in row.spellings
    if kind != "mid factor" or any(len(shape) > 2 for shape in row.layers.values())
    if row.every or kind == "LoRA" or who == next(iter(row.spellings))
    if kind == "LoRA" or who != "DiffSynth"  # whose layout is told by the name of the adapter in a LoRA's keys
]


def build(family: str, kind: str, who: str, path: Path) -> dict[str, Tensor]:
    """The file of one producer, alpha 3 at rank 2, and the updates in it; fused modules are adapted as a whole."""
    row = FAMILIES[family]
    prefix, naming = row.spellings[who]
    modules: dict[str, dict[str, RowSlice]] = {}
    for layer in row.layers:
        rows = TABLES[family].rows(layer, naming)
        assert rows is not None
        modules.setdefault(rows.name, {})[layer] = rows
    tensors, deltas = {}, {}
    for number, (name, slices) in enumerate(modules.items()):
        first, place = next(iter(slices.items()))
        out, *rest = row.layers[first]
        if kind == "mid factor" and len(rest) == 1:
            continue
        stem = prefix + (flattened(name) if prefix.endswith("_") else name)
        keys, delta = KINDS[kind]((place.stored_rows(out), *rest), 100 * number, prefix.endswith("_"))
        if who == "DiffSynth":
            keys = {ending.replace(".weight", ".default.weight"): value for ending, value in keys.items()}
        tensors |= {stem + ending: value for ending, value in keys.items()} | {f"{stem}.alpha": torch.tensor(3.0)}
        for layer, rows in slices.items():
            if naming == "interleaved" and rows.of > 1:
                deltas[layer] = torch.cat(
                    [delta[start : start + 128] for start in range(128 * rows.part, len(delta), 3 * 128)]
                )
                continue
            parts = delta.chunk(2)[::-1] if rows.swapped else delta.chunk(rows.of)[rows.part : rows.part + rows.span]
            deltas[layer] = torch.cat(parts)
    save_file(tensors, path)
    return deltas


def written_as(family: str, kind: str, who: str) -> tuple[str, ...]:
    """All formats for one producer of each kind of adapter, one for each other: what is read is one thing by then."""
    formats, number = FAMILIES[family].formats, CASES.index((family, kind, who))
    first = next(iter(FAMILIES[family].spellings))
    return formats if who == first else (formats[number % len(formats)],)


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("family", "kind", "who"), CASES)
def test_every_adapter_becomes_every_format(family: str, kind: str, who: str, tmp_path: Path) -> None:
    row = FAMILIES[family]
    deltas = build(family, kind, who, tmp_path / "in.safetensors")
    for format in written_as(family, kind, who):
        out = tmp_path / ("out" if FORMATS[format].folder else f"{format}.safetensors")
        done = convert(str(tmp_path / "in.safetensors"), format, str(out), dtype="fp32", rank="full")
        again = read_lora(out)
        assert set(deltas) <= set(again.layers) and not done.lost
        assert again.dialect.family == family or kind == "mid factor", "convolutions alone may be of either U-Net"
        for layer, delta in deltas.items():
            far = (again.updates[layer].dense().double() - delta).norm() / delta.norm()
            assert float(far) <= 1e-6, (format, layer, float(far))
            if len(row.layers[layer]) > 2 and any(one.kernel for one in again.layers.values()):
                assert again.layers[layer].kernel == row.layers[layer][2:]
