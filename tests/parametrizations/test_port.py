"""From file to file: what MiniMax-H3's modulation adds at every time is the same in every form of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.conversion import convert
from loraport.errors import FileFormatError, MismatchError, SettingsError
from loraport.files.lora.read import read_lora
from loraport.inputs.config import TransferConfig
from loraport.inputs.open import prepare, prepare_many
from loraport.merging import merge
from loraport.parametrizations.time_path import read_time_path
from loraport.transfers.run import transfer
from tests.families import State, fused_by_diffusers, minimax_h3
from tests.parametrizations.forms import FORMS, LAYERS, RANK, WIDTH, curve, full, modulation, pruned, write_lora

pytest.importorskip("diffusers")


def added(model: Path, lora: Path, tmp_path: Path) -> dict[str, Tensor]:
    """What a LoRA adds to a model's modulation at each time, by our merge."""
    merge(str(model), [str(lora)], str(tmp_path / "merged.safetensors"))
    before, after = modulation(load_file(model)), modulation(load_file(tmp_path / "merged.safetensors"))
    return {layer: after[layer] - before[layer] for layer in before}


def off(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> float:
    return max(float((got[layer] - rows).norm() / rows.norm()) for layer, rows in wanted.items())


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    paths, state = {}, full()
    for name, form in FORMS.items():
        paths[name] = tmp_path / f"{name.replace(', ', '-').replace(' ', '-')}.safetensors"
        save_file(form(state), paths[name])
    return paths


def test_the_forms_are_one_model(models: dict[str, Path]) -> None:
    wanted = modulation(load_file(models["full"]))
    for name, path in models.items():
        assert off(modulation(load_file(path)), wanted) < 1e-4, name
        found = read_time_path(str(path))
        assert found is not None and found.inputs == (WIDTH if name.startswith("full") else RANK), name


@pytest.mark.parametrize("of", FORMS)
def test_from_every_form_to_every_form(of: str, models: dict[str, Path], tmp_path: Path) -> None:
    """The same at every time; a bias only where the target is pruned, and without it nearly all is lost."""
    lora, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(lora, WIDTH if of.startswith("full") else RANK)
    wanted = added(models[of], lora, tmp_path)
    for name, target in models.items():
        done = convert(str(lora), "comfy", str(out), dtype="fp32", source=str(models[of]), target=str(target))
        assert not done.lost, done.keys
        assert off(added(target, out, tmp_path), wanted) < 1e-4, name
        tensors = load_file(out)
        biases = {key for key in tensors if "bias" in key or key.endswith(".diff_b")}
        assert bool(biases) == (name.startswith("pruned") and not of.startswith("pruned")), name
        carried = [note for note in done.notes if "are carried over to" in note]
        assert bool(carried) == (of.partition(",")[0] != name.partition(",")[0]), (name, done.notes)
        if biases and of.startswith("full"):
            save_file({key: value for key, value in tensors.items() if key not in biases}, out)
            assert off(added(target, out, tmp_path), wanted) > 0.9, "without the constant part"


def test_there_and_back_is_the_file_that_diffusers_takes(models: dict[str, Path], tmp_path: Path) -> None:
    lora, there, back = (tmp_path / f"{name}.safetensors" for name in ("in", "there", "back"))
    write_lora(lora, WIDTH)
    places = {"source": str(models["full"]), "target": str(models["pruned"])}
    convert(str(lora), "comfy", str(there), dtype="fp32", **places)
    done = convert(str(there), "diffusers", str(back), dtype="fp32", source=places["target"], target=places["source"])
    assert not done.lost and all("lora" in key for key in load_file(back))
    model = minimax_h3(time_embed_dim=WIDTH, time_embed_hidden_dim=40, freq_dim=16)
    model.load_state_dict(load_file(models["full"]))
    fused_by_diffusers("minimax-h3", model, back)
    after = {name: value.detach() for name, value in model.state_dict().items()}
    before = modulation(load_file(models["full"]))
    got = {layer: rows - before[layer] for layer, rows in modulation(after).items()}
    assert off(got, added(models["full"], lora, tmp_path)) < 1e-4


def test_a_model_that_keeps_its_basis_needs_no_other(models: dict[str, Path], tmp_path: Path) -> None:
    lora, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(lora, WIDTH)
    target = models["pruned, basis kept"]
    convert(str(lora), "comfy", str(out), dtype="fp32", target=str(target))
    assert off(added(target, out, tmp_path), added(models["full"], lora, tmp_path)) < 1e-4
    with pytest.raises(MismatchError, match=r"see 24 numbers, and .*pruned\.safetensors's 10 .*name that as --source"):
        convert(str(lora), "comfy", str(out), target=str(models["pruned"]))


def test_nothing_but_the_time_path_is_read(models: dict[str, Path], tmp_path: Path) -> None:
    """Codes that no reader takes, and shards that are not here, are no hindrance; a transfer refuses codes."""
    lora, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(lora, WIDTH)
    state = load_file(models["pruned"])
    codes = {name: value for name, value in state.items() if "mlp.fc2" not in name}
    note = torch.frombuffer(bytearray(b'{"format": "int8_tensorwise", "convrot": true}'), dtype=torch.uint8)
    codes |= {"blocks.0.mlp.fc2.weight": torch.ones(12, 10, dtype=torch.int8), "blocks.0.mlp.fc2.comfy_quant": note}
    save_file(codes, tmp_path / "int8_convrot.safetensors")
    shards = tmp_path / "shards"
    shards.mkdir()
    source = load_file(models["full"])
    time = {name: value for name, value in source.items() if name.startswith("time_embedder")}
    save_file(time, shards / "model-00001-of-00002.safetensors")
    where = {name: f"model-0000{1 if name in time else 2}-of-00002.safetensors" for name in source}
    (shards / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    places: dict[str, Any] = {"source": str(shards), "target": str(tmp_path / "int8_convrot.safetensors")}
    convert(str(lora), "comfy", str(out), dtype="fp32", **places)
    assert off(added(models["pruned"], out, tmp_path), added(models["full"], lora, tmp_path)) < 1e-4
    with pytest.raises(FileFormatError, match=r"quantised as int8_tensorwise with rotated inputs \(convrot\)"):
        prepare(TransferConfig(str(lora), str(models["full"]), places["target"], str(tmp_path / "o.safetensors")))


@pytest.mark.parametrize("target", ["pruned", "reduced"])
def test_a_transfer_carries_over_by_itself(target: str, models: dict[str, Path], tmp_path: Path) -> None:
    """The other layers are transferred; nothing is lost, and what was done is said."""
    lora, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(lora, WIDTH)
    config = TransferConfig(
        str(lora), str(models["full"]), str(models[target]), str(out), method="direct", dtype="fp32"
    )
    result = transfer(config)
    status = {row.name: row.status for row in result.layers}
    assert status == {LAYERS[0]: "copied", LAYERS[1]: "copied", "transformer_blocks.0.ff.net.2": "transferred"}
    assert not result.keys.dropped and not any(row.drift_unknown for row in result.layers)
    assert any("carried over to" in note for note in result.warnings)
    assert off(added(models[target], out, tmp_path), added(models["full"], lora, tmp_path)) < 1e-4


def test_many_loras_at_once_are_read_again_and_are_the_same(models: dict[str, Path], tmp_path: Path) -> None:
    """Not held in memory: each is read and carried over when its turn comes."""
    for name in "ab":
        write_lora(tmp_path / f"{name}.safetensors", WIDTH)
    places = [str(models["full"]), str(models["pruned"])]
    configs = [TransferConfig(str(tmp_path / f"{name}.safetensors"), *places, str(tmp_path / f"{name}-o.safetensors"),
                              method="direct", dtype="fp32") for name in "ab"]  # fmt: skip
    both, [alone] = prepare_many(configs), prepare_many(configs[:1])
    for inputs in both:
        for layer in LAYERS:
            one, other = inputs.lora.layers[layer], alone.lora.layers[layer]
            assert one.update is not one.update and torch.equal(one.update.A, other.update.A)  # type: ignore[union-attr]
            assert one.outline == other.outline and one.outline.shape[1] == RANK and one.settled


def test_between_tables_of_two_models_the_modulation_is_dropped_and_said(tmp_path: Path) -> None:
    """Same names, same shapes: another model's table means something else, and nothing shows it but the table."""
    lora, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    write_lora(lora, RANK)
    for name, seed in (("one", 0), ("two", 5)):
        save_file(pruned(full(seed)), tmp_path / f"{name}.safetensors")
    places = [str(tmp_path / f"{name}.safetensors") for name in ("one", "two")]
    result = transfer(TransferConfig(str(lora), *places, str(out), method="direct"))
    reasons = dict(result.keys.dropped)
    assert len(reasons) == 4 and all("are not forms of one model" in reason for reason in reasons.values())
    assert not any("adaln" in key for key in load_file(out))
    same = transfer(TransferConfig(str(lora), places[0], places[0], str(tmp_path / "b.safetensors"), method="direct"))
    assert not same.keys.dropped and all(row.status == "transferred" for row in same.layers)


def test_what_is_dropped_goes_with_its_bias(models: dict[str, Path], tmp_path: Path) -> None:
    """A LoRA of a pruned model on two full ones: nothing tells its table, and its constant alone would be wrong."""
    lora, narrow, out = (tmp_path / f"{name}.safetensors" for name in ("in", "narrow", "out"))
    write_lora(lora, WIDTH)
    places = [str(models["full"]), str(models["pruned"])]
    convert(str(lora), "comfy", str(narrow), dtype="fp32", source=places[0], target=places[1])
    result = transfer(TransferConfig(str(narrow), places[0], places[0], str(out), method="direct"))
    assert len(result.keys.dropped) == 6 and sum(key.endswith(".diff_b") for key, _ in result.keys.dropped) == 2
    assert all("mlp.fc2" in key for key in load_file(out))


def test_ranks_do_not_exceed_what_the_layer_sees(tmp_path: Path, models: dict[str, Path]) -> None:
    generator = torch.Generator().manual_seed(2)
    A, B = torch.randn(16, WIDTH, generator=generator), torch.randn(24, 16, generator=generator)
    stem = "diffusion_model.final_layer.adaln_proj.linear"
    save_file({f"{stem}.lora_A.weight": A, f"{stem}.lora_B.weight": B}, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    convert(str(tmp_path / "in.safetensors"), "comfy", str(out), dtype="fp32", source=str(models["full"]),
            target=str(models["pruned"]))  # fmt: skip
    assert load_file(out)[f"{stem}.lora_A.weight"].shape == (RANK, RANK)
    wanted = {LAYERS[1]: curve(load_file(models["full"])) @ (B.double() @ A.double()).mT}
    assert off(added(models["pruned"], out, tmp_path), wanted) < 1e-4


BROKEN: dict[str, tuple[Callable[[State], State], str]] = {
    "a bias is missing": (lambda state: {k: v for k, v in state.items() if k != "time_embedder.linear_2.bias"},
                          "neither a whole time embedder"),
    "not finite": (lambda state: state | {"time_embedder.linear_2.bias": torch.full((WIDTH,), torch.nan)},
                   "is not finite"),
    "of another size": (lambda state: state | {"time_embedder.linear_2.bias": torch.zeros(7)}, "do not fit together"),
    "codes": (lambda state: state | {"time_embedder.linear_2.weight": torch.ones(WIDTH, 40, dtype=torch.int8)},
              "is stored as int8"),
    "a table of one line": (lambda state: pruned(state) | {"adaln_t_table": torch.ones(65)}, "do not fit together"),
    "an empty table": (lambda state: pruned(state) | {"adaln_t_table": torch.ones(0, 4)}, "do not fit together"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_damaged_time_path_is_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    spoil, message = BROKEN[case]
    save_file({name: value.contiguous() for name, value in spoil(full()).items()}, tmp_path / "x.safetensors")
    with pytest.raises(FileFormatError, match=message) as caught:
        read_time_path(str(tmp_path / "x.safetensors"))
    assert "\n" not in str(caught.value)


def test_a_target_is_for_families_with_forms(tmp_path: Path, models: dict[str, Path]) -> None:
    save_file({f"diffusion_model.blocks.0.self_attn.q.lora_{x}.weight": torch.ones(2, 2) for x in "AB"},
              tmp_path / "wan.safetensors")  # fmt: skip
    with pytest.raises(SettingsError, match="leave out --target"):
        convert(str(tmp_path / "wan.safetensors"), "comfy", str(tmp_path / "o.safetensors"), target=str(models["full"]))


def test_a_lora_without_modulation_is_left_as_it_is(tmp_path: Path, models: dict[str, Path]) -> None:
    stem = "diffusion_model.blocks.0.mlp.fc2"
    save_file({f"{stem}.lora_A.weight": torch.ones(2, 10), f"{stem}.lora_B.weight": torch.ones(12, 2)},
              tmp_path / "in.safetensors")  # fmt: skip
    out = tmp_path / "out.safetensors"
    done = convert(str(tmp_path / "in.safetensors"), "comfy", str(out), target=str(models["pruned"]))
    assert any("nothing was carried over" in note for note in done.notes)
    assert read_lora(out).layers.keys() == {"transformer_blocks.0.ff.net.2"}
