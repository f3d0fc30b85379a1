"""A transfer in memory: the same tensors, notes and refusals as from file to file."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import loraport
from loraport.errors import FileFormatError, InputError, MismatchError, SettingsError
from loraport.files.adapters.peft_fields import CONFIG_NAME, WEIGHTS_NAME
from loraport.inputs.config import TransferConfig
from loraport.transfers.run import transfer
from loraport.transfers.state import SETTINGS, transfer_state
from tests import tiny

State = dict[str, torch.Tensor]
SOURCE = tiny.tiny_state(0, blocks=1)
TARGET = tiny.drifted(SOURCE)
FACTORS = tiny.lora_factors(SOURCE)


def lora(prefix: str = "diffusion_model.", ends: tuple[str, str] = (".lora_A.weight", ".lora_B.weight")) -> State:
    return {
        prefix + layer + end: tensor.contiguous()
        for layer, (B, A) in FACTORS.items()
        for end, tensor in zip(ends, (A, B), strict=True)
    }


def kohya() -> State:
    tensors = {}
    for layer, (B, A) in FACTORS.items():
        name = f"lora_unet_{layer.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": A.half(), f"{name}.lora_up.weight": B.half()}
        tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors


def dora() -> State:
    scales = {f"diffusion_model.{name}.dora_scale": SOURCE[f"{name}.weight"].norm(dim=1) * 1.1 for name in FACTORS}
    return lora() | {key: scale.unsqueeze(1) for key, scale in scales.items()}


def with_extras() -> State:
    extras = {
        "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(tiny.DIM),
        "diffusion_model.blocks.0.norm3.diff": torch.ones(tiny.DIM),
        "diffusion_model.head.head.diff": torch.ones(16, tiny.DIM) / 50,
        "diffusion_model.blocks.9.norm3.diff": torch.ones(tiny.DIM),  # the target has no such block
        "text_encoder.encoder.block.0.q.lora_A.weight": torch.ones(2, 2),
        "text_encoder.encoder.block.0.q.lora_B.weight": torch.ones(2, 2),
    }
    return lora() | extras


def two_experts() -> State:
    return lora("dit.") | {key: 2 * tensor for key, tensor in lora("dit2.").items()}


def within_rounding() -> tuple[State, State]:
    """A pair in bf16 whose drift is what rounding makes: every layer counts as unchanged."""
    source = {name: W.bfloat16() for name, W in SOURCE.items()}
    return source, {name: (W.float() * 1.002).bfloat16() for name, W in source.items()}


def fused_hunyuan() -> tuple[State, State, State]:
    from tests.families import factors, hunyuan, tencent_hunyuan

    model = hunyuan()
    source = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tensors = {}
    for name, (A, B) in factors(model).items():
        if "attn" in name:
            tensors |= {f"transformer.{name}.lora_A.weight": A, f"transformer.{name}.lora_B.weight": B / 20}
    return tensors, source, tencent_hunyuan(tiny.drifted(source))


@dataclass(frozen=True)
class Inputs:
    lora: State
    source: State = field(default_factory=lambda: dict(SOURCE))
    target: State = field(default_factory=lambda: tiny.in_diffusers_names(TARGET))
    changes: dict[str, Any] = field(default_factory=dict)
    header: dict[str, str] = field(default_factory=lambda: {"modelspec.title": "Style", "format": "pt"})


CASES = {
    "ComfyUI's, bf16": lambda: Inputs(lora()),
    "kohya's, of a part": lambda: Inputs(
        kohya(),
        {f"generator_ema.{key}": tensor for key, tensor in SOURCE.items()}
        | {f"generator.{key}": tensor * 0 for key, tensor in SOURCE.items()},
        changes={"source_part": "generator_ema", "rank": 3},
    ),
    "DoRA": lambda: Inputs(dora(), changes={"method": "undo:0.5", "dtype": "fp32"}),
    "DoRA by magnitude": lambda: Inputs(dora(), changes={"dora": "magnitude", "method": "undo:0.5"}),
    "extras": lambda: Inputs(with_extras(), changes={"transfer_diffs": True, "format": "diffusers"}),
    "within rounding": lambda: Inputs(kohya(), *within_rounding()),
    "forced": lambda: Inputs(kohya(), *within_rounding(), changes={"force_drift": True}),
    "an expert of two": lambda: Inputs(two_experts(), changes={"lora_part": "dit2", "format": "comfy"}),
    "PEFT's format": lambda: Inputs(lora(), changes={"format": "peft", "rank": "0.9"}),
    "dense": lambda: Inputs(lora(), changes={"as_diff": True, "include": ["ffn"]}),
    "a part of it": lambda: Inputs(lora(), changes={"part": "counter-drift", "dtype": "fp16"}),
    "fp8": lambda: Inputs(lora(), target=tiny.in_fp8(TARGET, "comfy, older")[0]),
    "fused": lambda: Inputs(*fused_hunyuan(), changes={"format": "tencent", "method": "undo:1", "rank": "full"}),
    "prolora": lambda: Inputs(lora(), changes={"method": "prolora", "dtype": "fp32"}),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_it_is_bit_for_bit_the_file_that_a_transfer_writes(case, tmp_path):
    given = CASES[case]()
    places = {name: str(tmp_path / f"{name}.safetensors") for name in ("lora", "source", "target")}
    for name, header in (("lora", given.header), ("source", None), ("target", None)):
        save_file({key: one.contiguous() for key, one in getattr(given, name).items()}, places[name], metadata=header)
    folder = given.changes.get("format") == "peft"
    output = tmp_path / ("out" if folder else "out.safetensors")
    written = transfer(TransferConfig(**places, output=str(output), **given.changes))
    before = {name: tensor.float() for name, tensor in given.target.items()}
    state = transfer_state(given.lora, given.source, given.target, lora_metadata=given.header, **given.changes)
    weights = output / WEIGHTS_NAME if folder else output
    of_file = load_file(weights)
    assert of_file.keys() == state.tensors.keys() != set()
    assert all(torch.equal(of_file[key], tensor) and tensor.is_contiguous() for key, tensor in state.tensors.items())
    assert all(of_file[key].dtype == tensor.dtype for key, tensor in state.tensors.items())
    assert all(torch.equal(before[key], tensor.float()) for key, tensor in given.target.items())
    assert state.config == (json.loads((output / CONFIG_NAME).read_text()) if folder else None)
    with safe_open(weights, "pt") as file:
        header = file.metadata()
    named = {"loraport.lora", "loraport.lora_sha256", "loraport.source", "loraport.target"}
    assert {key: header[key] for key in header.keys() - named} == {
        key: state.metadata[key] for key in state.metadata.keys() - named
    }
    rows = [[{**row.as_json(), "seconds": 0, "reason": ""} for row in one.layers] for one in (written, state.result)]
    assert rows[0] == rows[1]
    keys = [one.keys.as_json() for one in (written, state.result)]
    dropped = [[key for key, _ in one.pop("dropped")] for one in keys]
    assert keys[0] == keys[1] and dropped[0] == dropped[1]
    assert len(written.warnings) == len(state.result.warnings)
    save_file(dict(state.tensors), tmp_path / "again.safetensors")  # which refuses tensors that share memory


def test_places_and_tensors_go_together_and_what_is_saved_is_the_file_itself(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.write_lora(Path("lora.safetensors"), FACTORS)
    tiny.write_original(Path("source.safetensors"), SOURCE)
    tiny.write_diffusers(Path("target"), TARGET)
    tiny.write_lora(Path("fast.safetensors"), tiny.lora_factors(SOURCE, seed=9))
    for target in ("target", "source+fast.safetensors*0.5"):
        transfer(TransferConfig("lora.safetensors", "source.safetensors", target, "out.safetensors"))
        state = transfer_state("lora.safetensors", Path("source.safetensors"), target)
        assert state.save("again.safetensors").read_bytes() == Path("out.safetensors").read_bytes()
        in_memory = transfer_state(lora(), dict(SOURCE), target)
        assert all(torch.equal(tensor, in_memory.tensors[key]) for key, tensor in state.tensors.items())
    assert in_memory.metadata["loraport.accelerator_strength"] == "0.5"
    assert set(os.listdir()) == {*("lora.safetensors", "source.safetensors", "target", "fast.safetensors"),
                                 *("out.safetensors", "again.safetensors")}  # fmt: skip


def test_a_lora_of_peft_in_memory_has_its_alpha_from_its_configuration():
    tensors = lora("base_model.model.")
    plain = transfer_state(tensors, SOURCE, TARGET, method="direct", dtype="fp32").tensors
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 16}
    scaled = transfer_state(tensors, SOURCE, TARGET, method="direct", dtype="fp32", lora_config=config).tensors
    layer = "base_model.model.blocks.0.ffn.0"
    product, wanted = (one[f"{layer}.lora_B.weight"] @ one[f"{layer}.lora_A.weight"] for one in (scaled, plain))
    assert torch.allclose(product, 4 * wanted, rtol=1e-6) and float(wanted.norm()) > 0


class Sparse(torch.Tensor):
    """A tensor of a library's own kind, as quantised ones are."""


REFUSED = {
    "numpy": ({**SOURCE, "blocks.0.ffn.0.weight": np.ones(3)}, r"is a numpy.ndarray, where a torch tensor belongs"),
    "meta": ({**SOURCE, "blocks.0.ffn.0.weight": torch.ones(2, 2, device="meta")}, "on the device meta"),
    "another kind": ({"blocks.0.ffn.0.weight": torch.ones(2, 2).as_subclass(Sparse)}, "is a Sparse, not a plain"),
    "sparse": ({"blocks.0.ffn.0.weight": torch.eye(2).to_sparse()}, "of layout torch.sparse_coo, not a plain"),
    "a number as key": ({3: torch.ones(1)}, "the key 3 is a int, and keys are texts"),
    "nothing": ({}, "holds no tensors"),
    "a LoRA": (lora(), "is a LoRA, where a model belongs"),
    "not finite": ({**SOURCE, "blocks.0.ffn.0.weight": torch.full((40, 24), torch.nan)}, "NaN or infinite values"),
    "codes": ({**SOURCE, "blocks.0.ffn.0.weight": torch.ones(40, 24, dtype=torch.int8)}, "stored as"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_a_model_is_refused_by_name(case):
    source, message = REFUSED[case]
    with pytest.raises(InputError, match=message) as caught:
        transfer_state(lora(), source, TARGET)
    assert "the source in memory" in str(caught.value) and isinstance(caught.value, InputError)


def test_what_does_not_go_together_is_refused_as_from_files():
    with pytest.raises(FileFormatError, match="the LoRA in memory"):
        transfer_state(SOURCE, SOURCE, TARGET)
    with pytest.raises(MismatchError, match="this LoRA was made for another model"):
        transfer_state(lora(), tiny.tiny_state(blocks=1, dim=16, ffn=20), TARGET)
    with pytest.raises(SettingsError, match="unknown setting 'methode'; did you mean 'method'"):
        transfer_state(lora(), SOURCE, TARGET, methode="casa")
    with pytest.raises(SettingsError, match="unknown setting 'output'"):
        transfer_state(lora(), SOURCE, TARGET, output="x.safetensors")
    with pytest.raises(SettingsError, match="a file has its own"):
        transfer_state("x.safetensors", SOURCE, TARGET, lora_config={"r": 4})
    with pytest.raises(SettingsError, match=r"source holds tensors, .*; transfer_state takes tensors"):
        TransferConfig("lora.safetensors", SOURCE, "target/", "out.safetensors")
    assert {*SETTINGS, "lora", "source", "target", "output"} == {one.name for one in fields(TransferConfig)}


def test_a_model_and_a_lora_in_memory_are_opened_like_files():
    model = loraport.open_checkpoint(tiny.in_diffusers_names(TARGET))
    assert (model.naming, model.where) == ("diffusers", "the model in memory") and not model.paths
    weight = model.read("blocks.0.ffn.0").matrix
    weight.zero_()
    assert torch.equal(model.tensor("blocks.0.ffn.0.weight"), TARGET["blocks.0.ffn.0.weight"])
    assert loraport.read_lora(kohya()).layers["blocks.0.ffn.0"].scale == 0.5
    same = transfer_state(lora(), SOURCE, SOURCE)
    assert sum("the drift is zero" in note for note in same.result.warnings) == 1


def test_progress_is_reported_and_only_to_the_methods_that_are_there():
    class Notes:
        def __init__(self):
            self.heard = []

        def note(self, text):
            self.heard.append(text)

    listener = Notes()
    state = transfer_state(lora(), SOURCE, SOURCE, progress=listener)
    assert listener.heard == list(state.result.warnings)
    with pytest.raises(SettingsError, match="progress is a list without any of the methods step, advance, note"):
        transfer_state(lora(), SOURCE, TARGET, progress=[])
