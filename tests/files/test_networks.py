"""Which keys of a file are the network's: any prefix, several copies, and other networks beside it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraport.errors import InputError
from loraport.files.inspect import describe
from loraport.files.models.checkpoint import open_checkpoint
from loraport.merging import merge
from tests import tiny
from tests.tiny import State

STATE = tiny.tiny_state()
OTHER = tiny.drifted(STATE)
KEY = "blocks.0.ffn.0.weight"
FP8 = torch.float8_e4m3fn


def behind(prefix: str, state: State) -> State:
    return {prefix + name: tensor for name, tensor in state.items()}


def written(path: Path, *states: State) -> Path:
    return tiny.write_original(path, {name: tensor for state in states for name, tensor in state.items()})


@pytest.mark.parametrize(
    "prefix",
    [
        *(
            "pipe.dit.",
            "dit.",
            "student.",
            "ema_model.",
            "denoiser.",
            "generator_ema.model.",
            "score_model.net.backbone.",
        ),
        *("_forward_module.", "module._orig_mod.", "model._fsdp_wrapped_module.", "state_dict.model.diffusion_model."),
    ],
)
def test_a_network_is_found_behind_any_prefix(tmp_path, prefix):
    model = open_checkpoint(written(tmp_path / "m.safetensors", behind(prefix, STATE)))
    assert (set(model), model.naming, model.extra, model.part) == (set(STATE), "original", (), None)
    assert torch.equal(model.tensor(KEY), STATE[KEY]) and model.key(KEY) == prefix + KEY


@pytest.mark.parametrize(
    ("taken", "left"),
    [
        ("generator_ema.model.", "generator.model."),
        ("generator.", "fake_score."),
        ("model.", "ema_model."),
        ("state_dict.model.", "state_dict.ema."),
        ("ema.", ""),
        ("", "teacher."),
    ],
)
@pytest.mark.parametrize("kind", ["m.safetensors", "m.pt"])
def test_of_several_networks_the_usual_one_is_taken_and_said(tmp_path, kind, taken, left):
    state = {**behind(left, OTHER), **behind(taken, STATE)}
    path = tmp_path / kind
    torch.save(state, path) if kind == "m.pt" else written(path, state)
    model = open_checkpoint(path)
    assert set(model) == set(STATE) and torch.equal(model.tensor(KEY), STATE[KEY])
    [note] = model.notes
    assert str(path) in note and "several networks" in note
    if left:
        other = open_checkpoint(path, part=left.rstrip("."))
        assert torch.equal(other.tensor(KEY), OTHER[KEY]) and describe(str(path))["part"] == model.part


def test_of_a_pickle_the_tables_that_are_networks_count(tmp_path):
    state = {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}
    content = {"optim": state, "critic_head": {"w": torch.ones(2)}, "weights": {"inner": STATE}, "epoch": 3}
    torch.save(content, tmp_path / "one.pt")
    model = open_checkpoint(tmp_path / "one.pt")
    assert (model.part, model.notes) == ("weights.inner", ()) and set(model) == set(STATE)
    torch.save({"generator": OTHER, "generator_ema": STATE, "critic": {"w": torch.ones(2)}}, tmp_path / "two.pt")
    [note] = open_checkpoint(tmp_path / "two.pt").notes
    assert "generator_ema is taken, and not generator (" in note


def test_of_networks_of_unusual_names_one_has_to_be_chosen(tmp_path):
    path = written(tmp_path / "m.safetensors", behind("student.", STATE), behind("teacher.", OTHER))
    with pytest.raises(InputError, match=r"m\.safetensors: .*several parts .*give one of them: student, teacher"):
        open_checkpoint(path)
    assert torch.equal(open_checkpoint(path, part="teacher").tensor(KEY), OTHER[KEY])
    both = written(tmp_path / "b.safetensors", behind("student.model.", STATE), behind("teacher.model.", OTHER))
    with pytest.raises(InputError, match="several of its parts are called 'model'; give one: student, teacher"):
        open_checkpoint(both, part="model")
    with pytest.raises(InputError, match="has no part 'critic'; its parts: student, teacher"):
        open_checkpoint(path, part="critic")


def test_a_piece_of_the_network_behind_another_prefix_is_no_part(tmp_path):
    first = {name: tensor for name, tensor in STATE.items() if "blocks.1." not in name}
    rest = {name: tensor for name, tensor in STATE.items() if name not in first}
    model = open_checkpoint(written(tmp_path / "m.safetensors", behind("model.", first), rest))
    assert (set(model), model.notes) == (set(STATE), ())


def other_networks() -> State:
    """A text encoder in scaled fp8, one in int8, and an autoencoder."""
    codes = torch.ones(4, 4)
    return {
        "text_encoders.umt5.encoder.block.0.q.weight": codes.to(FP8),
        "text_encoders.umt5.encoder.block.0.q.scale_weight": torch.tensor(0.5),
        "text_encoders.umt5.scaled_fp8": torch.zeros(2, dtype=FP8),
        "text_encoders.umt5.spiece_model": torch.zeros(9, dtype=torch.uint8),
        "cond_stage_model.layer.weight": codes.to(torch.int8),
        "cond_stage_model.layer.weight_scale_2": torch.ones(()),
        "vae.decoder.conv_in.weight": torch.ones(2, 2, 3, 3),
    }


@pytest.mark.parametrize("prefix", ["model.diffusion_model.", "", "dit."])
@pytest.mark.parametrize("coded", [False, True])
def test_other_networks_in_the_file_decide_nothing(tmp_path, prefix, coded):
    network = {
        n: W.to(FP8) if coded and "blocks" in n and n.endswith(".weight") and W.dim() == 2 else W
        for n, W in STATE.items()
    }
    path = written(tmp_path / "m.safetensors", behind(prefix, network), other_networks())
    model = open_checkpoint(path)
    assert set(model.own) == set(STATE) and model.extra == () and model.notes == ()
    assert set(model.layers) == {
        n.removesuffix(".weight") for n, W in STATE.items() if n.endswith(".weight") and W.dim() > 1
    }
    assert model.quantized == (("fp8_e4m3fn",) if coded else ())
    assert torch.equal(model.tensor(KEY), network[KEY].float())
    assert set(describe(str(path))["dtypes"]) == {"float32", "fp8_e4m3fn"} - ({"fp8_e4m3fn"} if not coded else set())


def test_a_merge_keeps_other_networks_bit_by_bit(tmp_path):
    path = written(tmp_path / "m.safetensors", behind("model.diffusion_model.", STATE), other_networks())
    lora = tiny.write_lora(tmp_path / "l.safetensors", tiny.lora_factors(STATE))
    merge(str(path), [str(lora)], str(tmp_path / "out.safetensors"))
    before, after = load_file(path), load_file(tmp_path / "out.safetensors")
    assert before.keys() == after.keys()
    for key in other_networks():
        assert before[key].dtype == after[key].dtype and torch.equal(before[key].float(), after[key].float()), key
    assert not torch.equal(before[f"model.diffusion_model.{KEY}"], after[f"model.diffusion_model.{KEY}"])
