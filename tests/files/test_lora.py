"""Every dialect is read as the updates it holds, and is written as any other without changing them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.files.formats.safetensors_read import read_safetensors
from loraport.files.loaders.facts import facts_of
from loraport.files.loaders.table import verdicts
from loraport.files.lora.read import Lora, read_lora
from loraport.files.lora.write import write_lora
from tests.dialects import CASES, FORMATS, Case, Written, write

FORMAT_NAMES = ["same", *FORMATS]


def assert_same_updates(lora: Lora, written: Written) -> None:
    assert set(lora.layers) == set(written.deltas)
    for layer, wanted in written.deltas.items():
        update = lora.updates[layer]
        got = update.B.double() @ update.A.double()
        assert (got - wanted).norm() <= 1e-6 * wanted.norm(), layer


def file_of(lora: Lora) -> Path:
    return lora.path / "adapter_model.safetensors" if lora.path.is_dir() else lora.path


def assert_nothing_is_lost(lora: Lora) -> None:
    """Each key of the file is read into one layer, or carried, or dropped with a reason."""
    places = [key for layer in lora.layers.values() for key in layer.keys]
    places += [*lora.extras, *(key for key, reason in lora.dropped if reason)]
    assert sorted(places) == sorted(read_safetensors(file_of(lora)).tensors)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_dialect_is_read_as_its_updates(case: Case, tmp_path: Path) -> None:
    written = write(case, tmp_path)
    lora = read_lora(written.path)
    assert_same_updates(lora, written)
    assert_nothing_is_lost(lora)
    assert {name: layer.scale for name, layer in lora.layers.items()} == pytest.approx(written.scales)
    assert lora.dropped == () and lora.extras == {} and lora.unresolved == set()


PAIRS = [(name, "same") for name in CASES] + [
    (name, FORMAT_NAMES[1 + (row + more) % len(FORMATS)]) for row, name in enumerate(CASES) for more in (0, 2)
]
"""Every dialect as its own and as two others, so every format of ten dialects: what is read is one thing by then."""


@pytest.mark.sampled(8)
@pytest.mark.parametrize(("name", "format"), PAIRS)
def test_every_dialect_goes_through_every_format(name: str, format: str, tmp_path: Path) -> None:
    case = CASES[name]
    (tmp_path / "in").mkdir()
    written = write(case, tmp_path / "in")
    lora = read_lora(written.path)
    result = write_lora(tmp_path / "out", lora.updates, lora, format=format, dtype=torch.float32)
    again = read_lora(result.path)
    assert_same_updates(again, written)
    assert_nothing_is_lost(again)
    assert {layer.scale for layer in again.layers.values()} == {1.0}
    assert {update.rank for update in again.updates.values()} == {result.rank}
    if format == "same":
        assert again.dialect == lora.dialect


def test_what_was_taken_off_the_names_is_said(tmp_path: Path) -> None:
    said = {}
    for name in ("in no list", "in no list, flat", "compiled", "diffsynth"):
        (tmp_path / name).mkdir()
        said[name] = " ".join(read_lora(write(CASES[name], tmp_path / name).path).notes)
    assert "'distiller.student.' was taken off" in said["in no list"] and "40 of 40" in said["in no list"]
    assert "'lora_wan_' was taken off" in said["in no list, flat"]
    assert "40 keys hold the names of PyTorch's wrappers (_orig_mod." in said["compiled"]
    assert said["diffsynth"] == ""


def test_no_loader_takes_names_with_wrappers_in_them(tmp_path: Path) -> None:
    case = CASES["g1"]
    for folder, changed in (("plain", case), ("wrapped", replace(case, prefix="transformer._orig_mod."))):
        (tmp_path / folder).mkdir()
        facts = facts_of(read_lora(write(changed, tmp_path / folder).path))
        assert facts is not None
        takes = {one.loader: one.takes for one in verdicts(facts)}
        assert takes["diffusers"] == ("partly" if folder == "plain" else "no")


def test_two_networks_behind_starts_in_no_list_are_not_made_one(tmp_path: Path) -> None:
    case = CASES["g4"]
    tensors = {}
    for start in ("first.", "second."):
        write(replace(case, prefix=start), tmp_path)
        tensors |= load_file(tmp_path / "lora.safetensors")
    save_file(tensors, tmp_path / "lora.safetensors")
    lora = read_lora(tmp_path / "lora.safetensors")
    assert lora.start == "" and lora.dialect.family is None and len(lora.layers) == 40


def test_of_two_adapters_each_has_its_own_text_encoder(tmp_path: Path) -> None:
    tensors = {}
    for number, adapter in enumerate(("one", "two")):
        for layer in ("unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", f"text_encoder.{CLIP_LAYER}"):
            tensors[f"{layer}.lora_A.{adapter}.weight"] = torch.ones(1, 4)
            tensors[f"{layer}.lora_B.{adapter}.weight"] = torch.full((4, 1), number + 1.0)
    save_file(tensors, tmp_path / "in.safetensors")
    for number, adapter in enumerate(("one", "two")):
        lora = read_lora(tmp_path / "in.safetensors", part=adapter)
        assert len(lora.layers) == len(lora.encoders) == 1 and len(lora.notes) == 1, lora.notes
        assert float(lora.encoders[f"text_encoder.{CLIP_LAYER}"].update.B[0, 0]) == number + 1


CLIP_LAYER = "text_model.encoder.layers.0.mlp.fc1"
