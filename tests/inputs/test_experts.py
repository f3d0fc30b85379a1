"""Two experts: one LoRA in, two out; or one for each; in every layout that such models have."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraport.cli import app
from loraport.errors import InputError, MismatchError, SettingsError
from loraport.files.presets.table import ACCELERATORS
from loraport.inputs.experts import both, experts
from tests import tiny
from tests.transfers.models import deltas

NOISES = ("high_noise", "low_noise")


def few(state: tiny.State, seed: int = 2) -> dict:
    """A LoRA on a square and a tall layer."""
    found = tiny.lora_factors(state, seed)
    return {f"blocks.0.{layer}": found[f"blocks.0.{layer}"] for layer in ("self_attn.q", "ffn.0")}


@pytest.fixture
def states():
    """Source and target of each expert: four different models."""
    sources = [tiny.tiny_state(seed, blocks=1) for seed in (0, 10)]
    return [(source, tiny.drifted(source, seed)) for seed, source in enumerate(sources, 20)]


def diffusers_pipeline(folder: Path, models) -> str:
    for inner, state in zip(("transformer", "transformer_2"), models, strict=True):
        tiny.write_diffusers(folder, state, inner=inner, shards=2)
    return str(folder)


def own_folders(folder: Path, models) -> str:
    """As Wan's own repositories: shards with an index in a folder each."""
    for noise, state in zip(NOISES, models, strict=True):
        tiny.write_shards(folder / f"{noise}_model", state)
    return str(folder)


def single_files(folder: Path, models) -> str:
    """As LightX2V's: one file each, told by their names; the high-noise one is named."""
    folder.mkdir()
    for noise, state in zip(NOISES, models, strict=True):
        tiny.write_original(folder / f"wan2.2_i2v_A14b_{noise}_lightx2v_4step.safetensors", state)
    return str(folder / "wan2.2_i2v_A14b_high_noise_lightx2v_4step.safetensors")


def run(*arguments) -> dict:
    done = CliRunner().invoke(app, ["transfer", *map(str, arguments), "--experts", "--no-cache", "--json"])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("source", "target"),
    [(diffusers_pipeline, diffusers_pipeline), (own_folders, single_files), (own_folders, own_folders)],
)
def test_one_lora_becomes_two(tmp_path, states, source, target):
    """By undo, whose answer is known: D − (W_t − W_s) of each expert's own weights."""
    places = [write(tmp_path / name, [pair[i] for pair in states])
              for i, (name, write) in enumerate((("source", source), ("target", target)))]  # fmt: skip
    factors = few(states[0][0])
    lora = tiny.write_lora(tmp_path / "style.safetensors", factors)
    out = tmp_path / "out.safetensors"
    method = ("--method", "undo:1", "--rank", "full", "--dtype", "fp32")
    told = run(lora, "--source", places[0], "--target", places[1], "-o", out, *method)
    assert [Path(one["output"]).name for one in told["runs"]] == [f"out-{noise}.safetensors" for noise in NOISES]
    for noise, (W_s, W_t) in zip(NOISES, states, strict=True):
        written = deltas(tmp_path / f"out-{noise}.safetensors")
        for name, (B, A) in factors.items():
            wanted = (B @ A - W_t[f"{name}.weight"] + W_s[f"{name}.weight"]).double()
            assert float((written[name] - wanted).norm() / wanted.norm()) < 1e-4


@pytest.mark.parametrize("named", [True, False])
def test_one_for_each(tmp_path, states, named):
    """Two LoRAs in order, or one with its expert in its name; each goes to its own expert."""
    places = [own_folders(tmp_path / str(i), [pair[i] for pair in states]) for i in (0, 1)]
    factors = [few(pair[0], seed) for seed, pair in enumerate(states)]
    names = [tmp_path / f"style_{noise}.safetensors" for noise in NOISES]
    for name, some in zip(names, factors, strict=True):
        tiny.write_lora(name, some)
    out = tmp_path / "moved_high_noise.safetensors"
    loras = names[:1] if named else names
    run(*loras, "--source", places[0], "--target", places[1], "-o", out, "--method", "direct", "--dtype", "fp32")
    for noise, some in zip(NOISES, factors, strict=True):
        written = deltas(tmp_path / f"moved_{noise}.safetensors")
        assert all(float((written[name] - (B @ A).double()).norm()) < 1e-5 for name, (B, A) in some.items())


def test_an_accelerator_for_each_or_one_for_both(tmp_path, states):
    source = own_folders(tmp_path / "source", [pair[0] for pair in states])
    factors = few(states[0][0])
    lora = tiny.write_lora(tmp_path / "style.safetensors", factors)
    fast = [few(states[0][0], seed) for seed in (7, 8)]
    for noise, some in zip(NOISES, fast, strict=True):
        tiny.write_lora(tmp_path / f"{noise}_model.safetensors", some)
    settings = ("--method", "undo:1", "--rank", "full", "--dtype", "fp32", "-o", tmp_path / "out.safetensors")
    run(lora, "--source", source, "--target", f"source+{tmp_path / 'high_noise_model.safetensors'}*0.5", *settings)
    for noise, some in zip(NOISES, fast, strict=True):
        written = deltas(tmp_path / f"out-{noise}.safetensors")
        for name, (B, A) in factors.items():
            wanted = (B @ A - 0.5 * some[name][0] @ some[name][1]).double()
            assert float((written[name] - wanted).norm() / wanted.norm()) < 1e-4
    (tmp_path / "lightning.safetensors").write_bytes((tmp_path / "high_noise_model.safetensors").read_bytes())
    one = experts([str(lora)], source, f"source+{tmp_path / 'lightning.safetensors'}")
    assert [expert.target for expert in one] == [f"source+{tmp_path / 'lightning.safetensors'}"] * 2


def test_places():
    assert both("wan2.2-t2v-a14b") == ("wan2.2-t2v-a14b-high", "wan2.2-t2v-a14b-low")
    assert both("lightx2v-wan2.2-i2v-a14b-high")[1] == "lightx2v-wan2.2-i2v-a14b-low"
    assert both("Wan-AI/Wan2.2-T2V-A14B:high_noise_model")[1] == "Wan-AI/Wan2.2-T2V-A14B:low_noise_model"
    assert both("Wan-AI/Wan2.2-T2V-A14B-Diffusers:transformer")[1] == "Wan-AI/Wan2.2-T2V-A14B-Diffusers:transformer_2"
    with pytest.raises(SettingsError, match="no high-noise and low-noise experts found"):
        both("wan2.1-t2v-14b")
    with pytest.raises(SettingsError, match="the first LoRA is the high-noise expert's"):
        experts(["a_low_noise.safetensors", "a_high_noise.safetensors"], "wan2.2-t2v-a14b", "wan2.2-t2v-a14b")
    with pytest.raises(SettingsError, match="one LoRA or two"):
        experts(["a", "b", "c"], "wan2.2-t2v-a14b", "wan2.2-t2v-a14b")


def test_nothing_is_written_where_one_of_the_two_is_refused(tmp_path, states):
    """The low-noise source is missing a layer's partner: both are looked at before the work."""
    source = own_folders(tmp_path / "source", [pair[0] for pair in states])
    wrong = tiny.tiny_state(3, blocks=1, dim=16)
    target = own_folders(tmp_path / "target", [states[0][1], wrong])
    lora = tiny.write_lora(tmp_path / "style.safetensors", few(states[0][0]))
    arguments = ["transfer", lora, "--source", source, "--target", target, "-o", tmp_path / "out.safetensors"]
    done = CliRunner().invoke(app, [*map(str, arguments), "--experts", "--no-cache"])
    assert isinstance(done.exception, MismatchError) and "made for another model" in str(done.exception)
    assert not list(tmp_path.glob("out*"))


def test_a_place_of_two_experts_says_how_to_take_both(tmp_path, states):
    place = own_folders(tmp_path / "source", [pair[0] for pair in states])
    lora = tiny.write_lora(tmp_path / "style.safetensors", few(states[0][0]))
    arguments = ["transfer", lora, "--source", place, "--target", place, "-o", tmp_path / "out.safetensors"]
    done = CliRunner().invoke(app, list(map(str, arguments)))
    assert isinstance(done.exception, InputError) and "transfer --experts takes both" in str(done.exception)


def test_an_accelerator_by_name_is_each_experts_own(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("loraport.inputs.experts.listing", lambda repo: None)  # no network
    for target in ("source+lightning", "source+lightning-lora-wan2.2-t2v-a14b"):
        found = experts(["style.safetensors"], "wan2.2-t2v-a14b", target)
        assert [one.source for one in found] == ["wan2.2-t2v-a14b-high", "wan2.2-t2v-a14b-low"]
        places = [ACCELERATORS[f"lightning-lora-wan2.2-t2v-a14b-{noise}"].files[0][0] for noise in ("high", "low")]
        assert [one.target for one in found] == [f"source+{place}*1" for place in places]
