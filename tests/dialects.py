"""A tiny LoRA in every dialect: known updates, alpha unlike rank wherever a dialect can store it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from loraport.files.lora import write as lora_write
from loraport.files.names.families import Naming, flattened
from loraport.files.names.lookup import layer_in

FORMATS = {name: dialect for name, dialect in lora_write.FORMATS.items() if name != "tencent"}
"""What LoRAs of Wan are written in."""

DIM, FFN, BLOCKS = 24, 32, 2
SHAPES = {
    f"blocks.{block}.{layer}": shape
    for block in range(BLOCKS)
    for layer, shape in {
        **{f"{attention}.{x}": (DIM, DIM) for attention in ("self_attn", "cross_attn") for x in "qkvo"},
        "ffn.0": (FFN, DIM),
        "ffn.2": (DIM, FFN),
    }.items()
}
RANKS = {layer: 2 + (index % 3) for index, layer in enumerate(SHAPES)}
ALPHA = 5.0


@dataclass(frozen=True)
class Written:
    """Where the LoRA lies, its scale per layer, and its updates in float64."""

    path: Path
    scales: dict[str, float]
    deltas: dict[str, Tensor]


def factors() -> dict[str, tuple[Tensor, Tensor]]:
    """(A, B) per layer: scattered fractions of 256, by whole numbers only, so that every machine has the same ones."""
    drawn = {}
    for index, (layer, (rows, columns)) in enumerate(SHAPES.items()):
        rank = RANKS[layer]
        drawn[layer] = (_scattered(2 * index, rank, columns), _scattered(2 * index + 1, rows, rank))
    return drawn


def _scattered(seed: int, *shape: int) -> Tensor:
    count = torch.arange(math.prod(shape)) + 1000 * seed
    return ((count * count * 7919 + count * 104729) % 1009 - 504).reshape(shape) / 256


def delta(A: Tensor, B: Tensor, scale: float) -> Tensor:
    """s · B·A in float64."""
    return scale * (B.double() @ A.double())


def spelled(layer: str, naming: Naming) -> str:
    """A layer that the table has."""
    name = layer_in(layer, naming)
    assert name is not None
    return name


Spell = Callable[[str], str]


def _original(layer: str) -> str:
    return layer


def _diffusers(layer: str) -> str:
    return spelled(layer, "diffusers")


def _flat(layer: str) -> str:
    return flattened(layer)


def _flat_diffusers(layer: str) -> str:
    return flattened(spelled(layer, "diffusers"))


def _fastvideo(layer: str) -> str:
    return spelled(layer, "fastvideo")


def _processor(layer: str) -> str:
    attention, _, projection = spelled(layer, "diffusers").removesuffix(".0").rpartition(".")
    return f"{attention}.processor.{projection}"


@dataclass(frozen=True)
class Case:
    """How one dialect is written. `alpha`: the ending of the scale's key; `config`: where a configuration goes."""

    prefix: str
    spell: Spell
    down: str
    up: str
    alpha: str = ""
    config: str = ""
    fields: dict[str, Any] | None = None
    attention_only: bool = False
    metadata: dict[str, str] | None = None


AB = (".lora_A.weight", ".lora_B.weight")
DOWN_UP = (".lora_down.weight", ".lora_up.weight")
PATTERNS: dict[str, Any] = {
    "r": 8,
    "lora_alpha": 3,
    "alpha_pattern": {"attn1.to_q": 7, "^blocks.1.ffn.net.2": 11, r".*attn2\.to_(k|v)": 13, "to_q": 17},
    "rank_pattern": {"attn1.to_q": 2},
}
CASES: dict[str, Case] = {
    "g1": Case("transformer.", _diffusers, *AB),
    "g1-header": Case("transformer.", _diffusers, *AB, config="header", fields={"r": 3, "lora_alpha": ALPHA}),
    "g1-header-patterns": Case("transformer.", _diffusers, *AB, config="header", fields=PATTERNS),
    "g2": Case("", _diffusers, *AB),
    "g2-header-rslora": Case(
        "", _diffusers, *AB, config="plain header", fields={"r": 3, "lora_alpha": ALPHA, "use_rslora": True}
    ),
    "g2-original": Case("", _original, *AB),
    "g3": Case("base_model.model.", _diffusers, *AB, config="file", fields={"r": 3, "lora_alpha": ALPHA}),
    "g3-defaults": Case("base_model.model.", _diffusers, *AB, config="file", fields={}),
    "g3-patterns": Case("base_model.model.", _diffusers, *AB, config="file", fields=PATTERNS),
    "g3-rslora": Case(
        "base_model.model.", _diffusers, *AB, config="file", fields=PATTERNS | {"use_rslora": True, "peft_type": "LORA"}
    ),
    "g4": Case("diffusion_model.", _original, *AB),
    "g4-alpha": Case("diffusion_model.", _original, *DOWN_UP, alpha=".alpha"),
    "g4-notes": Case("diffusion_model.", _original, *AB, metadata={"ss_network_alpha": "1.0", "ss_network_dim": "32"}),
    "g4-long-prefix": Case("model.diffusion_model.", _original, *AB, alpha=".alpha"),
    "g5": Case("lora_unet_", _flat, *DOWN_UP, alpha=".alpha"),
    "g5-notes": Case("lora_unet_", _flat, *DOWN_UP, metadata={"ss_network_alpha": str(ALPHA), "ss_network_dim": "99"}),
    "g5b": Case("lora_unet__", _flat, *DOWN_UP, alpha=".alpha"),
    "g6": Case("lycoris_", _flat_diffusers, *DOWN_UP, alpha=".alpha"),
    "g7": Case("lora_transformer_", _flat_diffusers, *DOWN_UP, alpha=".alpha"),
    "g8": Case("", _diffusers, ".lora_A.default.weight", ".lora_B.default.weight"),
    "g8-named": Case("diffusion_model.", _original, ".lora_A.mine.weight", ".lora_B.mine.weight", alpha=".alpha"),
    "g9-processor": Case("", _processor, "_lora.down.weight", "_lora.up.weight", attention_only=True),
    "g9-linear-layer": Case(
        "transformer.", _diffusers, ".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"
    ),
    "g9-dotted": Case("transformer.", _diffusers, ".lora.down.weight", ".lora.up.weight"),
    "g9-bare": Case("transformer.", _diffusers, ".lora_A", ".lora_B"),
    "g1-alpha": Case("transformer.", _diffusers, *AB, alpha=".alpha"),
    "g4-diffusers-names": Case("diffusion_model.", _diffusers, *AB),
    "g4-header": Case("diffusion_model.", _original, *AB, config="header", fields={"r": 3, "lora_alpha": ALPHA}),
    "g11": Case("transformer.", _diffusers, *DOWN_UP, alpha=".alpha"),
    "g10": Case("", _fastvideo, *AB, alpha=".lora_alpha"),
    "diffsynth": Case("pipe.dit.", _original, *AB),
    "net": Case("module.net.", _original, *DOWN_UP, alpha=".alpha"),
    "compiled": Case("_orig_mod.base_model.model._orig_mod.", _diffusers, *AB, config="file", fields={"lora_alpha": 3}),
    "in no list": Case("distiller.student.", _original, *AB),
    "in no list, flat": Case("lora_wan_", _flat, *DOWN_UP, alpha=".alpha"),
    "krea": Case("generator.model.", _original, *DOWN_UP, alpha=".alpha"),
}


def write(case: Case, folder: Path, extras: dict[str, Tensor] | None = None) -> Written:
    """The LoRA in one dialect, with extra keys as they are given."""
    tensors = dict(extras or {})
    scales: dict[str, float] = {}
    deltas: dict[str, Tensor] = {}
    for layer, (A, B) in factors().items():
        if case.attention_only and ".ffn." in layer:
            continue
        name = case.prefix + case.spell(layer)
        tensors |= {name + case.down: A, name + case.up: B}
        if case.alpha:
            tensors[name + case.alpha] = torch.tensor(ALPHA)
        if case.alpha == ".lora_alpha":
            tensors[name + ".lora_rank"] = torch.tensor(RANKS[layer])
        scales[layer] = expected_scale(case, layer)
        deltas[layer] = delta(A, B, scales[layer])
    return Written(_save(case, folder, tensors), scales, deltas)


def expected_scale(case: Case, layer: str) -> float:
    """Written out once more, by hand: what the rules of each dialect say."""
    rank = RANKS[layer]
    if case.alpha:
        return ALPHA / rank
    if case.fields is None:
        return 1.0
    alpha = float(case.fields.get("lora_alpha", 8))
    if "alpha_pattern" in case.fields:
        alpha = pattern_alpha(layer)
    return alpha / (math.sqrt(rank) if case.fields.get("use_rslora") else rank)


def pattern_alpha(layer: str) -> float:
    """What PATTERNS means for a canonical layer; the first pattern that matches wins."""
    if layer.endswith("self_attn.q"):
        return 7
    if layer == "blocks.1.ffn.2":
        return 11
    if layer.endswith(("cross_attn.k", "cross_attn.v")):
        return 13
    return 17 if layer.endswith("cross_attn.q") else 3


def _save(case: Case, folder: Path, tensors: dict[str, Tensor]) -> Path:
    metadata = {"format": "pt"} | (case.metadata or {})
    fields = case.fields or {}
    if case.config == "header":
        metadata["lora_adapter_metadata"] = json.dumps({f"transformer.{key}": value for key, value in fields.items()})
    elif case.config == "plain header":
        metadata["lora_adapter_metadata"] = json.dumps(fields)
    if case.config != "file":
        save_file(tensors, folder / "lora.safetensors", metadata)
        return folder / "lora.safetensors"
    save_file(tensors, folder / "adapter_model.safetensors", metadata)
    (folder / "adapter_config.json").write_text(json.dumps(fields))
    return folder
