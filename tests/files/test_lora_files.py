"""The forms in which a LoRA lies on disk: pickles, shards, fp8, full differences; and a LoRA where none belongs."""

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
from loraport.errors import FileFormatError, InputError
from loraport.files.inspect import describe, summary_lines
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from tests.dialects import CASES, SHAPES, Written, factors, write
from tests.files.test_lora import assert_same_updates


def tensors_of(written: Written) -> dict[str, Tensor]:
    path = written.path / "adapter_model.safetensors" if written.path.is_dir() else written.path
    found: dict[str, Tensor] = load_file(path)
    path.unlink()
    return found


def same_file(content: dict[str, Tensor]) -> Any:
    return content


PICKLES: dict[str, tuple[str, str, Callable[[dict[str, Tensor]], Any]]] = {
    "kohya's .pt": ("g5", "style.pt", same_file),
    "diffusers' .bin": ("g1-alpha", "pytorch_lora_weights.bin", same_file),
    "a table in a .ckpt": ("g4-alpha", "style.ckpt", lambda content: {"state_dict": content, "epoch": 3}),
    "a trainer's": ("g4", "style.pth", lambda content: {"generator_lora": content, "step": 600, "config": {"r": 4}}),
    "with an optimizer": ("g4", "style.pt", lambda content: {
        "my_lora": content, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}, 1: {"exp_avg": torch.ones(2)}}}}),
    "two tables deep": ("g4", "style.pt", lambda content: {"lora": {"weights": content}}),
    "beside the model": ("g4", "style.pt", lambda content: {
        "generator": {"blocks.0.self_attn.q.weight": torch.ones(24, 24)}, "adapter": content}),
    "safetensors called .pt": ("g4", "style.pt", lambda content: None),
    "old PEFT's": ("g3-patterns", "adapter_model.bin", same_file),
}  # fmt: skip


@pytest.mark.parametrize(("case", "name", "inside"), PICKLES.values(), ids=PICKLES)
def test_pickles_are_read_as_the_same_updates(
    case: str, name: str, inside: Callable[[dict[str, Tensor]], Any], tmp_path: Path
) -> None:
    written = write(CASES[case], tmp_path)
    content = tensors_of(written)
    if inside(content) is None:
        save_file(content, tmp_path / name)
    else:
        torch.save(inside(content), tmp_path / name)
    place = tmp_path if name == "adapter_model.bin" else tmp_path / name
    assert_same_updates(read_lora(place), written)
    assert_same_updates(read_lora(place, keep=False), written)
    facts = describe(str(place))
    assert facts["kind"] == "LoRA" and facts["family"] == "wan, width 24" and facts["layers"] == len(SHAPES)


def test_a_folder_with_one_pickle_is_that_lora_and_safetensors_go_first(tmp_path: Path) -> None:
    written = write(CASES["g4"], tmp_path)
    torch.save(tensors_of(written), tmp_path / "style.pt")
    assert_same_updates(read_lora(tmp_path), written)
    torch.save({}, tmp_path / "other.pt")
    with pytest.raises(InputError, match=r"holds 2 files of weights; give the file: other\.pt, style\.pt"):
        read_lora(tmp_path)
    assert_same_updates(read_lora(write(CASES["g4"], tmp_path).path.parent), written)


def test_of_several_loras_in_a_pickle_one_has_to_be_named(tmp_path: Path) -> None:
    content = tensors_of(write(CASES["g4"], tmp_path))
    torch.save({"first": content, "second": content}, tmp_path / "two.pt")
    with pytest.raises(InputError, match=r"several parts and none with a usual name.*: first, second"):
        read_lora(tmp_path / "two.pt")


def test_a_pickled_lora_is_written_as_safetensors(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    written = write(CASES["g3"], tmp_path / "in")
    torch.save(tensors_of(written), tmp_path / "in" / "adapter_model.bin")
    convert(str(tmp_path / "in"), "peft", str(tmp_path / "new"))
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert_same_updates(read_lora(tmp_path / "new"), written)


def sharded(folder: Path, index: bool) -> tuple[Written, list[str]]:
    """PEFT's adapter in two shards."""
    written = write(CASES["g3-patterns"], folder)
    content = tensors_of(written)
    names = [f"adapter_model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    where = {key: names[number % 2] for number, key in enumerate(sorted(content))}
    for name in names:
        save_file({key: content[key] for key in content if where[key] == name}, folder / name)
    if index:
        (folder / "adapter_model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return written, names


def test_shards_are_read_whole(tmp_path: Path) -> None:
    written, names = sharded(tmp_path, index=True)
    assert_same_updates(read_lora(tmp_path), written)
    assert_same_updates(read_lora(tmp_path / "adapter_model.safetensors.index.json"), written)
    assert describe(str(tmp_path))["kind"] == "LoRA"
    before = read_lora(tmp_path).sha256
    with (tmp_path / names[1]).open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert read_lora(tmp_path).sha256 != before, "the hash covers every shard"


def test_a_whole_set_needs_no_index(tmp_path: Path) -> None:
    written, names = sharded(tmp_path, index=False)
    assert_same_updates(read_lora(tmp_path), written)
    (tmp_path / names[1]).unlink()
    with pytest.raises(InputError, match="is one of 2 shards, a part of an adapter"):
        read_lora(tmp_path)


def test_of_several_loras_in_a_pickle_one_is_taken_and_said_and_another_can_be_chosen(tmp_path: Path) -> None:
    written = write(CASES["g4"], tmp_path)
    content = tensors_of(written)
    other = {key: 2 * tensor for key, tensor in content.items()}
    torch.save({"generator_lora": content, "critic_lora": other}, tmp_path / "a.pt")
    lora = read_lora(tmp_path / "a.pt")
    assert_same_updates(lora, written)
    assert "holds generator_lora, which was taken, and critic_lora; --lora-part" in lora.notes[0]
    critic = read_lora(tmp_path / "a.pt", part="critic_lora")
    assert critic.notes == () and all(
        torch.allclose(critic.updates[layer].dense(), 4 * update.dense()) for layer, update in lora.updates.items()
    )


@pytest.mark.parametrize("index", [True, False])
def test_one_shard_is_not_taken_for_the_whole(index: bool, tmp_path: Path) -> None:
    _, names = sharded(tmp_path, index)
    with pytest.raises(InputError, match="is one of 2 shards, a part of an adapter") as raised:
        read_lora(tmp_path / names[0])
    assert ("adapter_model.safetensors.index.json" if index else names[1]) in str(raised.value)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    _, names = sharded(tmp_path, index=True)
    (tmp_path / names[1]).unlink()
    with pytest.raises(FileFormatError, match=rf"names shards that are not there: {names[1]}"):
        read_lora(tmp_path)


def test_an_index_that_contradicts_its_shards_is_refused(tmp_path: Path) -> None:
    sharded(tmp_path, index=True)
    index = tmp_path / "adapter_model.safetensors.index.json"
    where = json.loads(index.read_text())["weight_map"]
    first, second = sorted(where)[:2]
    index.write_text(json.dumps({"weight_map": where | {first: where[second]}}))
    with pytest.raises(FileFormatError, match="but it is not; download both again"):
        read_lora(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_plain_fp8_factors_are_cast_up(dtype: torch.dtype, tmp_path: Path) -> None:
    content = {}
    for layer, (A, B) in factors().items():
        content |= {f"{layer}.lora_A.weight": A.to(dtype), f"{layer}.lora_B.weight": B.to(dtype)}
    content["blocks.0.norm3.diff_b"] = torch.ones(24).to(dtype)
    save_file(content, tmp_path / "a.safetensors")
    lora = read_lora(tmp_path / "a.safetensors")
    for layer, (A, B) in factors().items():
        assert torch.equal(lora.updates[layer].A, A.to(dtype).float())  # type: ignore[union-attr]
        assert torch.equal(lora.updates[layer].B, B.to(dtype).float())  # type: ignore[union-attr]
    assert lora.extras["blocks.0.norm3.diff_b"].dtype == torch.bfloat16
    made = convert(str(tmp_path / "a.safetensors"), "comfy", str(tmp_path / "b.safetensors"))
    assert made.dtype == "bf16"
    assert torch.equal(
        load_file(tmp_path / "b.safetensors")["diffusion_model.blocks.0.self_attn.q.lora_A.weight"][:2].float(),
        factors()["blocks.0.self_attn.q"][0].to(dtype).float(),
    )


def test_scales_beside_fp8_factors_are_refused_by_name(tmp_path: Path) -> None:
    key = "diffusion_model.blocks.0.self_attn.q"
    content = {f"{key}.lora_A.weight": torch.ones(2, 4), f"{key}.lora_B.weight": torch.ones(6, 2)}
    content = {name: value.to(torch.float8_e4m3fn) for name, value in content.items()}
    save_file(content | {f"{key}.lora_A.weight_scale": torch.ones(1)}, tmp_path / "a.safetensors")
    with pytest.raises(FileFormatError, match=r"lora_A\.weight_scale' is the scale of quantised values"):
        read_lora(tmp_path / "a.safetensors")


def full_differences(path: Path, biases_only: bool = False) -> Path:
    """What LyCORIS calls full, and extraction tools write."""
    shapes = {} if biases_only else {f"{layer}.diff": shape for layer, shape in SHAPES.items()}
    shapes |= {f"{layer}.diff_b": shape[:1] for layer, shape in SHAPES.items()}
    save_file({f"diffusion_model.{key}": torch.randn(shape) for key, shape in shapes.items()}, path)
    return path


def test_a_file_of_full_differences_is_told_as_what_it_is(tmp_path: Path) -> None:
    path = full_differences(tmp_path / "full.safetensors")
    facts = describe(str(path))
    assert (
        facts["kind"] == "LoRA of full differences" and facts["layers"] == 20 and facts["kinds"] == {"difference": 20}
    )
    assert facts["family"] == "wan, width 24"
    takes = {one["loader"]: one["takes"] for one in facts["loaders"]}
    assert takes["ComfyUI"] == "yes" and takes["Krea"] == "no"
    assert summary_lines(facts)["layers"] == "20 (difference)"
    with pytest.raises(FileFormatError, match=r"transfer --transfer-diffs moves .* convert --rank 64 makes factors"):
        read_lora(path)
    assert len(read_lora(path, diffs=True).layers) == 20


def test_a_file_of_biases_alone_has_nothing_to_transfer(tmp_path: Path) -> None:
    path = full_differences(tmp_path / "biases.safetensors", biases_only=True)
    for diffs in (False, True):
        with pytest.raises(FileFormatError, match=r"holds \.diff_b and the like only, which merge adds"):
            read_lora(path, diffs=diffs)
    assert len(read_lora(path, dense=True).extras) == 20
    assert describe(str(path))["kind"] == "LoRA of full differences"


def test_convert_makes_factors_of_full_differences(tmp_path: Path) -> None:
    path = full_differences(tmp_path / "full.safetensors")
    made = convert(str(path), "diffusers", str(tmp_path / "o.safetensors"), rank="full")
    assert made.keys.dropped == () and made.layers == 20
    again, before = read_lora(tmp_path / "o.safetensors"), load_file(path)
    for layer, update in again.updates.items():
        assert (update.dense() - before[f"diffusion_model.{layer}.diff"]).abs().max() < 1e-5
    assert convert(str(path), "comfy", str(tmp_path / "p.safetensors"), rank="4").rank == 4
    assert convert(str(path), "comfy", str(tmp_path / "q.safetensors")).layers == 0, "copied where no rank is named"


@pytest.mark.parametrize("form", ["factors", "pickle", "differences"])
def test_a_lora_where_a_model_belongs_is_called_one(form: str, tmp_path: Path) -> None:
    path = full_differences(tmp_path / "a.safetensors") if form == "differences" else write(CASES["g4"], tmp_path).path
    if form == "pickle":
        torch.save({"generator_lora": load_file(path)}, tmp_path / "a.pt")
        path = tmp_path / "a.pt"
    with pytest.raises(FileFormatError, match=rf"is a LoRA, where a model belongs .* --target 'source\+{path}'"):
        open_checkpoint(path)


def test_a_model_with_adapters_inside_is_no_lora_file(tmp_path: Path) -> None:
    name = "blocks.0.self_attn.q"
    content = {f"{name}.base_layer.weight": torch.ones(4, 4), f"{name}.lora_A.default.weight": torch.ones(2, 4)}
    save_file(content | {f"{name}.lora_B.default.weight": torch.ones(4, 2)}, tmp_path / "a.safetensors")
    assert len(open_checkpoint(tmp_path / "a.safetensors")) == 3
