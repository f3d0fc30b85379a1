"""Nothing that is read is replaced: by its own name, through a link, by its folder, from inside its folder."""

import os
from pathlib import Path

import pytest

from loraport.analysis.probe_model import ProbeConfig, probe
from loraport.analysis.probes import KeepDominant
from loraport.conversion import convert
from loraport.errors import LoraportError, OutputError
from loraport.files.disk.protect_inputs import protect_inputs
from loraport.merging import merge
from loraport.transfers.run import transfer
from tests.transfers.models import Family, make_family


def contents(folder: Path) -> dict[str, bytes | str]:
    return {
        str(path): os.readlink(path) if path.is_symlink() else path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_symlink() or path.is_file()
    }


@pytest.mark.parametrize(
    "output", ["in/a.safetensors", "link", "way/a.safetensors", "in", "in/new.safetensors", "hard", "in/../in", "."]
)
def test_an_output_is_no_input_in_any_spelling(tmp_path, monkeypatch, output):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.safetensors").write_bytes(b"precious")
    (tmp_path / "link").symlink_to("in/a.safetensors")
    (tmp_path / "way").symlink_to("in")
    (tmp_path / "hard").hardlink_to(tmp_path / "in" / "a.safetensors")
    monkeypatch.chdir(tmp_path)
    given = (None, "org/name-on-the-hub", "in/a.safetensors", *(["in"] if output != "in" else []))
    with pytest.raises(OutputError, match="an input of this run"):
        protect_inputs(output, given)


@pytest.mark.parametrize("output", ["out.safetensors", "beside/a.safetensors", "IN.safetensors", "dangling"])
def test_other_places_are_fine(tmp_path, monkeypatch, output):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.safetensors").write_bytes(b"precious")
    (tmp_path / "dangling").symlink_to("nowhere")
    monkeypatch.chdir(tmp_path)
    protect_inputs(output, ("in", "in/a.safetensors"))


def commands(family: Family, peft: str) -> dict:
    pair = {"source": family.source, "target": family.target}
    return {
        "convert a folder onto its file": lambda: convert(peft, "comfy", f"{peft}/adapter_model.safetensors"),
        "convert a folder into itself": lambda: convert(peft, "comfy", f"{peft}/new.safetensors"),
        "convert onto the source": lambda: convert(family.lora, "comfy", family.source, source=family.source),
        "merge onto the adapter": lambda: merge(family.source, [f"{family.lora}*0.5"], family.lora),
        "merge onto a folder's file": lambda: merge(family.source, [peft], f"{peft}/adapter_model.safetensors"),
        "merge onto the model": lambda: merge(family.source, [family.lora], family.source),
        "probe onto the source": lambda: probe(
            ProbeConfig(family.target, family.source, family.source, KeepDominant(clusters="drift"))
        ),
        "probe onto the other model": lambda: probe(
            ProbeConfig(family.target, family.source, f"{family.target}/x.safetensors", KeepDominant())
        ),
        "transfer onto the target's file": lambda: transfer(
            family.config(output=f"{family.target}/new.safetensors")
        ),
        "transfer into the cache": lambda: transfer(
            family.config(output="cache/new.safetensors")
        ),
        "transfer onto an accelerator": lambda: transfer(
            family.config(output="lora.safetensors", **{**pair, "target": f"source+{family.lora}"})
        ),
    }  # fmt: skip


@pytest.mark.parametrize("name", commands(Family(Path(), {}, {}, {}, "", "", ""), ""))
def test_no_command_replaces_what_it_reads(tmp_path, name):
    family = make_family(tmp_path)
    peft = str(tmp_path / "peft")
    convert(family.lora, "peft", peft)
    (tmp_path / "cache").mkdir()
    before = contents(tmp_path)
    with pytest.raises(LoraportError):
        commands(family, peft)[name]()
    assert contents(tmp_path) == before


def test_a_merge_through_a_link_fills_the_folder_and_leaves_the_link(tmp_path):
    family = make_family(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "way").symlink_to("empty")
    convert(family.lora, "diffusers", str(tmp_path / "d.safetensors"))
    merge(family.target, [str(tmp_path / "d.safetensors")], str(tmp_path / "way"))
    assert (tmp_path / "way").is_symlink() and list((tmp_path / "empty").iterdir())
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".part")]
