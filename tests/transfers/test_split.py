"""`--split` from files to files: two LoRAs that add up, each for itself; and LoRAs that were transferred before."""

import json
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.conversion import convert
from loraport.errors import SettingsError
from loraport.files.inspect import describe
from loraport.files.lora.provenance import LONGEST, MOST_STEPS, accumulated_loss, earlier_field, transfer_steps
from loraport.inputs.batch import one_or_many
from loraport.inputs.config import RankRule
from loraport.inputs.recipes import chosen_recipes
from loraport.transfers.run import transfer, transfer_many
from tests.transfers.models import deltas, make_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path, blocks=1)


def parts(family, method="casa", output="out.safetensors", rank=None, **changes):
    """Both runs of a split."""
    return one_or_many(family.config(output, **changes), [family.lora], chosen_recipes([method]), rank=rank, split=True)


def metadata(path) -> dict:
    with safe_open(path, "pt") as file:
        return file.metadata()


@pytest.mark.parametrize("method", ["casa", "restore-only", "undo:0.5", "core"])
def test_two_files_add_up_to_the_unsplit_one(family, method):
    adapter, taken = transfer_many(parts(family, method, rank=RankRule("full"))).runs
    whole = transfer(family.config("whole.safetensors", method=method, rank=RankRule("full")))
    assert Path(taken.output).name == "out-counter-drift.safetensors" and Path(adapter.output).name == "out.safetensors"
    first, second, both = (deltas(run.output) for run in (adapter, taken, whole))
    for layer, expected in both.items():
        assert float((first[layer] + second[layer] - expected).norm() / expected.norm()) < 1e-5
        assert float((first[layer] - expected).norm() / expected.norm()) > 0.02
    assert "part" not in metadata(whole.output) and "part" not in whole.settings
    for run, part in ((adapter, "adapter"), (taken, "counter-drift")):
        assert metadata(run.output)["loraport.part"] == run.settings["part"] == part
        assert "a file of its own" in metadata(run.output)["loraport.note"]


def test_each_part_has_its_own_rank_by_the_same_rule(family):
    def ranks(method, rule):
        runs = transfer_many(parts(family, method, rank=RankRule.parse(rule))).runs
        return [{row.rank_out for row in run.layers} for run in runs]

    assert ranks("casa", "auto") == [{8}, {8}], "neither is exact at a low rank: twice the LoRA's own"
    assert ranks("restore-only", "auto") == [{4}, {8}], "the LoRA as it is stays exact"
    assert ranks("core", "auto") == [{4}, {4}]
    assert ranks("undo", "6") == [{6}, {6}]
    varied = transfer_many(parts(family, rank=RankRule.parse("0.8"))).runs
    assert all(row.kept_energy >= 0.8 for run in varied for row in run.layers)


def test_what_is_no_update_goes_with_the_adapter_alone(tmp_path):
    """Copied layers, biases and text encoders would count twice if they were in both."""
    family = make_family(tmp_path, blocks=1, gates=True)
    tensors = load_file(family.lora)
    tensors["diffusion_model.blocks.0.to_gate_compress.lora_A.weight"] = torch.ones(4, 24)
    tensors["diffusion_model.blocks.0.to_gate_compress.lora_B.weight"] = torch.ones(24, 4)
    tensors["diffusion_model.blocks.0.norm3.diff_b"] = torch.ones(24)
    save_file(tensors, family.lora)
    adapter, taken = transfer_many(parts(family, exclude=("ffn",))).runs
    assert adapter.keys.as_json() == {"in": 23, "transferred": 16, "copied": 7, "dropped": []}
    assert taken.keys.as_json() == {"in": 16, "transferred": 16, "copied": 0, "dropped": []} and not taken.lost
    first, second = load_file(adapter.output), load_file(taken.output)
    assert second.keys() < first.keys() and len(first) - len(second) == 7


def test_a_zero_lora_is_all_counter_drift(family):
    zero = {key: tensor * 0 for key, tensor in load_file(family.lora).items()}
    save_file(zero, family.folder / "zero.safetensors")
    both = parts(family, rank=RankRule("full"))
    runs = transfer_many([replace(one, lora=str(family.folder / "zero.safetensors")) for one in both]).runs
    assert not any(tensor.any() for key, tensor in load_file(runs[0].output).items() if "lora_B" in key)
    back = deltas(transfer(family.config("back.safetensors", method="rollback", rank=RankRule("full"))).output)
    assert all(tensor.norm() > 0 for tensor in deltas(runs[1].output).values()) and back.keys()


def test_a_part_alone_has_the_bytes_of_the_pair_and_the_update_is_worked_out_once(family, monkeypatch):
    module = import_module("loraport.methods.casa")
    real, calls = module.decide, []
    monkeypatch.setattr(module, "decide", lambda *given: calls.append(1) or real(*given))
    both = parts(family)
    together = [Path(run.output).read_bytes() for run in transfer_many(both).runs]
    assert len(calls) == len(family.factors)
    alone = [Path(transfer(replace(one, output=f"{family.folder}/a.safetensors")).output).read_bytes() for one in both]
    assert together == alone and together[0] != together[1] and len(calls) == 3 * len(family.factors)


def test_dense_and_peft_parts(family):
    dense = transfer_many(parts(family, as_diff=True, output="dense.safetensors")).runs
    whole = load_file(transfer(family.config("whole.safetensors", as_diff=True)).output)
    first, second = (load_file(run.output) for run in dense)
    assert all(torch.allclose(first[key] + second[key], tensor, atol=1e-5) for key, tensor in whole.items())
    folders = transfer_many(parts(family, format="peft", output="folder")).runs
    assert [Path(run.output).name for run in folders] == ["folder", "folder-counter-drift"]
    assert all((Path(run.output) / "adapter_config.json").is_file() for run in folders)


@pytest.mark.parametrize("method", ["direct", "direct-matched", "prolora", "lora-x", "drift-orthogonal"])
def test_methods_without_parts_are_refused_by_name(family, method):
    with pytest.raises(SettingsError, match=f"'{method}' takes nothing of the drift back"):
        parts(family, method)
    with pytest.raises(SettingsError, match="unknown part 'half'; known: whole, adapter, counter-drift"):
        family.config(part="half")


def test_a_chain_of_transfers_is_kept_told_and_warned_of(family):
    first = transfer(family.config("first.safetensors"))
    assert transfer_steps(metadata(family.lora)) == [] and "loraport.earlier" not in metadata(first.output)
    assert not any("transferred before" in note for note in first.warnings)
    kohya = str(family.folder / "kohya.safetensors")
    convert(first.output, "kohya", kohya)  # another dialect keeps the history
    back = {"source": family.target, "target": family.source}
    second = transfer(family.config("second.safetensors", lora=kohya, method="core", **back))
    third = transfer(family.config("third.safetensors", lora=second.output, method="direct"))
    assert [step["method"] for step in transfer_steps(metadata(third.output))] == ["casa", "core", "direct"]
    assert transfer_steps(metadata(third.output))[0]["lora"] == "lora.safetensors"
    (warning,) = (note for note in second.warnings if "transferred" in note)
    assert "kohya.safetensors has been transferred before (casa from source.safetensors to target)" in warning
    assert "Table 8" in warning and "start from lora.safetensors where you can" in warning
    assert any("has been transferred 2 times before" in note for note in third.warnings)
    assert describe(third.output)["transfers"] == [
        "casa from source.safetensors to target",
        "core from target to source.safetensors",
        "direct from source.safetensors to target",
    ]
    assert describe(family.lora)["transfers"] == []


def test_a_chain_never_grows_without_end():
    current: dict[str, str] = {}
    for number in range(3 * MOST_STEPS):
        own = {"method": f"m{number}", "source": "a", "target": "b", "lora": f"{number}", "settings": "x" * 10_000}
        current = {f"loraport.{key}": value for key, value in (own | earlier_field(current)).items()}
    steps = transfer_steps(current)
    assert [step["method"] for step in steps] == [f"m{n}" for n in range(2 * MOST_STEPS, 3 * MOST_STEPS)]
    assert steps[0]["left_out"] == str(2 * MOST_STEPS) and not any("left_out" in step for step in steps[1:])
    assert len(earlier_field(current)["earlier"]) < MOST_STEPS * 300
    assert f"{3 * MOST_STEPS} times before" in accumulated_loss("x", current)[0]


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[", "[1, null]", '[{"method": 3}]', '[{"source": "a"}]', "[" * 100_000,
     json.dumps([{"method": "m" * (LONGEST + 1)}])],
)  # fmt: skip
def test_a_chain_that_somebody_made_up_is_left_out(text):
    assert transfer_steps({"loraport.earlier": text}) == []
    good = {"loraport.earlier": '[{"method": "casa", "secret": "x", "left_out": "many"}]', "loraport.method": "core"}
    assert transfer_steps(good) == [{"method": "casa", "left_out": "many"}, {"method": "core"}]
    assert "2 times before" in accumulated_loss("x", good)[0]
