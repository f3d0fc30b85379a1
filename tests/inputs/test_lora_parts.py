"""Several LoRAs in one file: which is meant, in every command; both experts' taken apart by themselves."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from loraport.cli import app
from loraport.conversion import convert
from loraport.errors import MismatchError, SettingsError
from loraport.files.inspect import describe
from loraport.files.lora.parts import expert_parts, lora_parts_in
from loraport.files.lora.read import read_lora
from loraport.files.names.lookup import layer_in
from loraport.merging import merge
from tests import tiny

STATES = tiny.tiny_state(0, blocks=1), tiny.tiny_state(1, blocks=1)
FACTORS = tuple(tiny.lora_factors(state, seed) for seed, state in enumerate(STATES, 5))
LAYER = "blocks.0.ffn.0"
Pair = tuple[str, str]
AB: Pair = (".lora_A.weight", ".lora_B.weight")


def keys(which: int, prefix: str, pair: Pair = AB, only: str = "") -> dict[str, Tensor]:
    found = {}
    for layer, (B, A) in FACTORS[which].items():
        name = layer_in(layer, "diffusers") if prefix.startswith("transformer") else layer
        if only in layer:
            found |= {f"{prefix}{name}{pair[0]}": A, f"{prefix}{name}{pair[1]}": B}
    return found


def named(adapter: str) -> Pair:
    return f".lora_A.{adapter}.weight", f".lora_B.{adapter}.weight"


TEXT = {f"text_encoder.encoder.block.0.q.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
FILES: dict[str, tuple[dict[str, Tensor], Pair]] = {
    "experts": (keys(0, "transformer.") | keys(1, "transformer_2."), ("transformer", "transformer_2")),
    "experts of DiffSynth": (keys(0, "dit.") | keys(1, "dit2."), ("dit", "dit2")),
    "adapters": (
        keys(0, "transformer.", named("default")) | keys(1, "transformer.", named("other")),
        ("default", "other"),
    ),
    "a named adapter and one without a name": (
        keys(0, "diffusion_model.") | keys(1, "diffusion_model.", named("second")),
        ("diffusion_model", "second"),
    ),
    "components": (keys(0, "diffusion_model.") | keys(1, "generator."), ("diffusion_model", "generator")),
    "experts that touch other layers": (
        keys(0, "transformer.", only="ffn") | keys(1, "transformer_2.", only="attn"),
        ("transformer", "transformer_2"),
    ),
    "both": (
        keys(0, "transformer.", named("a"))
        | keys(1, "transformer_2.", named("a"))
        | keys(0, "transformer.", named("b")),
        ("transformer.a", "transformer_2"),
    ),
}  # fmt: skip


def written(path: Path, tensors: Mapping[str, Tensor], header: dict[str, str] | None = None) -> str:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, path, header)
    return str(path)


def holds(path: str, which: int, part: str | None = None) -> bool:
    layers = read_lora(path, part=part).updates
    wanted = {layer: B @ A for layer, (B, A) in FACTORS[which].items()}
    return all(torch.allclose(update.dense(), wanted[layer], atol=1e-6) for layer, update in layers.items())


@pytest.mark.parametrize(("tensors", "names"), FILES.values(), ids=FILES)
def test_a_part_is_chosen_by_its_name(tensors: dict[str, Tensor], names: Pair, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", tensors | TEXT)
    with pytest.raises(MismatchError, match=r"holds \d LoRAs: .*choose one with --lora-part NAME") as error:
        read_lora(path)
    assert all(name in str(error.value) for name in names)
    assert "--lora-part" in describe(path)["refused"]
    for which, name in enumerate(names):
        assert holds(path, which, name)
        lora = read_lora(path, part=name)
        assert TEXT.keys() <= lora.extras.keys() and "of the one that was chosen" in lora.notes[0]
        assert describe(path, lora_part=name)["layers"] == len(lora.layers)
    with pytest.raises(SettingsError, match="has no LoRA 'third': it holds"):
        read_lora(path, part="third")


ONE = {
    "one": keys(0, "diffusion_model."),
    "an adapter's name": keys(0, "diffusion_model.", named("default")),
    "mixed prefixes": keys(0, "diffusion_model.", only="ffn") | keys(0, "transformer.", only="attn"),
    "mixed endings": keys(0, "diffusion_model.", only="ffn") | keys(0, "diffusion_model.", named("default"), "attn"),
    "the low-noise expert": keys(0, "transformer_2."),
}


@pytest.mark.parametrize("tensors", ONE.values(), ids=ONE)
def test_one_lora_is_one_however_it_is_spelled(tensors: dict[str, Tensor], tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", tensors)
    assert lora_parts_in(path) == [] and expert_parts(path) is None and holds(path, 0)
    with pytest.raises(SettingsError, match="one LoRA, of no parts"):
        read_lora(path, part="transformer_3")


def test_one_layer_given_twice_is_a_fault_and_not_a_second_lora(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", keys(0, "diffusion_model.") | keys(1, "generator.", only="ffn.0"))
    assert lora_parts_in(path) == ["diffusion_model", "generator"]
    mixed = keys(0, "diffusion_model.") | keys(1, "generator.", only="ffn.2")
    mixed |= {f"generator.blocks.{n}.ffn.2{ending}": torch.ones(2, 2) for n in (3, 4, 5) for ending in AB}
    with pytest.raises(MismatchError, match=r"are the same part of layer 'blocks\.0\.ffn\.2'"):
        read_lora(written(tmp_path / "y.safetensors", mixed))


def test_each_part_has_its_own_alpha(tmp_path: Path) -> None:
    tensors = FILES["experts"][0] | {f"transformer_2.{layer_in(LAYER, 'diffusers')}.alpha": torch.tensor(2.0)}
    header = {"lora_adapter_metadata": json.dumps({"transformer.lora_alpha": 8, "transformer_2.lora_alpha": 4})}
    path = written(tmp_path / "x.safetensors", tensors, header)
    assert {layer.scale for layer in read_lora(path, part="transformer").layers.values()} == {2.0}
    layers = read_lora(path, part="transformer_2").layers
    assert layers[LAYER].scale == 0.5 and {layers[name].scale for name in layers if name != LAYER} == {1.0}


def test_the_commands_take_it(tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", FILES["experts"][0])
    convert(path, "comfy", str(tmp_path / "c.safetensors"), lora_part="transformer_2", dtype="fp32")
    assert holds(str(tmp_path / "c.safetensors"), 1)
    model = str(tiny.write_original(tmp_path / "m.safetensors", STATES[1]))
    merge(model, [path], str(tmp_path / "o.safetensors"), lora_part="transformer_2")
    B, A = FACTORS[1][LAYER]
    added = load_file(tmp_path / "o.safetensors")[f"{LAYER}.weight"] - STATES[1][f"{LAYER}.weight"]
    torch.testing.assert_close(added, B @ A, atol=1e-5, rtol=1e-4)
    told = CliRunner().invoke(app, ["inspect", path, "--lora-part", "transformer", "--json"])
    assert json.loads(told.stdout)["layers"] == 10
    refused = CliRunner().invoke(app, ["inspect", path, "--lora-part", "x", "--json"])
    assert "has no LoRA 'x'" in json.loads(refused.stdout)["refused"]


@pytest.mark.parametrize("accelerated", [False, True])
def test_the_experts_take_their_own(accelerated: bool, tmp_path: Path) -> None:
    """Both LoRAs in one file, and perhaps both accelerators in another."""
    path = written(tmp_path / "x.safetensors", FILES["experts"][0])
    for noise, state in zip(("high_noise", "low_noise"), STATES, strict=True):
        tiny.write_original(tmp_path / f"base_{noise}.safetensors", state)
        tiny.write_original(tmp_path / f"fast_{noise}.safetensors", tiny.drifted(state))
    target = str(tmp_path / "fast_high_noise.safetensors")
    if accelerated:
        fast = keys(1, "dit.") | keys(0, "dit2.")
        target = f"source+{written(tmp_path / 'fast.safetensors', fast)}"
    command = ["transfer", path, "--source", str(tmp_path / "base_high_noise.safetensors"), "--target", target]
    out = str(tmp_path / "o.safetensors")
    done = CliRunner().invoke(
        app, [*command, "-o", out, "--method", "direct", "--dtype", "fp32", "--experts", "--no-cache"]
    )
    assert done.exit_code == 0, done.output
    assert "transformer_2 of x.safetensors is taken for the low-noise expert" in done.stderr
    assert ("dit2 of fast.safetensors is taken for the low-noise expert" in done.stderr) is accelerated
    for which, noise in enumerate(("high_noise", "low_noise")):
        assert holds(str(tmp_path / f"o-{noise}.safetensors"), which)
