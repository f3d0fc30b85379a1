"""What is written: the same bytes every time, whole or not at all, nothing stale, and every extra key accounted for."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from loraport.errors import OutputError, SettingsError
from loraport.files.disk import atomic as replacing
from loraport.files.formats.safetensors_write import Pending, save_folder, save_safetensors
from loraport.files.lora.read import Lora, read_lora
from loraport.files.lora.write import diff_contents, write_lora
from loraport.spectral.low_rank import LowRank
from tests.dialects import CASES, FORMATS, write

GOLDEN: dict[str, str] = {
    "g1": "5ab0264516ab867b",
    "g1-header": "8e5ddda25142ff25",
    "g1-header-patterns": "ab1ae96d870a5611",
    "g2": "96ef0508f7f0cbeb",
    "g2-header-rslora": "a196faf2dd59b786",
    "g2-original": "33ec16b308326a84",
    "g3": "505cf31567d40a2a",
    "g3-defaults": "8ec2b50d5fe00ca5",
    "g3-patterns": "78f1e940d8c866af",
    "g3-rslora": "2e94040eb56b32f4",
    "g4": "fbe6af776da54e71",
    "g4-alpha": "03c529488223bf9f",
    "g4-notes": "fbe6af776da54e71",
    "g4-long-prefix": "d8d4c077ad66c57d",
    "g5": "99049704171ac2f1",
    "g5-notes": "db58f695972f2092",
    "g5b": "50acd43cec4d1797",
    "g6": "d4b633eb24c5578f",
    "g7": "aabb53f9edb0df6c",
    "g8": "15fa40f3e8c7f117",
    "g8-named": "2b96f078d8f4c48e",
    "g9-processor": "7b761f910363da8b",
    "g9-linear-layer": "f3713c79a2cfce01",
    "g9-dotted": "1bd4d0de962fa3b3",
    "g9-bare": "d7b6834f7d7e77d8",
    "g1-alpha": "8e5ddda25142ff25",
    "g4-diffusers-names": "d4292835a251485d",
    "g4-header": "e494abc28b18e406",
    "g11": "887005f4d04a17ba",
    "g10": "98d21fe3a5d10b81",
    "krea": "38b2e731616dd4b1",
    "diffsynth": "78a768e3ccbcfe43",
    "net": "550c1936ad2385a0",
    "compiled": "e53727cb1a138e72",
    "in no list": "24da03f3baa77713",
    "in no list, flat": "d3f9aa002b6daf82",
}


def bytes_of(path: Path) -> bytes:
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    return b"".join(file.read_bytes() for file in files)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        found: dict[str, str] = file.metadata()
    return found


@pytest.mark.parametrize("name", CASES)
def test_golden_bytes(name: str, tmp_path: Path) -> None:
    """One digest per dialect, over what is written back in the dialect itself in bf16."""
    (tmp_path / "in").mkdir()
    lora = read_lora(write(CASES[name], tmp_path / "in").path)
    result = write_lora(tmp_path / "out", lora.updates, lora, provenance={"method": "none", "version": "0"})
    assert hashlib.sha256(bytes_of(result.path)).hexdigest()[:16] == GOLDEN[name]


WRITE_AGAIN = """
import sys
from loraport.files.lora.read import read_lora
from loraport.files.lora.write import write_lora
lora = read_lora(sys.argv[1])
write_lora(sys.argv[2], lora.updates, lora, provenance={f"key {i}": str(i) for i in range(9)})
"""


@pytest.mark.slow
def test_two_processes_write_the_same_bytes(tmp_path: Path) -> None:
    written = write(CASES["g5"], tmp_path)
    lora = read_lora(written.path)
    here = write_lora(tmp_path / "here", lora.updates, lora, provenance={f"key {i}": str(i) for i in range(9)}).path
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    subprocess.run([sys.executable, "-c", WRITE_AGAIN, written.path, tmp_path / "there"], env=environment, check=True)
    assert (tmp_path / "there").read_bytes() == here.read_bytes()


@pytest.mark.parametrize("name", ["g3", "g5"])
def test_the_hash_is_that_of_the_bytes(name: str, tmp_path: Path) -> None:
    written = write(CASES[name], tmp_path)
    parts = ["adapter_model.safetensors", "adapter_config.json"] if written.path.is_dir() else ["lora.safetensors"]
    data = b"".join((tmp_path / part).read_bytes() for part in parts)
    assert read_lora(written.path).sha256 == hashlib.sha256(data).hexdigest()


TRAINER = {
    "ss_network_dim": "4",
    "ss_network_alpha": "1",
    "sshs_model_hash": "ab",
    "modelspec.title": "mine",
    "name": "x",
}


@pytest.mark.parametrize("format", ["same", *FORMATS])
def test_of_the_trainer_what_stays_true_survives(format: str, tmp_path: Path) -> None:
    path = tmp_path / "in.safetensors"
    save_file(load_file(write(CASES["g5"], tmp_path).path), path, TRAINER)
    lora = read_lora(path)
    assert lora.metadata == TRAINER
    result = write_lora(tmp_path / "out", lora.updates, lora, format=format, provenance={"lora": lora.sha256})
    weights = result.path / "adapter_model.safetensors" if result.path.is_dir() else result.path
    stays = {"modelspec.title": "mine", "name": "x"}
    assert metadata_of(weights) == {"format": "pt", "loraport.lora": lora.sha256} | stays


@pytest.mark.parametrize("format", ["same", *FORMATS])
def test_one_dtype_and_alpha_for_kohya_only(format: str, tmp_path: Path) -> None:
    lora = read_lora(write(CASES["g4-alpha"], tmp_path).path)
    result = write_lora(tmp_path / "out", lora.updates, lora, format=format)
    tensors = load_file(result.path / "adapter_model.safetensors" if result.path.is_dir() else result.path)
    alphas = {key: value for key, value in tensors.items() if "alpha" in key}
    assert len(alphas) == (len(lora.layers) if format == "kohya" else 0)
    assert all(float(alpha) == result.rank for alpha in alphas.values())
    assert {value.dtype for key, value in tensors.items() if key not in alphas} == {torch.bfloat16}


TEXT = "lora_te3_encoder_block_0_layer_1_DenseReluDense_wi_0.lora_down.weight"
"""Of T5, whose names are in no table."""
EXTRAS: dict[str, Tensor] = {
    "diffusion_model.blocks.0.self_attn.q.diff_b": torch.ones(24),
    "diffusion_model.blocks.0.norm3.diff": torch.ones(24),
    "diffusion_model.blocks.0.norm3.diff_b": torch.ones(24),
    "diffusion_model.blocks.1.diff_m": torch.ones(1, 6, 24),
    "diffusion_model.strange": torch.ones(1),
    TEXT: torch.ones(2, 3),
}
COPIES = {
    "same": {key: key for key in EXTRAS},
    # ComfyUI looks a parameter up by its full name; LightX2V's diff_m it does not know
    "comfy": {key: key.replace("diff_m", "modulation.diff") for key in EXTRAS if not key.endswith("strange")},
    "diffusers": {
        "diffusion_model.blocks.0.self_attn.q.diff_b": "transformer.blocks.0.attn1.to_q.lora_B.bias",
    },
    "peft": {
        "diffusion_model.blocks.0.self_attn.q.diff_b": "base_model.model.blocks.0.attn1.to_q.lora_B.bias",
    },
    "kohya": {
        TEXT: TEXT,
        "diffusion_model.blocks.0.self_attn.q.diff_b": "lora_unet_blocks_0_self_attn_q.diff_b",
        "diffusion_model.blocks.0.norm3.diff": "lora_unet_blocks_0_norm3.diff",
        "diffusion_model.blocks.0.norm3.diff_b": "lora_unet_blocks_0_norm3.diff_b",
    },
}


@pytest.mark.parametrize("format", COPIES)
def test_each_extra_key_is_copied_or_dropped_with_a_reason(format: str, tmp_path: Path) -> None:
    lora = read_lora(write(CASES["g4-alpha"], tmp_path, EXTRAS).path)
    assert lora.extras.keys() == EXTRAS.keys()
    result = write_lora(tmp_path / "out", lora.updates, lora, format=format)
    assert result.copied == COPIES[format]
    assert {key for key, _ in result.dropped} == EXTRAS.keys() - result.copied.keys()
    assert all(reason for _, reason in result.dropped)
    tensors = load_file(result.path / "adapter_model.safetensors" if result.path.is_dir() else result.path)
    assert tensors.keys() == set(result.keys)
    for old, new in result.copied.items():
        assert torch.equal(tensors[new], EXTRAS[old])
    if result.path.is_dir():
        assert json.loads((result.path / "adapter_config.json").read_text())["lora_bias"] is True


def test_a_scale_of_the_header_is_folded_into_what_is_carried_too(tmp_path: Path) -> None:
    """The header does not travel along; without this the text encoder and the biases would change their strength."""
    fields = {"transformer.r": 2, "transformer.lora_alpha": 6, "text_encoder.r": 2, "text_encoder.lora_alpha": 1}
    text = "text_encoder.layers.0.fc1"
    bias = "transformer.blocks.0.attn1.to_q.lora_B.bias"
    tensors = {
        "transformer.blocks.0.attn1.to_q.lora_A.weight": torch.ones(2, 4),
        "transformer.blocks.0.attn1.to_q.lora_B.weight": torch.ones(4, 2),
        bias: torch.ones(4),
        f"{text}.lora_A.weight": torch.ones(2, 3),
        f"{text}.lora_B.weight": torch.ones(3, 2),
    }
    save_file(tensors, tmp_path / "in.safetensors", {"lora_adapter_metadata": json.dumps(fields)})
    lora = read_lora(tmp_path / "in.safetensors")
    assert {name: layer.scale for name, layer in lora.layers.items()} == {"blocks.0.self_attn.q": 3.0}
    assert torch.equal(lora.extras[bias].read(), torch.full((4,), 3.0))
    assert torch.equal(lora.extras[f"{text}.lora_A.weight"].read(), torch.ones(2, 3))
    assert torch.equal(lora.extras[f"{text}.lora_B.weight"].read(), torch.full((3, 2), 0.5))


@settings(deadline=None, max_examples=25)
@given(
    kernel=st.sampled_from([(1, 1), (3, 3), (1, 2, 2)]),
    rank=st.integers(1, 4),
    wider=st.integers(0, 3),
    format=st.sampled_from(["same", *FORMATS]),
)
def test_convolutions_keep_their_kernels(
    kernel: tuple[int, ...], rank: int, wider: int, format: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("conv")
    A, B = torch.randn(rank, 5, *kernel), torch.randn(7, rank, *(1 for _ in kernel))
    name = "lora_unet_patch_embedding"
    q = "lora_unet_blocks_0_self_attn_q"
    tensors = {f"{name}.lora_down.weight": A, f"{name}.lora_up.weight": B, f"{name}.alpha": torch.tensor(2.0)}
    tensors |= {
        f"{q}.lora_down.weight": torch.ones(rank + wider, 4),
        f"{q}.lora_up.weight": torch.ones(4, rank + wider),
    }
    save_file(tensors, folder / "in.safetensors")
    lora = read_lora(folder / "in.safetensors")
    wanted = 2.0 / rank * torch.einsum("or...,ri->oi", B.flatten(1), A.flatten(1))
    torch.testing.assert_close(lora.updates["patch_embedding"].dense(), wanted)
    assert {name: layer.kernel for name, layer in lora.layers.items() if layer.kernel} == {"patch_embedding": kernel}
    result = write_lora(folder / "out", lora.updates, lora, format=format, dtype=torch.float32)
    again = read_lora(result.path)
    torch.testing.assert_close(again.updates["patch_embedding"].dense(), wanted)
    assert again.layers["patch_embedding"].kernel == kernel
    assert again.updates["patch_embedding"].rank == rank + wider


def test_the_majority_dialect_is_written_back(tmp_path: Path) -> None:
    tensors = load_file(write(CASES["g4"], tmp_path).path)
    for part in ("A", "B"):
        value = tensors.pop(f"diffusion_model.blocks.0.self_attn.q.lora_{part}.weight")
        tensors[f"transformer.blocks.0.attn1.to_q.lora_{part}.weight"] = value
    save_file(tensors, tmp_path / "mixed.safetensors")
    lora = read_lora(tmp_path / "mixed.safetensors")
    assert lora.layers["blocks.0.self_attn.q"].keys == tuple(
        f"transformer.blocks.0.attn1.to_q.lora_{part}.weight" for part in "AB"
    )
    result = write_lora(tmp_path / "out", lora.updates, lora)
    assert all(key.startswith("diffusion_model.") for key in result.keys)
    assert len(result.keys) == len(tensors)


def unknown_layers(folder: Path, prefix: str, name: str) -> Lora:
    tensors = {
        f"{prefix}{name}.lora_{part}.weight": value
        for part, value in {"down": torch.ones(1, 3), "up": torch.ones(2, 1)}.items()
    }
    save_file(tensors, folder / "unknown.safetensors")
    return read_lora(folder / "unknown.safetensors")


@pytest.mark.parametrize("format", ["same", *FORMATS])
def test_unknown_layers_keep_their_names_where_a_model_has_one_name_for_them(format: str, tmp_path: Path) -> None:
    """ComfyUI's two spellings are of its own names; what diffusers and PEFT call the layer nobody can tell."""
    lora = unknown_layers(tmp_path, "diffusion_model.", "blocks.0.other_thing.proj")
    assert list(lora.layers) == ["blocks.0.other_thing.proj"] and not lora.unresolved
    result = write_lora(tmp_path / "out", lora.updates, lora, format=format)
    if format in ("same", "comfy", "kohya"):
        stem = "blocks_0_other_thing_proj" if format == "kohya" else "blocks.0.other_thing.proj"
        assert all(stem in key for key in result.keys) and not result.dropped
    else:
        assert {key for key, _ in result.dropped} == set(
            lora.layers["blocks.0.other_thing.proj"].keys
        ) and not result.keys
        assert all("in no table" in reason for _, reason in result.dropped)


@pytest.mark.parametrize("format", ["same", *FORMATS])
def test_a_flattened_name_that_no_table_has_is_never_guessed(format: str, tmp_path: Path) -> None:
    lora = unknown_layers(tmp_path, "lora_unet_", "blocks_0_other_thing_proj")
    assert lora.unresolved == {"blocks_0_other_thing_proj"}
    result = write_lora(tmp_path / "out", lora.updates, lora, format=format)
    if format in ("same", "kohya"):
        assert set(lora.layers["blocks_0_other_thing_proj"].keys) < set(result.keys) and not result.dropped
    else:
        assert [key for key, _ in result.dropped] == list(
            lora.layers["blocks_0_other_thing_proj"].keys
        ) and not result.keys


def test_an_alpha_without_factors_is_dropped_with_its_reason(tmp_path: Path) -> None:
    extra = {"diffusion_model.blocks.7.ffn.0.alpha": torch.tensor(1.0)}
    lora = read_lora(write(CASES["g4-alpha"], tmp_path, extra).path)
    assert lora.dropped == (("diffusion_model.blocks.7.ffn.0.alpha", "an alpha without factors"),)


def test_dense_differences(tmp_path: Path) -> None:
    written = write(CASES["g5"], tmp_path, {"lora_unet_blocks_0_self_attn_q.diff_b": torch.ones(24)})
    lora = read_lora(written.path)
    updates = {layer: Pending.of(delta.float()) for layer, delta in written.deltas.items()}
    result = diff_contents(updates, lora, dtype=torch.float32).save(tmp_path / "out.safetensors")
    tensors = load_file(result.path)
    assert result.dropped == ()
    assert torch.equal(tensors.pop("diffusion_model.blocks.0.self_attn.q.diff_b"), torch.ones(24))
    assert {f"diffusion_model.{layer}.diff" for layer in written.deltas} == set(tensors)
    for layer, delta in written.deltas.items():
        assert torch.equal(tensors[f"diffusion_model.{layer}.diff"], delta.float())


def test_values_that_do_not_fit_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    lora = read_lora(write(CASES["g4"], tmp_path).path)
    layers = {layer: update.scaled(1e12) for layer, update in lora.updates.items()}
    with pytest.raises(SettingsError, match=r"holds values above 6.6e.04, the largest of torch.float16; write bf16"):
        write_lora(tmp_path / "out.safetensors", layers, lora, dtype=torch.float16)
    with pytest.raises(SettingsError, match="unknown format 'a1111'; known: same, comfy"):
        write_lora(tmp_path / "out.safetensors", lora.updates, lora, format="a1111")
    assert os.listdir(tmp_path) == ["lora.safetensors"]


@pytest.mark.parametrize("format", ["comfy", "peft"])
def test_a_full_disk_leaves_nothing_behind(format: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = read_lora(write(CASES["g4"], tmp_path).path)
    out = tmp_path / "out"
    write_lora(out, lora.updates, lora, format=format)
    before = bytes_of(out)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(replacing.os, "fsync", full)
    with pytest.raises(OutputError, match=r"out cannot be written: No space left on device"):
        write_lora(out, {name: LowRank(x.B, 2 * x.A) for name, x in lora.updates.items()}, lora, format=format)
    assert sorted(os.listdir(tmp_path)) == ["lora.safetensors", "out"]
    assert bytes_of(out) == before


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    lora = read_lora(write(CASES["g4"], tmp_path).path)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.safetensors cannot be written: Not a directory"):
        write_lora(tmp_path / "file" / "out.safetensors", lora.updates, lora)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError, match="folder cannot be written: Is a directory"):
        write_lora(tmp_path / "folder", lora.updates, lora)
    (tmp_path / "folder" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match=r"other files \(notes\.txt\)"):
        write_lora(tmp_path / "folder", lora.updates, lora, format="peft")
    with pytest.raises(OutputError, match="is a file, but this format is a folder"):
        write_lora(tmp_path / "lora.safetensors", lora.updates, lora, format="peft")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder", "lora.safetensors"]


def test_a_folder_of_ours_is_replaced(tmp_path: Path) -> None:
    lora = read_lora(write(CASES["g4"], tmp_path).path)
    for _ in range(2):
        write_lora(tmp_path / "out", lora.updates, lora, format="peft")
    assert sorted(os.listdir(tmp_path / "out")) == ["adapter_config.json", "adapter_model.safetensors"]


def folder_seen_while_replaced(folder: Path, times: int) -> int:
    """How often a reader finds the folder's weights gone while another process would replace it."""
    missing, done = 0, threading.Event()

    def watch() -> None:
        nonlocal missing
        while not done.is_set():
            missing += not (folder / "adapter_model.safetensors").exists()

    def write(place: Path) -> None:
        (place / "adapter_model.safetensors").write_bytes(b"x")

    owned = frozenset({"adapter_model.safetensors"})
    save_folder(folder, write, owned)
    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(times):
        save_folder(folder, write, owned)
    done.set()
    watcher.join()
    return missing


def test_a_replaced_folder_is_never_missing(tmp_path: Path) -> None:
    """Both folders change places in one step, where the system has one."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "b.txt").touch()
    if not replacing._swapped(tmp_path / "a", tmp_path / "b"):
        pytest.skip("this file system exchanges no names in one step")
    assert (tmp_path / "a" / "b.txt").exists()
    assert folder_seen_while_replaced(tmp_path / "out", 50) == 0
    assert sorted(os.listdir(tmp_path)) == ["a", "b", "out"]


def test_where_names_cannot_be_exchanged_the_old_folder_comes_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replacing, "_swapped", lambda one, other: False)
    out = tmp_path / "out"
    for content in (b"one", b"two"):
        save_folder(out, lambda place, content=content: (place / "x").write_bytes(content), frozenset({"x"}))  # type: ignore[misc]
    assert (out / "x").read_bytes() == b"two" and os.listdir(tmp_path) == ["out"]
    real = os.rename

    def second_fails(one: Path, other: Path) -> None:
        if other == out and str(one).endswith(".part"):
            raise OSError(errno.EACCES, "Permission denied")
        real(one, other)

    monkeypatch.setattr(replacing.os, "rename", second_fails)
    with pytest.raises(OutputError, match="Permission denied"):
        save_folder(out, lambda place: (place / "x").write_bytes(b"three"), frozenset({"x"}))  # type: ignore[arg-type, return-value]
    assert (out / "x").read_bytes() == b"two" and os.listdir(tmp_path) == ["out"]


def test_larger_elements_come_first_so_that_every_tensor_is_aligned(tmp_path: Path) -> None:
    tensors = {"a": torch.ones(3, dtype=torch.bfloat16), "b": torch.ones(3), "c": torch.ones(1, dtype=torch.float64)}
    path = tmp_path / "x.safetensors"
    save_safetensors(path, {key: Pending.of(value) for key, value in tensors.items()}, {})
    for key, value in load_file(path).items():
        assert torch.equal(value, tensors[key])
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    entries = json.loads(raw[8 : 8 + length])
    assert (8 + length) % 8 == 0
    assert [entries[key]["data_offsets"][0] for key in "cba"] == [0, 8, 20]


def test_text_encoders_that_keep_their_spelling_are_carried_bit_by_bit(tmp_path: Path) -> None:
    """In their own dtype and with their own alpha; others are written anew, the scale inside."""
    stem, old = (
        "lora_te_text_model_encoder_layers_0_mlp_fc1",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
    )
    network = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    same = {
        f"{stem}.lora_down.weight": torch.randn(2, 4).half(),
        f"{stem}.lora_up.weight": torch.randn(5, 2).half(),
        f"{stem}.alpha": torch.tensor(0.7),
    }
    other = {f"{old}.lora_A.weight": torch.ones(1, 4), f"{old}.lora_B.weight": torch.ones(4, 1)}
    pair = {f"{network}.lora_down.weight": torch.ones(3, 4), f"{network}.lora_up.weight": torch.ones(4, 3)}
    save_file(same | other | pair, tmp_path / "in.safetensors")
    lora = read_lora(tmp_path / "in.safetensors")
    result = write_lora(tmp_path / "out.safetensors", lora.updates, lora)
    written = load_file(result.path)
    assert not result.dropped and result.encoders.keys() == same.keys() | other.keys()
    for key, value in same.items():
        assert written[key].dtype == value.dtype and torch.equal(written[key], value)
    new = "lora_te_text_model_encoder_layers_0_self_attn_q_proj"
    assert set(written) == {
        *same,
        *pair,
        f"{network}.alpha",
        *(f"{new}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")),
    }


@pytest.mark.parametrize(
    ("layers", "starts"),
    [
        (("text_encoder",), {"lora_te_"}),
        (("text_encoder", "text_encoder_2"), {"lora_te1_", "lora_te2_"}),
        (("text_encoder", "transformer.layers_of_no_table.0.attn"), {"lora_te1_"}),
    ],
)
def test_kohyas_prefix_counts_the_encoders_of_all_but_stable_diffusion_1(layers, starts, tmp_path: Path) -> None:
    tensors = {}
    for layer in layers:
        name = f"{layer}.text_model.encoder.layers.0.mlp.fc1" if layer.startswith("text") else layer
        tensors |= {f"{name}.lora_A.weight": torch.ones(1, 4), f"{name}.lora_B.weight": torch.ones(4, 1)}
    save_file(tensors, tmp_path / "in.safetensors")
    lora = read_lora(tmp_path / "in.safetensors", dense=True)
    result = write_lora(tmp_path / "out.safetensors", lora.updates, lora, format="kohya")
    assert {re.match("lora_[a-z0-9]+_", key)[0] for key in result.keys} == starts  # type: ignore[index]
