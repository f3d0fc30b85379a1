"""What `inspect` says of diffusers and PEFT is what these libraries do with the files of every dialect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.rules import Verdict
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import read_lora
from tests.dialects import BLOCKS, CASES, FFN, RANKS, Case, Written, spelled, write
from tests.families import canonical_parameter

diffusers = pytest.importorskip("diffusers")
peft = pytest.importorskip("peft")


def tiny() -> Any:
    torch.manual_seed(0)
    return diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, text_dim=16, freq_dim=16, ffn_dim=FFN, num_layers=BLOCKS
    )


def weights(model: Any) -> dict[str, Tensor]:
    named = {canonical_parameter(name): tensor for name, tensor in model.state_dict().items()}
    return {str(name).removesuffix(".weight"): tensor.detach().double().clone() for name, tensor in named.items()}


def changed(loader: str, model: Any, path: Path) -> dict[str, Tensor]:
    """What the library adds to each layer. Raises whatever it raises."""
    before = weights(model)
    if loader == "PEFT":
        after = weights(peft.PeftModel.from_pretrained(model, str(path)).merge_and_unload())
    else:
        folder = path if path.is_dir() else path.parent
        name = "adapter_model.safetensors" if path.is_dir() else path.name
        pipe = diffusers.WanPipeline(tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=model)
        pipe.load_lora_weights(folder, weight_name=name)
        pipe.fuse_lora(components=["transformer"])
        pipe.unload_lora_weights()
        after = weights(model)
    moved = {layer: after[layer] - W for layer, W in before.items()}
    return {layer: D for layer, D in moved.items() if float(D.abs().max()) > 1e-9}


def outcome(loader: str, written: Written) -> str:
    try:
        added = changed(loader, tiny(), written.path)
    except Exception:  # whatever a library raises is a refusal
        return "no"
    right = all(
        layer in added and float((added[layer] - delta).norm()) <= 1e-4 * float(delta.norm())
        for layer, delta in written.deltas.items()
    )
    return "yes" if right else "partly" if added else "no"


def said(loader: str, written: Written) -> Verdict:
    facts = facts_of(read_lora(written.path))
    assert facts is not None
    (found,) = [one for one in verdicts(facts) if one.loader == loader]
    return found


def completed(case: Case, written: Written) -> None:
    """A configuration that libraries wrote names its modules and their ranks; the short ones of the table do not."""
    modules = {spelled(layer, "diffusers"): RANKS[layer] for layer in written.deltas}
    more = {"peft_type": "LORA", "target_modules": sorted(modules)}
    fields = {"r": 1} | (case.fields or {}) | more | {"rank_pattern": {f"^{name}": r for name, r in modules.items()}}
    if case.config == "file":
        (written.path / "adapter_config.json").write_text(json.dumps(fields))
    elif case.config:
        prefix = "transformer." if case.config == "header" else ""
        header = json.dumps({prefix + key: value for key, value in fields.items()})
        save_file(load_file(written.path), written.path, {"lora_adapter_metadata": header})


@pytest.mark.sampled(8)
@pytest.mark.parametrize("loader", ["diffusers", "PEFT"])
@pytest.mark.parametrize("case", CASES)
def test_the_verdict_is_what_happens(case: str, loader: str, tmp_path: Path) -> None:
    written = write(CASES[case], tmp_path)
    completed(CASES[case], written)
    verdict = said(loader, written)
    if loader == "PEFT" and not written.path.is_dir():
        assert verdict.takes == "no" and "folder" in verdict.reasons[0]
        return
    seen = outcome(loader, written)
    old_versions_only = any("before version 0.40" in reason for reason in verdict.reasons)
    assert (seen if seen != "yes" or not old_versions_only else "partly") == verdict.takes, verdict.reasons
