"""HunyuanVideo-1.5 from files to files: the base in diffusers' layout, distilled models in Tencent's and ComfyUI's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.errors import InputError
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from loraport.inputs.config import RankRule, TransferConfig
from loraport.inputs.open import prepare
from loraport.transfers.run import transfer
from tests.families import WEIGHTS, comfy_hunyuan, delta, factors, hunyuan, tencent_hunyuan, write_pipeline
from tests.tiny import drifted

pytest.importorskip("diffusers")


@pytest.fixture
def pair(tmp_path):
    """(folder, source state, target state, the LoRA's updates); the LoRA is on the blocks, refiners and modulations."""
    model = hunyuan()
    source = model.state_dict()
    target = drifted(source)
    write_pipeline(tmp_path / "base", source, "transformer", "HunyuanVideo15Pipeline")
    found = {name: some for name, some in factors(model).items() if "norm" in name or "attn" in name or "ff" in name}
    tensors = {}
    for name, (A, B) in found.items():
        tensors |= {f"transformer.{name}.lora_A.weight": A, f"transformer.{name}.lora_B.weight": B / 20}
    save_file(tensors, tmp_path / "lora.safetensors")
    return tmp_path, source, target, {name: delta(A, B / 20) for name, (A, B) in found.items()}


def tencent(folder: Path, state) -> Path:
    """`transformer/480p_t2v_distilled/`: official names, one file, a configuration beside it."""
    place = folder / "transformer" / "480p_t2v_distilled"
    place.mkdir(parents=True)
    save_file(tencent_hunyuan(state), place / WEIGHTS)
    (place / "config.json").write_text("{}")
    return place


def comfy(folder: Path, state) -> Path:
    path = folder / "hunyuanvideo1.5_480p_t2v_cfg_distilled_fp16.safetensors"
    folder.mkdir()
    save_file({name: tensor.half() for name, tensor in comfy_hunyuan(state).items()}, path)
    return path


def test_the_official_layout_holds_every_layer(pair):
    folder, _, target, _ = pair
    theirs = open_checkpoint(tencent(folder / "distilled", target))
    assert set(theirs) == set(target) and not theirs.extra and theirs.naming == "original"
    assert all(torch.equal(theirs.tensor(name), tensor) for name, tensor in target.items())


@pytest.mark.parametrize("format", ["same", "comfy", "tencent", "kohya", "peft"])
def test_a_lora_is_moved_onto_the_distilled_model(pair, format):
    """By undo, whose answer is known: D − (W_t − W_s), layer by layer; fused or not, it is the same in every format."""
    folder, source, target, deltas = pair
    out = folder / ("out" if format == "peft" else "out.safetensors")
    place = tencent(folder / "distilled", target)
    config = TransferConfig(
        str(folder / "lora.safetensors"), str(folder / "base"), str(place), str(out),
        method="undo:1", rank=RankRule("full"), dtype="fp32", format=format,
    )  # fmt: skip
    result = transfer(config)
    assert result.keys.as_json() == {"in": 2 * len(deltas), "transferred": 2 * len(deltas), "copied": 0, "dropped": []}
    written = read_lora(out)
    assert set(written.layers) == set(deltas)
    for name, D in deltas.items():
        wanted = D.double() - (target[f"{name}.weight"].double() - source[f"{name}.weight"].double())
        assert float((written.updates[name].dense().double() - wanted).norm() / wanted.norm()) < 1e-4, name


def test_comfyuis_file_is_the_same_target(pair):
    """It holds a part of the layers here; those, to the rounding of fp16."""
    folder, source, target, deltas = pair
    place = comfy(folder / "comfy", target)
    config = TransferConfig(
        str(folder / "lora.safetensors"), str(folder / "base"), str(place), str(folder / "out.safetensors"),
        method="undo:1", rank=RankRule("full"), dtype="fp32", format="comfy",
    )  # fmt: skip
    done = {row.name: row for row in transfer(config).layers}
    written = read_lora(folder / "out.safetensors")
    moved = [name for name, row in done.items() if row.status == "transferred"]
    assert {"transformer_blocks.0.attn.to_k", "norm_out.linear", "transformer_blocks.0.attn.add_v_proj"} < set(moved)
    for name in moved:
        W_t, W_s = target[f"{name}.weight"].half().double(), source[f"{name}.weight"].double()
        wanted = deltas[name].double() - (W_t - W_s)
        assert float((written.updates[name].dense().double() - wanted).norm() / wanted.norm()) < 1e-3, name


def test_the_written_files_ranks(pair):
    """ComfyUI: fused modules of three times the rank, the others of one. Elsewhere one rank for all."""
    folder, _, target, _ = pair
    place = tencent(folder / "distilled", target)
    for format, expected in (("comfy", {4, 12}), ("diffusers", {4}), ("kohya", {4, 12})):
        out = folder / f"{format}.safetensors"
        transfer(
            TransferConfig(
                str(folder / "lora.safetensors"),
                str(folder / "base"),
                str(place),
                str(out),
                method="undo:1",
                dtype="fp32",
                format=format,
            )
        )
        downs = {
            key: value.shape[0] for key, value in load_file(out).items() if key.endswith(("A.weight", "down.weight"))
        }
        assert set(downs.values()) == expected, format
        assert all(("qkv" in key) == (rank == 12) for key, rank in downs.items())
        alphas = {key: float(value) for key, value in load_file(out).items() if key.endswith(".alpha")}
        assert all(alphas[key.replace("lora_down.weight", "alpha")] == rank for key, rank in downs.items() if alphas)


def test_a_step_distilled_model_has_a_second_time_that_is_left_alone(pair):
    folder, _, target, _ = pair
    second = {f"time_r_in.mlp.{number}.weight": torch.randn(8, 8) for number in (0, 2)}
    place = tencent(folder / "distilled", target)
    save_file(load_file(place / WEIGHTS) | second, place / WEIGHTS)
    ready = prepare(
        TransferConfig(
            str(folder / "lora.safetensors"), str(folder / "base"), str(place), str(folder / "o.safetensors")
        )
    )
    assert any(
        "layers that the source lacks, left alone: time_embed.timestep_embedder_r" in w for w in ready.plan.warnings
    )
    assert ready.pairing is None


def test_a_copy_of_the_whole_repository_says_which_versions_it_has(pair):
    folder, _, target, _ = pair
    place = tencent(folder / "whole", target)
    with pytest.raises(InputError, match=f"has its weights in a subfolder; name one of: {place}"):
        open_checkpoint(folder / "whole")
