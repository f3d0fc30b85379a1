"""Files that hold more than factors: weights as PEFT keeps them, networks of their own, several kinds of nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from loraport.conversion import convert
from loraport.errors import FileFormatError, InputError, SettingsError
from loraport.files.inspect import describe, summary_lines
from loraport.files.lora.read import read_lora
from loraport.inputs.config import TransferConfig
from loraport.merging import merge
from loraport.transfers.run import transfer
from tests import tiny

peft = pytest.importorskip("peft")

STATE = tiny.tiny_state(blocks=1)
TARGET = tiny.drifted(STATE)
FACTORS = tiny.lora_factors(STATE)
POSE = {"dwpose_embedding.0.weight": torch.ones(4, 3, 3, 3, 3), "dwpose_embedding.0.bias": torch.arange(4.0)}


class Module(nn.Module):
    """Modules with the names and weights of some of the tiny model's layers."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.ModuleDict({"ffn": nn.ModuleList([nn.Linear(24, 40), nn.Linear(40, 40)])})])
        self.head = nn.ModuleDict({"head": nn.Linear(24, 16)})
        self.blocks[0]["ffn"][1] = nn.Identity()
        self.load_state_dict({name: STATE[name] for name in self.state_dict()})

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0]["ffn"][0](x).sum() + self.head["head"](x).square().sum()  # type: ignore[no-any-return]


def trained(folder: Path, **fields: Any) -> dict[str, Tensor]:
    """An adapter with more than factors; what PEFT's own loader makes of the weights."""
    torch.manual_seed(3)
    config = peft.LoraConfig(r=2, lora_alpha=4, target_modules=["ffn.0"], init_lora_weights=False, **fields)
    model = peft.get_peft_model(Module(), config)
    model(torch.randn(5, 24)).backward()
    with torch.no_grad():
        for value in model.parameters():
            if value.grad is not None:
                value -= 0.01 * value.grad
    model.save_pretrained(folder)
    loaded: dict[str, Tensor] = peft.PeftModel.from_pretrained(Module(), folder).merge_and_unload().state_dict()
    return loaded


@pytest.fixture
def models(tmp_path: Path) -> tuple[str, str]:
    places = [
        tiny.write_original(tmp_path / f"{name}.safetensors", state) for name, state in (("b", STATE), ("t", TARGET))
    ]
    return str(places[0]), str(places[1])


FIELDS: dict[str, dict[str, Any]] = {
    "bias of adapted layers": {"bias": "lora_only"},
    "all biases": {"bias": "all"},
    "a module": {"modules_to_save": ["head.head"]},
}


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_peft_s_whole_weights_do_what_they_do_in_peft(fields: dict[str, Any], models: Any, tmp_path: Path) -> None:
    wanted = trained(tmp_path / "a", **fields)
    place = str(tmp_path / "a")
    done = merge(models[0], [place], str(tmp_path / "m.safetensors"))
    merged = load_file(tmp_path / "m.safetensors")
    moved = {name for name in wanted if not torch.equal(wanted[name], STATE[name])}
    assert len(moved) > 1
    for name in wanted:
        torch.testing.assert_close(merged[name], wanted[name], rtol=1e-5, atol=1e-6)
    assert not done.lost and "are taken as differences to those of" in " ".join(done.notes)

    with pytest.raises(SettingsError, match=r"whole weight or bias beside the factors.*--source"):
        convert(place, "comfy", str(tmp_path / "c.safetensors"))
    convert(place, "comfy", str(tmp_path / "c.safetensors"), source=models[0], dtype="fp32")
    merge(models[0], [str(tmp_path / "c.safetensors")], str(tmp_path / "again.safetensors"))
    again = load_file(tmp_path / "again.safetensors")
    assert all(torch.allclose(again[name], wanted[name], rtol=1e-5, atol=1e-6) for name in wanted)

    out = str(tmp_path / "o.safetensors")
    config = TransferConfig(place, *models, out, method="direct", dtype="fp32", format="comfy")
    assert not transfer(config).lost
    beside = {name: value for name, value in load_file(out).items() if ".diff" in name}
    differences = {name: wanted[name] - STATE[name] for name in moved if name != "blocks.0.ffn.0.weight"}
    assert len(beside) == len(differences)
    for name, difference in differences.items():
        layer, _, kind = name.rpartition(".")
        key = f"diffusion_model.{layer}.{'diff_b' if kind == 'bias' else 'diff'}"
        torch.testing.assert_close(beside[key], difference, rtol=1e-5, atol=1e-6)


@pytest.fixture
def posed(tmp_path: Path) -> str:
    path = tiny.write_lora(tmp_path / "pose.safetensors", FACTORS)
    save_file(load_file(path) | POSE, path)
    return str(path)


def test_a_network_of_its_own_is_carried_through_and_listed(posed: str, models: Any, tmp_path: Path) -> None:
    done = transfer(TransferConfig(posed, *models, str(tmp_path / "o.safetensors"), method="direct"))
    written = load_file(tmp_path / "o.safetensors")
    assert all(torch.equal(written[key], value) for key, value in POSE.items()) and not done.lost
    assert any("2 whole weights that neither model has are carried" in note for note in done.warnings)
    assert "dwpose_embedding.0.bias" in " ".join(done.warnings) and done.keys.counts["copied"] == 2
    refused = convert(posed, "diffusers", str(tmp_path / "d.safetensors"))
    assert refused.lost and [key for key, _ in refused.keys.dropped] == sorted(POSE)
    assert not any("carried through" in note for note in refused.notes)
    assert "diffusers refuses the file" in refused.keys.dropped[0][1]
    for to in ("kohya", "comfy"):
        told = convert(posed, to, str(tmp_path / f"{to}.safetensors"))
        assert POSE.keys() <= load_file(tmp_path / f"{to}.safetensors").keys() and not told.lost
        assert any("whole weights that are of no layer that is known" in note for note in told.notes)
    merged = merge(models[0], [posed], str(tmp_path / "m.safetensors"))
    assert merged.keys.counts["merged"] == 20 and len(merged.keys.dropped) == 2
    assert "a whole weight of a network that" in merged.keys.dropped[0][1]
    assert "2 of them whole weights, dwpose_embedding.0.bias" in summary_lines(describe(posed))["beside"]


def test_a_whole_weight_of_another_size_is_set_aside(models: Any, tmp_path: Path) -> None:
    path = tiny.write_lora(tmp_path / "x.safetensors", FACTORS, prefix="base_model.model.")
    save_file(load_file(path) | {"base_model.model.head.head.bias": torch.ones(3)}, path)
    done = merge(models[0], [str(path)], str(tmp_path / "o.safetensors"))
    assert done.lost and done.keys.dropped[0][0] == "base_model.model.head.head.bias"
    save_file(load_file(path) | {"base_model.model.head.head.bias": torch.full((16,), torch.nan)}, path)
    with pytest.raises(InputError, match="NaN"):
        transfer(TransferConfig(str(path), *models, str(tmp_path / "o"), method="direct"))


NOT_READ = {
    "Stand-In": ("blocks.0.self_attn.q_loras.down.weight", "a reference image alone"),
    "sd-scripts' split": ("lora_unet_blocks_0_self_attn_q.lora_down.0.weight", "divided over q, k and v"),
    "unknown": ("blocks.0.self_attn.q.lora_sideways.weight", "but its spelling is not one that is read"),
}


@pytest.mark.parametrize(("key", "told"), NOT_READ.values(), ids=NOT_READ)
def test_what_calls_itself_a_lora_is_no_model(key: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({key: torch.ones(4, 24), key.replace("down", "up"): torch.ones(4, 24)}, path)
    with pytest.raises(FileFormatError, match=told):
        read_lora(path)
    facts = describe(str(path))
    assert facts["kind"] == "LoRA" and told in facts["refused"]


def test_a_model_is_still_called_one(models: Any) -> None:
    with pytest.raises(FileFormatError, match="is a model checkpoint, not a LoRA"):
        read_lora(models[0])
    assert describe(models[0])["kind"] == "model"


@pytest.mark.parametrize("dead", [False, True])
def test_a_dead_lora_is_remarked_on(dead: bool, models: Any, tmp_path: Path) -> None:
    idle = {layer: (B * 0, A) for layer, (B, A) in FACTORS.items()}
    some = dict(list(idle.items())[:3])
    path = str(tiny.write_lora(tmp_path / "x.safetensors", idle if dead else FACTORS | some))
    done = transfer(TransferConfig(path, *models, str(tmp_path / "o.safetensors"), method="direct"))
    said = "all 10 layers add nothing"
    assert (said in " ".join(done.warnings)) is dead and (said in str(describe(path)["notes"])) is dead
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8})}
    save_file(load_file(path), path, header)
    assert (said in str(describe(path)["notes"])) is dead
