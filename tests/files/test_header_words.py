"""What a trainer's header says of a LoRA is kept where it stays true, and shown to people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.conversion import convert
from loraport.files.inspect import describe, summary_lines
from loraport.files.lora.header import lasting_fields, shown_fields
from loraport.inputs.config import TransferConfig
from loraport.transfers.run import transfer
from tests import tiny

STAYS = {
    "modelspec.title": "Ink",
    "modelspec.author": "Ada",
    "modelspec.license": "CC-BY-4.0",
    "modelspec.trigger_phrase": "ink style",
    "modelspec.architecture": "wan2.1/lora",
    "modelspec.date": "2026-01-01",
    "ss_tag_frequency": json.dumps({"10_ink": {"ink style": 12, "a cat": 3}, "5_more": {"a cat": 1}}),
    "ss_base_model_version": "wan2.1",
    "ss_sd_model_name": "wan2.1_t2v_14B.safetensors",
    "ss_training_comment": "two days",
    "ss_learning_rate": "1e-4",
    "trained_words": "ink",
    "software": '{"name": "ai-toolkit", "version": "0.7"}',
    "training_info": '{"step": 2000}',
    "usage tips": "0.8 is enough",
}
GOES = {
    "format": "pt",
    "sshs_model_hash": "ab",
    "sshs_legacy_hash": "cd",
    "ss_new_sd_model_hash": "ef",
    "modelspec.hash_sha256": "01",
    "autoV3": "23",
    "ss_network_dim": "32",
    "ss_network_alpha": "1",
    "ss_network_module": "networks.lora_wan",
    "ss_network_args": '{"conv_dim": "8"}',
    "alpha": "8",
    "loraAlpha": "8",
    "rank": "16",
    "transformer.r": "16",
    "lora_config": '{"r": 16, "lora_alpha": 32}',
    "modelspec.implementation": "diffusers",
    "loraport.note": "ours is told apart",
}


def header(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


@pytest.fixture
def style(tmp_path: Path) -> Path:
    factors = tiny.lora_factors(tiny.tiny_state())
    path = tiny.write_lora(tmp_path / "ink.safetensors", factors)
    save_file(load_file(path), path, STAYS | GOES)
    return path


def test_fields_about_the_lora_stay_and_those_about_a_file_go() -> None:
    assert lasting_fields(STAYS | GOES) == STAYS


@pytest.mark.parametrize("to", ["kohya", "diffusers", "peft"])
def test_convert_carries_them(style: Path, to: str, tmp_path: Path) -> None:
    out = tmp_path / ("o" if to == "peft" else "o.safetensors")
    convert(str(style), to, str(out))
    kept = header(out / "adapter_model.safetensors" if to == "peft" else out)
    assert STAYS.items() <= kept.items() and kept["format"] == "pt"
    assert not (GOES.keys() - {"format", "loraport.note"}) & kept.keys()


@pytest.mark.parametrize("dense", [False, True])
def test_transfer_carries_them_and_says_where_it_belongs(style: Path, dense: bool, tmp_path: Path) -> None:
    state = tiny.tiny_state()
    model = tiny.write_original(tmp_path / "m.safetensors", state)
    fast = tiny.write_lora(tmp_path / "fast.safetensors", tiny.lora_factors(state, seed=9))
    out = tmp_path / "moved.safetensors"
    config = TransferConfig(str(style), str(model), f"source+{fast}*0.5", str(out), method="direct", as_diff=dense)
    transfer(config)
    assert STAYS.items() <= header(out).items()
    if dense:
        return
    lines = summary_lines(describe(str(out)))
    assert lines["trigger words"] == "ink style, ink" and lines["title"] == "Ink" and lines["licence"] == "CC-BY-4.0"
    assert lines["transfers"] == "direct from m.safetensors to m.safetensors+fast.safetensors"
    assert lines["load it"] == "beside fast.safetensors at strength 0.5: the accelerator is not in this file"
    assert describe(str(out))["header"] == STAYS


def test_people_see_what_they_look_for() -> None:
    assert shown_fields(STAYS | GOES) == {
        "title": "Ink",
        "author": "Ada",
        "licence": "CC-BY-4.0",
        "trigger words": "ink style, ink",
        "trained on": "wan2.1, wan2.1_t2v_14B.safetensors",
        "tags": "ink style (12), a cat (4)",
    }
    assert shown_fields({}) == {} and shown_fields({"ss_tag_frequency": "[", "modelspec.title": " "}) == {}


ODD = {
    "tags of the wrong kind": {"ss_tag_frequency": '{"a": 3, "b": {"c": "many"}, "d": {"e": 2}}'},
    "deep JSON": {"ss_tag_frequency": "[" * 100_000, "x": '{"a":' * 20_000},
    "escapes": {"modelspec.title": "\x1b[31mred\nline"},
    "long": {"modelspec.title": "x" * 100_000, "k" * 50_000 + ".title": "y"},
}


@pytest.mark.parametrize("metadata", ODD.values(), ids=ODD)
def test_odd_fields_do_no_harm(metadata: dict[str, str]) -> None:
    shown = shown_fields(metadata)
    assert all(text.isprintable() and len(text) < 1000 for text in shown.values())
    assert lasting_fields(metadata) == metadata


def test_pefts_base_model_has_its_place_until_a_transfer(tmp_path: Path) -> None:
    name = "base_model.model.blocks.0.attn1.to_q"
    pair = {f"{name}.lora_A.weight": torch.ones(2, 24), f"{name}.lora_B.weight": torch.ones(24, 2)}
    (tmp_path / "in").mkdir()
    save_file(pair, tmp_path / "in" / "adapter_model.safetensors")
    fields = {"r": 2, "lora_alpha": 2, "base_model_name_or_path": "Wan-AI/Wan2.1-T2V-14B"}
    (tmp_path / "in" / "adapter_config.json").write_text(json.dumps(fields))
    convert(str(tmp_path / "in"), "peft", str(tmp_path / "again"))
    written = json.loads((tmp_path / "again" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] == "Wan-AI/Wan2.1-T2V-14B"
    assert summary_lines(describe(str(tmp_path / "again")))["trained on"] == "Wan-AI/Wan2.1-T2V-14B"
    models = [str(tiny.write_original(tmp_path / f"{seed}.safetensors", tiny.tiny_state(seed))) for seed in (0, 1)]
    transfer(TransferConfig(str(tmp_path / "again"), *models, str(tmp_path / "moved"), method="direct"))
    written = json.loads((tmp_path / "moved" / "adapter_config.json").read_text())
    assert written["base_model_name_or_path"] is None
    assert header(tmp_path / "moved" / "adapter_model.safetensors")["base_model_name_or_path"].startswith("Wan-AI")
