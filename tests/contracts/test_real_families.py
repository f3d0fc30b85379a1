"""What `inspect` says of diffusers, PEFT and Tencent's own loader is what these libraries do, family by family."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.rows import DOTTED_PAIR, PROCESSOR_PAIR
from loraport.files.loaders.rules import DEFAULT_ADAPTER
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import read_lora
from loraport.files.names.dialects import KOHYA_PAIR, PEFT_PAIR, Dialect, Pair
from loraport.files.names.families import FAMILIES as TABLES
from loraport.files.names.families import Naming
from tests.families import FAMILIES, HEADERS, IMAGE_PIPELINES, delta, factors, fused_by_diffusers

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")

PARTS = {
    "hunyuanvideo-1.5": ("transformer_blocks.0.attn.to_", "transformer_blocks.0.ff.net.2", "norm_out", "proj_out"),
    "hunyuanvideo": ("transformer_blocks.0.attn.to_", "single_transformer_blocks.0.proj_mlp", "norm_out", "proj_out"),
    "minimax-h3": (
        *("transformer_blocks.0.attn.to_", "transformer_blocks.0.ff.net.2", "transformer_blocks.0.adaln_proj"),
        *("norm_out", "proj_out"),
    ),
    "ltx-2": ("transformer_blocks.0.a", "proj_", "audio_proj_in", "time_embed", "av_cross", "prompt_adaln"),
    "flux.2": ("transformer_blocks.0.", "single_transformer_blocks.0.", "norm_out", "x_embedder", "double_stream"),
    "flux.1": ("transformer_blocks.0.attn.", "single_transformer_blocks.0.proj_", "norm_out", "x_embedder"),
    "sd1.5": ("mid_block.resnets.0.", "down_blocks.0.attentions.0.transformer_blocks.0.attn2"),
    "sdxl": ("mid_block.resnets.0.", "up_blocks.0.attentions.0.transformer_blocks.1.attn1", "add_embedding"),
    "krea2": ("transformer_blocks.0.", "text_fusion.", "time_", "final_layer"),
    "z-image": ("layers.0.", "noise_refiner.0.feed", "all_", "cap_embedder", "t_embedder"),
    "qwen-image": ("transformer_blocks.0.", "img_in", "time_", "norm_out", "proj_out"),
    "qwen-image-2.1": ("transformer_blocks.0.", "img_in", "time_", "modulation", "txt_in"),
}
"""The layers of each that are tried: attention, others, convolutions, layers outside the blocks."""
SPELLED: list[tuple[str, Naming, Pair, str, str]] = [
    # prefix (COMPONENT is the family's), names, endings, alpha, which layers
    ("COMPONENT", "diffusers", PEFT_PAIR, "", ""),
    ("COMPONENT", "diffusers", PEFT_PAIR, ".alpha", ""),
    ("COMPONENT", "diffusers", DOTTED_PAIR, "", ""),
    ("COMPONENT", "diffusers", KOHYA_PAIR, ".alpha", ""),
    ("COMPONENT", "diffusers", DEFAULT_ADAPTER, "", ""),
    ("", "diffusers", PEFT_PAIR, "", ""),
    ("diffusion_model.", "original", PEFT_PAIR, "", ""),
    ("lora_unet_", "diffusers", KOHYA_PAIR, ".alpha", ""),
    ("lora_unet_", "original", KOHYA_PAIR, ".alpha", ""),
    ("lora_unet_", "original", KOHYA_PAIR, "", ""),
    ("unet.", "diffusers", PROCESSOR_PAIR, "", ".to_"),
]
OF_IMAGES: list[tuple[str, Naming, Pair, str, str]] = [
    ("diffusion_model.", "original", PEFT_PAIR, ".alpha", ""),
    ("diffusion_model.", "original", KOHYA_PAIR, ".alpha", ""),
    ("diffusion_model.", "diffusers", PEFT_PAIR, "", ""),
    ("base_model.model.", "original", PEFT_PAIR, "", ""),
]
"""Beside those, of families whose pipelines look at these prefixes."""
CASES = [
    (family, *spelled)
    for family in FAMILIES
    for spelled in (*SPELLED, *(OF_IMAGES if family in IMAGE_PIPELINES else ()))
    if (spelled[2] != PROCESSOR_PAIR or "sd" in family) and spelled[1] in TABLES[family].namings
]


def chosen(family: str, model: Any, part: str = "") -> dict[str, tuple[Tensor, Tensor]]:
    return {name: some for name, some in factors(model).items() if name.startswith(PARTS[family]) and part in name}


def write(path: Path, dialect: Dialect, found: dict[str, tuple[Tensor, Tensor]], alpha: str) -> dict[str, Tensor]:
    """Layers that the naming fuses are left out: their spelling is tested elsewhere."""
    tensors, deltas = {}, {}
    for name, (A, B) in found.items():
        if not dialect.rows(name).whole:
            continue
        tensors |= {dialect.key(name, dialect.pair[0]): A, dialect.key(name, dialect.pair[1]): B}
        deltas[name] = delta(A, B)
        if alpha:
            tensors[dialect.key(name, alpha)] = torch.tensor(1.0)
            deltas[name] /= A.shape[0]
    save_file(tensors, path, HEADERS.get(str(dialect.family)))
    return deltas


def happens(family: str, model: Any, path: Path, deltas: dict[str, Tensor]) -> str:
    before = {name: model.get_submodule(name).weight.double() for name in deltas}
    try:
        fused_by_diffusers(family, model, path)
    except Exception:  # whatever a library raises is a refusal
        return "no"
    moved = {name: model.get_submodule(name).weight.double() - W for name, W in before.items()}
    right = all(float((moved[name] - wanted).norm()) <= 1e-4 * float(wanted.norm()) for name, wanted in deltas.items())
    return "yes" if right else "partly" if any(D.any() for D in moved.values()) else "no"


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("family", "prefix", "naming", "pair", "alpha", "part"), CASES)
def test_the_verdict_is_what_happens(
    family: str, prefix: str, naming: Naming, pair: Pair, alpha: str, part: str, tmp_path: Path
) -> None:
    model, path = FAMILIES[family].model(), tmp_path / "x.safetensors"
    prefix = prefix.replace("COMPONENT", TABLES[family].component + ".")
    dialect = Dialect(prefix, naming, pair, prefix.endswith("_"), pair == PROCESSOR_PAIR, family)
    deltas = write(path, dialect, chosen(family, model, part), alpha)
    facts = facts_of(read_lora(path))
    assert facts is not None
    said = {one.loader: one for one in verdicts(facts)}
    assert said["PEFT"].takes == "no"
    assert said["diffusers"].takes == happens(family, model, path, deltas), said["diffusers"].reasons


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_takes_its_own_folders(family: str, tmp_path: Path) -> None:
    model = FAMILIES[family].model()
    component = TABLES[family].component
    write(tmp_path / "in.safetensors", Dialect(f"{component}.", "diffusers", family=family), chosen(family, model), "")
    convert(str(tmp_path / "in.safetensors"), "peft", str(tmp_path / "out"))
    facts = facts_of(read_lora(tmp_path / "out"))
    assert facts is not None
    assert {one.loader: one.takes for one in verdicts(facts)}["PEFT"] == "yes"


class Official(diffusers.ModelMixin, diffusers.ConfigMixin, diffusers.loaders.PeftAdapterMixin):  # type: ignore[misc, name-defined]
    """The names of Tencent's model, as its generate.py has them under PEFT."""

    config_name = "config.json"

    def __init__(self) -> None:
        super().__init__()
        block = torch.nn.ModuleDict({name: torch.nn.Linear(8, 8) for name in ("img_attn_q", "img_attn_proj")})
        self.double_blocks = torch.nn.ModuleList([block])
        refiner = torch.nn.ModuleDict({"self_attn_qkv": torch.nn.Linear(8, 24)})
        inner = torch.nn.ModuleDict({"blocks": torch.nn.ModuleList([refiner])})
        self.txt_in = torch.nn.ModuleDict({"individual_token_refiner": inner})
        modulation = torch.nn.Sequential(torch.nn.SiLU(), torch.nn.Linear(8, 16))
        self.final_layer = torch.nn.ModuleDict({"adaLN_modulation": modulation})


LAYERS = {
    "double_blocks.0.img_attn_q": ("transformer_blocks.0.attn.to_q",),
    "double_blocks.0.img_attn_proj": ("transformer_blocks.0.attn.to_out.0",),
    "txt_in.individual_token_refiner.blocks.0.self_attn_qkv": tuple(
        f"context_embedder.token_refiner.refiner_blocks.0.attn.to_{letter}" for letter in "qkv"
    ),
    "final_layer.adaLN_modulation.1": ("norm_out.linear",),
}


def test_tencents_loader_merges_what_is_written_for_it(tmp_path: Path) -> None:
    """As its generate.py calls it: un-prefixed official names in a folder. Its refiners' q, k and v are of rank × 3."""
    generator, tensors, deltas = torch.Generator().manual_seed(0), {}, {}
    for layer in (name for some in LAYERS.values() for name in some):
        out = 16 if layer == "norm_out.linear" else 8
        A, B = torch.randn(2, 8, generator=generator), torch.randn(out, 2, generator=generator)
        tensors |= {f"transformer.{layer}.lora_A.weight": A, f"transformer.{layer}.lora_B.weight": B}
        deltas[layer] = B.double() @ A.double()
    save_file(tensors, tmp_path / "in.safetensors")
    (tmp_path / "folder").mkdir()
    out_file = tmp_path / "folder" / "pytorch_lora_weights.safetensors"
    convert(str(tmp_path / "in.safetensors"), "tencent", str(out_file), dtype="fp32")
    model = Official()
    before = {name: model.get_submodule(name).weight.double() for name in LAYERS}
    model.load_lora_adapter(
        tmp_path / "folder", prefix=None, adapter_name="default", use_safetensors=True, hotswap=False
    )
    model.fuse_lora()
    model.unload_lora()
    for name, layers in LAYERS.items():
        wanted = torch.cat([deltas[layer] for layer in layers])
        if "final" in name:
            wanted = torch.cat(wanted.chunk(2)[::-1])
        torch.testing.assert_close(
            model.get_submodule(name).weight.double() - before[name], wanted, rtol=1e-5, atol=1e-5
        )
    facts = facts_of(read_lora(out_file))
    assert (
        facts is not None
        and len({value.shape[0] for key, value in load_file(out_file).items() if "lora_A" in key}) == 2
    )
    said = {one.loader: one for one in verdicts(facts)}["generate.py"]
    assert said.takes == "yes", said.reasons
