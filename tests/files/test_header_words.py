"""What a trainer's header says of a LoRA is kept where it stays true, and shown to people."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.conversion import convert
from loraport.errors import SettingsError
from loraport.files.inspect import describe, summary_lines
from loraport.files.loaders.how_to_load import ToLoad, how_to_load
from loraport.files.lora.header import lasting_fields, shown_fields
from loraport.inputs.config import TransferConfig
from loraport.merging import merge
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
    day = time.strftime("%Y-%m-%d", time.localtime(out.stat().st_mtime))
    assert lines["transfers"] == (
        f"moved from m.safetensors to m.safetensors+fast.safetensors by direct on {day} (by the file's date)"
    )
    assert lines["load it"] == (
        "on m.safetensors at strength 1, beside fast.safetensors at strength 0.5: the accelerator is not in this file"
    )
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


FREQUENCIES = {"10_ink": {"inkwash": 19, "1girl": 20, "white hair": 12, "best quality": 20}, "5_more": {"inkwash": 10}}
FOLDERS = {"10_ink": {"n_repeats": 10, "img_count": 20}, "5_more": {"n_repeats": 5, "img_count": 10}}


@pytest.mark.parametrize(
    ("tags", "folders", "words"),
    [
        (FREQUENCIES, FOLDERS, "inkwash (in 29 of 30 captions)"),
        (FREQUENCIES, {}, None),
        ({"1_x": {"inkwash": 2}}, {"1_x": {"img_count": 2}}, None),
        ({"1_x": {"inkwash": 9, "cat": 5}}, {"1_x": {"img_count": 20}}, None),
        ({"1_x": {"1girl": 20}}, {"1_x": {"img_count": 20}}, None),
        ({"1_x": {"inkwash": 20}}, {"1_x": {"img_count": "20"}, "y": 3}, None),
    ],
)
def test_tags_in_nearly_every_caption_are_told_as_trigger_words(tags: dict, folders: dict, words: str | None) -> None:
    """Not the common ones that call no style, not where captions are few or not counted."""
    metadata = {"ss_tag_frequency": json.dumps(tags), "ss_dataset_dirs": json.dumps(folders)}
    assert shown_fields(metadata).get("trigger words") == words
    assert shown_fields(metadata | {"modelspec.trigger_phrase": "said"})["trigger words"] == "said"


def test_a_list_of_words_is_read_as_words() -> None:
    assert shown_fields({"ss_trigger_words": '["ink", " wash "]'})["trigger words"] == "ink, wash"
    assert shown_fields({"trigger_word": "[ink]"})["trigger words"] == "[ink]"


def moved(style: Path, folder: Path, name: str = "moved.safetensors", **changes) -> Path:
    models = [str(tiny.write_original(folder / f"{seed}.safetensors", tiny.tiny_state(seed))) for seed in (0, 1)]
    transfer(TransferConfig(str(style), *models, str(folder / name), **{"method": "direct", **changes}))
    return folder / name


def test_the_date_is_in_the_file_only_where_it_is_given(style: Path, tmp_path: Path, monkeypatch) -> None:
    """Else the same input would not give the same bytes on another day; the file's own date is told in its place."""
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    plain = moved(style, tmp_path)
    assert "loraport.date" not in header(plain)
    os.utime(plain, (1_500_000_000, 1_500_000_000))
    assert summary_lines(describe(str(plain)))["transfers"].endswith("by direct on 2017-07-14 (by the file's date)")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1600000000")
    dated = moved(style, tmp_path, "dated.safetensors")
    assert header(dated)["loraport.date"] == "2020-09-13"
    assert (
        summary_lines(describe(str(dated)))["transfers"]
        == "moved from 0.safetensors to 1.safetensors by direct on 2020-09-13"
    )
    convert(str(dated), "diffusers", str(tmp_path / "again.safetensors"))
    assert summary_lines(describe(str(tmp_path / "again.safetensors")))["transfers"] == (
        "moved from 0.safetensors to 1.safetensors by direct, then written in another format from dated.safetensors "
        "on 2020-09-13"
    )
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "today")
    with pytest.raises(SettingsError, match="SOURCE_DATE_EPOCH is 'today'"):
        moved(style, tmp_path, "never.safetensors")


def test_what_a_file_is_for_stands_in_its_description(style: Path, tmp_path: Path) -> None:
    plain = describe(str(moved(style, tmp_path, format="diffusers")))
    assert plain["load"] == "on 1.safetensors at strength 1" and describe(str(style))["load"] is None
    assert plain["made"]["lora_sha256"] == describe(str(style))["sha256"]
    how = {row["loader"]: row["how"] for row in plain["loaders"]}
    called = f'load_lora_weights("{tmp_path}", weight_name="moved.safetensors", adapter_name="moved")'
    assert how["diffusers"] == f"pipe.{called}"
    refusing = [row["how"] for row in plain["loaders"] if row["takes"] == "no"]
    assert refusing and {*refusing} == {None}


def test_paths_are_quoted_as_each_program_reads_them() -> None:
    one = ToLoad('a b/sty"le.safetensors', "wan", (("fast it.safetensors", 0.5),))
    assert how_to_load("musubi-tuner", one) == (
        """--lora_weight 'fast it.safetensors' 'a b/sty"le.safetensors' --lora_multiplier 0.5 1.0"""
    )
    config = how_to_load("LightX2V", one) or ""
    told = json.loads("{" + config.removesuffix(" in its configuration") + "}")
    assert told["lora_configs"][1] == {"path": 'a b/sty"le.safetensors', "strength": 1.0}
    assert '"a b", weight_name="sty\\"le.safetensors"' in (how_to_load("diffusers", one) or "")
    assert how_to_load("Krea", one) is None


def test_the_line_for_diffusers_loads_the_file(style: Path, tmp_path: Path) -> None:
    """Run as it is told, beside an accelerator."""
    from diffusers import WanPipeline

    from tests.sampling import pipelines

    base = pipelines.tiny_transformer(0)
    pipelines.write_pipeline(tmp_path / "wan", base)
    shape = base.blocks[0].attn1.to_q.weight.shape
    pair = {"blocks.0.self_attn.q": (torch.ones(shape[0], 2), torch.ones(2, shape[1]))}
    lora = tiny.write_lora(tmp_path / "style.safetensors", pair)
    fast = tiny.write_lora(
        tmp_path / "fast.safetensors", {"blocks.0.self_attn.q": tuple(0.1 * one for one in next(iter(pair.values())))}
    )
    out = tmp_path / "moved.safetensors"
    model = str(tmp_path / "wan")
    transfer(TransferConfig(str(lora), model, f"source+{fast}*0.5", str(out), method="direct", format="diffusers"))
    facts = describe(str(out))
    own, together = next(row["how"] for row in facts["loaders"] if row["loader"] == "diffusers").split("; ")[::2]
    assert "fast.safetensors" not in own
    pipe = WanPipeline(None, None, None, None, base)
    exec(own, {"pipe": pipe})
    pipe.load_lora_weights(str(tmp_path), weight_name="fast.safetensors", adapter_name="accelerator")
    exec(together.removeprefix("then "), {"pipe": pipe})
    assert pipe.get_active_adapters() == ["accelerator", "moved"]


def test_a_merged_model_says_whose_lora_is_in_it(style: Path, tmp_path: Path) -> None:
    model = tiny.write_original(tmp_path / "m.safetensors", tiny.tiny_state())
    merge(str(model), [f"{style}*0.5"], str(tmp_path / "merged.safetensors"))
    facts = describe(str(tmp_path / "merged.safetensors"))
    assert facts["merged"] == ["ink.safetensors at strength 0.5 (title Ink, trigger words ink style, ink)"]
    assert summary_lines(facts)["merged"] == facts["merged"] and "merged" not in summary_lines(describe(str(model)))


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
