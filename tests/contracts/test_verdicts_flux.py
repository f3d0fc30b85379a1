"""FLUX.1, FLUX.2 and LTX-2: what `inspect` says of odd files is what diffusers' pipelines do with them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import read_lora
from loraport.files.names.families import flattened
from tests.contracts.test_verdicts import DOWN_UP, Tensors, beside, both, happens, written
from tests.families import HEADERS

Made = tuple[Tensors, Tensors]
ATTENTION = r"transformer_blocks\.0\.attn\.(to_out\.0|to_add_out)"
OWN = r"(single_)?transformer_blocks\.0\.(attn\.to_k|norm.*linear|ff\.net\.2|proj_out)"


def respelled(made: Made, names: dict[str, str]) -> Made:
    """The same file with parts of its keys replaced."""

    def new(key: str) -> str:
        for old, theirs in names.items():
            key = key.replace(old, theirs)
        return key

    return {new(key): tensor for key, tensor in made[0].items()}, made[1]


XLABS = {"transformer.transformer_blocks.0.attn.to_out.0": "double_blocks.0.processor.proj_lora1",
         "transformer.transformer_blocks.0.attn.to_add_out": "double_blocks.0.processor.proj_lora2",
         ".lora_A.": ".down.", ".lora_B.": ".up."}  # fmt: skip
ONETRAINER = {f"transformer.transformer_blocks.0.{name}.": f"lora_transformer_transformer_blocks_0_{flattened(name)}."
              for name in ("attn.to_out.0", "attn.to_add_out", "ff.net.2")}  # fmt: skip


def with_halves_exchanged(made: Made) -> Made:
    """The rows of the last modulation as the original orders them: (shift, scale), and not (scale, shift)."""
    tensors, deltas = made
    return tensors, deltas | {"norm_out.linear": torch.cat(deltas["norm_out.linear"].chunk(2)[::-1])}


FILES: dict[tuple[str, str], Callable[[], Made]] = {
    ("flux.1", "diffusers' own"): lambda: written("flux.1", OWN, "transformer."),
    ("flux.1", "own with an alpha"): lambda: written("flux.1", OWN, "transformer.", "alpha"),
    ("flux.1", "own, down and up, with an alpha"): lambda: written("flux.1", OWN, "transformer.", "alpha", DOWN_UP),
    ("flux.1", "own, down and up"): lambda: written("flux.1", OWN, "transformer.", "", DOWN_UP),
    ("flux.1", "original, A and B"): lambda: written("flux.1", ATTENTION, "diffusion_model."),
    ("flux.1", "original, down and up"): lambda: written("flux.1", ATTENTION, "diffusion_model.", "alpha", DOWN_UP),
    ("flux.1", "kohya"): lambda: written("flux.1", ATTENTION, "lora_unet_original_", "alpha", DOWN_UP),
    ("flux.1", "kohya with an embedder"): lambda: written(
        "flux.1", f"{ATTENTION}|x_embedder", "lora_unet_original_", "alpha", DOWN_UP
    ),
    ("flux.1", "XLabs"): lambda: respelled(written("flux.1", ATTENTION, "transformer."), XLABS),
    ("flux.1", "OneTrainer"): lambda: respelled(
        written("flux.1", ATTENTION, "transformer.", "alpha", DOWN_UP), ONETRAINER
    ),
    ("flux.1", "OneTrainer without alpha"): lambda: respelled(
        written("flux.1", ATTENTION, "transformer.", "", DOWN_UP), ONETRAINER
    ),
    ("flux.1", "OneTrainer beyond attention"): lambda: respelled(
        written("flux.1", f"{ATTENTION}|transformer_blocks.*ff\\.net\\.2", "transformer.", "alpha", DOWN_UP), ONETRAINER
    ),
    ("flux.1", "fal, not whole"): lambda: respelled(
        written("flux.1", ATTENTION, "diffusion_model."), {"diffusion_model.": "base_model.model."}
    ),
    ("flux.2", "diffusers' own"): lambda: written(
        "flux.2", r".*(to_qkv_mlp_proj|linear_in|modulation.*)", "transformer."
    ),
    ("flux.2", "own with an alpha"): lambda: written("flux.2", r".*to_qkv_mlp_proj", "transformer.", "alpha"),
    ("flux.2", "original"): lambda: written("flux.2", r".*(linear_in|to_qkv_mlp_proj|img\.linear)", "diffusion_model."),
    ("flux.2", "original with an alpha"): lambda: written(
        "flux.2", r".*(linear_in|mlp_proj)", "diffusion_model.", "alpha"
    ),
    ("flux.2", "original with the last modulation"): lambda: with_halves_exchanged(
        written("flux.2", r".*mlp_proj|norm_out.*", "diffusion_model.")
    ),
    ("flux.2", "diffusers' blocks behind the other prefix"): lambda: respelled(
        written("flux.2", r".*(linear_in|mlp_proj)", "transformer."), {"transformer.": "diffusion_model."}
    ),
    ("flux.2", "kohya"): lambda: written("flux.2", r".*(mlp_proj|linear_in)", "lora_unet_original_", "alpha", DOWN_UP),
    ("flux.2", "kohya with a modulation"): lambda: written(
        "flux.2", r".*(mlp_proj|img\.linear)", "lora_unet_original_", "alpha", DOWN_UP
    ),
    ("flux.2", "a difference beside"): lambda: beside(
        written("flux.2", r".*mlp_proj", "transformer."), **{"transformer.norm_out.diff": (16,)}
    ),
    ("ltx-2", "diffusers' own"): lambda: written("ltx-2", r".*(attn1\.to_[qk]|time_embed\.linear)", "transformer."),
    ("ltx-2", "original"): lambda: written("ltx-2", r".*(audio_ff.*|to_gate_logits|proj_in)", "diffusion_model."),
    ("ltx-2", "original with an alpha"): lambda: written("ltx-2", r".*attn1\.to_q", "diffusion_model.", "alpha"),
    ("ltx-2", "both prefixes"): lambda: both(
        written("ltx-2", r".*\.attn1\.to_q", "diffusion_model."), written("ltx-2", r".*\.attn1\.to_k", "transformer.")
    ),
    ("ltx-2", "no prefix"): lambda: written("ltx-2", r".*attn1\.to_q", ""),
}


@pytest.mark.parametrize(("family", "name"), FILES, ids=[re.sub(r"\W+", "-", f"{one} {name}") for one, name in FILES])
def test_the_verdict_on_diffusers_is_what_it_does(family: str, name: str, tmp_path: Path) -> None:
    torch.manual_seed(1)
    tensors, deltas = FILES[family, name]()
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, HEADERS.get(family, {"modelspec.architecture": family}))
    facts = facts_of(read_lora(path))
    assert facts is not None and facts.family == family
    (said,) = (one for one in verdicts(facts) if one.loader == "diffusers")
    counted = {re.sub(r"\.(down|up)\.weight$", r".lora_\1.weight", key): tensor for key, tensor in tensors.items()}
    assert said.takes == happens(family, path, counted, deltas), said.reasons
    assert said.takes == "yes" or said.reasons
