"""MiniMax-H3 from models to LoRA: Turbo LoRAs as targets, FastH3's gates, two partitions, fp8, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.errors import FileFormatError, MismatchError
from loraport.files.lora.read import read_lora
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import prepare
from loraport.merging import merge
from loraport.transfers.run import transfer
from tests.contracts.test_minimax_h3 import write as write_lora
from tests.families import State, minimax_h3, original_h3

pytest.importorskip("diffusers")


def state(seed: int = 0) -> State:
    """A model, or one some way off from it."""
    found = {name: value.detach().clone().contiguous() for name, value in minimax_h3().state_dict().items()}
    generator = torch.Generator().manual_seed(seed)
    return {name: value + (0.04 * value.abs().mean() * torch.randn(value.shape, generator=generator) if seed else 0)
            for name, value in found.items()}  # fmt: skip


def run(tmp_path: Path, lora: Path, source: Path, target: str, **settings: str):  # type: ignore[no-untyped-def]
    return transfer(TransferConfig(str(lora), str(source), target, str(tmp_path / "o.safetensors"), **settings))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    save_file(original_h3(state()), tmp_path / "base.safetensors")
    write_lora("ai-toolkit", tmp_path / "lora.safetensors")
    return tmp_path / "base.safetensors"


@pytest.mark.parametrize("who", ["larryvrh", "DiffSynth"])
def test_a_turbo_lora_is_a_target(who: str, base: Path, tmp_path: Path) -> None:
    """Its alpha in the header, its ranks and its rows count: the drift is what a merge of it would make."""
    write_lora(who, tmp_path / "turbo.safetensors")
    save_file(load_file(tmp_path / "turbo.safetensors"), tmp_path / "turbo.safetensors", {"alpha": "1.5"})
    beside = run(tmp_path, tmp_path / "lora.safetensors", base, f"source+{tmp_path / 'turbo.safetensors'}*0.1")
    merge(str(base), [f"{tmp_path / 'turbo.safetensors'}*0.1"], str(tmp_path / "fast.safetensors"))
    baked = run(tmp_path, tmp_path / "lora.safetensors", base, str(tmp_path / "fast.safetensors"))
    assert [row.name for row in beside.layers] == [row.name for row in baked.layers] and len(beside.layers) == 11
    for one, other in zip(beside.layers, baked.layers, strict=True):
        assert one.status == other.status == "transferred" and one.drift == pytest.approx(other.drift, rel=1e-3)
    assert not beside.keys.dropped


def test_the_two_partitions_are_a_pair_and_the_lora_keeps_its_own(base: Path, tmp_path: Path) -> None:
    save_file(original_h3(state(3)), tmp_path / "ref.safetensors")
    result = run(tmp_path, tmp_path / "lora.safetensors", base, str(tmp_path / "ref.safetensors"), format="diffusers")
    assert {row.status for row in result.layers} == {"transferred"} and not result.keys.dropped
    of_ref = {key.replace("transformer.", "transformer_ref."): value
              for key, value in load_file(tmp_path / "o.safetensors").items()}  # fmt: skip
    save_file(of_ref, tmp_path / "of_ref.safetensors")
    again = run(tmp_path, tmp_path / "of_ref.safetensors", tmp_path / "ref.safetensors", str(base), format="diffusers")
    assert not again.keys.dropped and all(key.startswith("transformer_ref.") for key in load_file(again.output))


def test_ranks_stay_as_they_are(base: Path, tmp_path: Path) -> None:
    """Its loaders scale mixed ranks rightly, and the widest layers have the smallest."""
    save_file(original_h3(state(3)), tmp_path / "ref.safetensors")
    run(tmp_path, tmp_path / "lora.safetensors", base, str(tmp_path / "ref.safetensors"), method="direct")
    ranks = {key: value.shape[0] for key, value in load_file(tmp_path / "o.safetensors").items() if "lora_A" in key}
    assert ranks["diffusion_model.blocks.0.adaln_proj.linear.lora_A.weight"] == 2
    assert ranks["diffusion_model.blocks.0.mlp.fc2.lora_A.weight"] == 3


def test_gates_of_sparse_attention_are_left_alone_and_named(base: Path, tmp_path: Path) -> None:
    gates = {f"blocks.0.attn.to_gate_compress.{leaf}": torch.ones(*shape) for leaf, shape in
             (("weight", (256, 12)), ("bias", (256,)))}  # fmt: skip
    save_file(original_h3(state(3)) | gates, tmp_path / "fast.safetensors")
    result = run(tmp_path, tmp_path / "lora.safetensors", base, str(tmp_path / "fast.safetensors"))
    assert {row.status for row in result.layers} == {"transferred"}
    assert any("to_gate_compress" in note and "left alone" in note for note in result.warnings)


def test_below_the_rounding_of_scaled_fp8_a_drift_counts_as_none(base: Path, tmp_path: Path) -> None:
    tensors: State = {}
    for name, value in original_h3(state()).items():
        if name.endswith("mlp.fc2.weight"):
            scale = value.abs().max() / 448
            tensors |= {name: (value / scale).to(torch.float8_e4m3fn), name.replace("weight", "weight_scale"): scale}
            note = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8).clone()
            tensors[name.replace("weight", "comfy_quant")] = note
        else:
            tensors[name] = value
    save_file(tensors, tmp_path / "fp8.safetensors")
    result = run(tmp_path, tmp_path / "lora.safetensors", base, str(tmp_path / "fp8.safetensors"))
    row = {row.name: row for row in result.layers}["transformer_blocks.0.ff.net.2"]
    assert row.status == "copied" and row.drift and row.floor and "rounding" in (row.reason or "")


@pytest.mark.parametrize(
    ("note", "word"),
    [
        (b'{"format": "int8_tensorwise", "convrot": true, "convrot_groupsize": 256}', "int8_tensorwise .*convrot"),
        (b'{"format": "nvfp4"}', "nvfp4"),
    ],
)
def test_codes_that_are_not_read_are_refused_by_their_names(note: bytes, word: str, base: Path, tmp_path: Path) -> None:
    tensors = original_h3(state())
    tensors["blocks.0.mlp.fc2.weight"] = torch.ones(12, 10, dtype=torch.int8)
    tensors["blocks.0.mlp.fc2.comfy_quant"] = torch.frombuffer(bytearray(note), dtype=torch.uint8).clone()
    save_file(tensors, tmp_path / "codes.safetensors")
    with pytest.raises(FileFormatError, match=word) as caught:
        prepare(TransferConfig(str(tmp_path / "lora.safetensors"), str(base), str(tmp_path / "codes.safetensors"), "o"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("module", "rows", "ending", "why"),
    [
        ("blocks.0.attn.qkv_proj", 300, ".default", "heads of 128 rows for each of 3 parts"),
        ("blocks.0.attn.qkv_proj", 301, "", "3 equal parts"),
        ("blocks.0.mlp.fc1", 21, "", "two halves"),
    ],
)
def test_rows_that_cannot_be_divided_are_refused(module: str, rows: int, ending: str, why: str, tmp_path: Path) -> None:
    A, B = torch.ones(2, 12), torch.ones(rows, 2)
    keys = {f"{module}.lora_A{ending}.weight": A, f"{module}.lora_B{ending}.weight": B}
    save_file(keys, tmp_path / "x.safetensors")
    with pytest.raises(MismatchError, match=why) as caught:
        read_lora(tmp_path / "x.safetensors")
    assert "\n" not in str(caught.value)


def test_a_merge_of_another_form_says_how_to_carry_it_over(tmp_path: Path, base: Path) -> None:
    narrow = {name: value[:, :4].contiguous() if "adaln_proj.linear.weight" in name else value
              for name, value in original_h3(state()).items() if not name.startswith("time_embedder")}  # fmt: skip
    save_file(narrow | {"adaln_t_table": torch.rand(9, 4)}, tmp_path / "pruned.safetensors")
    done = merge(
        str(tmp_path / "pruned.safetensors"), [str(tmp_path / "lora.safetensors")], str(tmp_path / "m.safetensors")
    )
    assert any("carries it over" in reason for _, reason in done.keys.dropped)
