"""Good inputs of every kind that is read, small, and the commands that read each."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests import tiny

Command = tuple[str, ...]
SOURCE, TARGET, LORA = "good/source.safetensors", "good/target.safetensors", "good/lora.safetensors"
STATE = tiny.tiny_state(blocks=1)
FACTORS = tiny.lora_factors(STATE, rank=2)


def write_good(folder: Path) -> None:
    """The undamaged partners of every case: a source, a target and a LoRA."""
    (folder / "good").mkdir(parents=True)
    tiny.write_original(folder / SOURCE, STATE)
    tiny.write_original(folder / TARGET, tiny.drifted(STATE))
    tiny.write_lora(folder / LORA, FACTORS)


def lora_commands(place: str) -> list[Command]:
    """Whatever reads a LoRA."""
    pair = ("--source", SOURCE, "--target", TARGET)
    moved = ("transfer", place, *pair, "-o", "out.safetensors", "--no-cache")
    return [
        ("inspect", place),
        ("inspect", place, "--json"),
        *(("convert", place, "--to", to, "-o", f"out-{to}{'' if to == 'peft' else '.safetensors'}") for to in DIALECTS),
        ("merge", SOURCE, place, "-o", "merged.safetensors"),
        (*moved, "--method", "direct", "--transfer-diffs"),
        (*moved, "--json"),
        (*moved, "--method", "core", "--as", "diff"),
        (
            "transfer",
            LORA,
            "--source",
            SOURCE,
            "--target",
            f"source+{place}*0.5",
            "-o",
            "out.safetensors",
            "--no-cache",
        ),
    ]


DIALECTS = ("comfy", "diffusers", "kohya", "peft")


def model_commands(place: str) -> list[Command]:
    """Whatever reads a model."""
    end = ("-o", "out.safetensors", "--no-cache", "--json")
    return [
        ("inspect", place),
        ("inspect", place, "--json"),
        ("transfer", LORA, "--source", place, "--target", TARGET, "--method", "undo:0.5", *end),
        ("transfer", LORA, "--source", SOURCE, "--target", place, *end),
        ("merge", place, LORA, "-o", "merged"),
        ("merge", place, LORA, "-o", "merged.safetensors"),
        ("probe", "keep-dominant", "--source", SOURCE, "--target", place, "-o", "probed.safetensors", "--no-cache"),
    ]


def _comfy(folder: Path) -> str:
    tensors = {}
    for number, (layer, (B, A)) in enumerate(FACTORS.items()):
        tensors |= {f"diffusion_model.{layer}.lora_down.weight": A, f"diffusion_model.{layer}.lora_up.weight": B}
        if number % 2:
            tensors[f"diffusion_model.{layer}.alpha"] = torch.tensor(2.0)
    tensors["diffusion_model.blocks.0.ffn.0.diff_b"] = torch.zeros(tiny.FFN)
    tensors["diffusion_model.blocks.0.modulation.diff"] = torch.zeros(1, 6, tiny.DIM)
    save_file(tensors, folder / "comfy.safetensors", metadata={"ss_network_alpha": "1", "modelspec.title": "a"})
    return "comfy.safetensors"


def _kohya(folder: Path) -> str:
    tensors = {}
    for layer, (B, A) in FACTORS.items():
        stem = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{stem}.lora_down.weight": A, f"{stem}.lora_up.weight": B, f"{stem}.alpha": torch.tensor(1.0)}
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"] = torch.ones(2, 8)
    tensors["lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight"] = torch.ones(8, 2)
    save_file(
        tensors, folder / "kohya.safetensors", metadata={"ss_network_dim": "2", "ss_tag_frequency": '{"a": {"b": 1}}'}
    )
    return "kohya.safetensors"


def _kinds(folder: Path) -> str:
    """LoHa, LoKr, DoRA and Tucker factors, a layer each."""
    tensors = {}
    names = [f"lora_unet_{layer.replace('.', '_')}" for layer in FACTORS]
    D = tiny.DIM
    for stem in names[:2]:
        tensors |= {
            f"{stem}.hada_w{n}_{end}": torch.ones(D, 2) if end == "a" else torch.ones(2, D)
            for n in (1, 2)
            for end in "ab"
        }
    for stem in names[2:4]:
        tensors |= {f"{stem}.lokr_w1": torch.ones(4, 4), f"{stem}.lokr_w2": torch.ones(D // 4, D // 4)}
    for stem in names[4:6]:
        tensors |= {f"{stem}.lora_down.weight": torch.ones(2, D), f"{stem}.lora_up.weight": torch.ones(D, 2)}
        tensors[f"{stem}.dora_scale"] = torch.ones(D, 1)
    tensors |= {f"{stem}.alpha": torch.tensor(1.0) for stem in names[:4]}
    save_file(tensors, folder / "kinds.safetensors")
    return "kinds.safetensors"


def _peft(folder: Path) -> str:
    place = folder / "peft"
    place.mkdir()
    tiny.write_lora(place / "adapter_model.safetensors", FACTORS, prefix="base_model.model.")
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_rslora": False, "bias": "none", "rank_pattern": {},
        "alpha_pattern": {"blocks.0.ffn.0": 3}, "target_modules": ["q", "k"], "init_lora_weights": True,
    }  # fmt: skip
    (place / "adapter_config.json").write_text(json.dumps(config))
    return "peft"


def _original(folder: Path) -> str:
    tiny.write_original(folder / "model.safetensors", STATE)
    return "model.safetensors"


def _pipeline(folder: Path) -> str:
    tiny.write_diffusers(folder / "pipeline", STATE, shards=2)
    return "pipeline"


def _pickle(folder: Path) -> str:
    tiny.write_pickle(folder / "model.pt", {"generator": STATE, "generator_ema": tiny.drifted(STATE)})
    return "model.pt"


def _lora_pickle(folder: Path) -> str:
    tensors = {
        f"{layer}.lora_{side}.weight": X for layer, (B, A) in FACTORS.items() for side, X in (("A", A), ("B", B))
    }
    torch.save({"generator_lora": tensors}, folder / "lora.pt")
    return "lora.pt"


def _fp8(folder: Path) -> str:
    tiny.write_fp8(folder / "fp8.safetensors", STATE, "comfy, older")
    return "fp8.safetensors"


def _gguf(folder: Path) -> str:
    state = tiny.tiny_state(blocks=1, dim=32, ffn=64)
    tiny.write_gguf(folder / "model.gguf", state)
    return "model.gguf"


SEEDS: dict[str, tuple[Callable[[Path], str], Callable[[str], list[Command]]]] = {
    "lora, comfy": (_comfy, lora_commands),
    "lora, kohya": (_kohya, lora_commands),
    "lora, kinds": (_kinds, lora_commands),
    "lora, peft": (_peft, lora_commands),
    "lora, pickle": (_lora_pickle, lora_commands),
    "model, original": (_original, model_commands),
    "model, pipeline": (_pipeline, model_commands),
    "model, pickle": (_pickle, model_commands),
    "model, fp8": (_fp8, model_commands),
    "model, gguf": (_gguf, model_commands),
}
"""Name -> what writes the input into a folder and returns its place there, and the commands that read it."""
