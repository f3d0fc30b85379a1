"""Which files a place means, by what people have in their folders: sets of shards, indexes, and files of no weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from loraport.errors import InputError
from loraport.files.inspect import describe
from loraport.files.models.checkpoint import open_checkpoint
from loraport.merging import merge
from tests import tiny
from tests.tiny import State

STATE = tiny.tiny_state()
OLD = tiny.drifted(STATE, seed=5)
WIDE = tiny.tiny_state(dim=32, ffn=64)


def _in_blocks(state: State) -> list[State]:
    """The halves of a model, a block each."""
    return [{name: tensor for name, tensor in state.items() if ("blocks.1." in name) == bool(half)} for half in (0, 1)]


def _write(path: Path, state: State) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".gguf":
        tiny.write_gguf(path, state, "F32")
    elif path.suffix.lower() in (".bin", ".pt"):
        torch.save(state, path)
    else:
        tiny.write_original(path, state)


def shards(*names: str, index: str = "", before: str = "", state: State = STATE) -> Callable[[Path], Path]:
    """A folder `m` with the model in two files of these names, and an index where one is named."""

    def write(folder: Path) -> Path:
        table = {}
        for name, half in zip(names, _in_blocks(state), strict=True):
            _write(folder / "m" / name, half)
            table |= dict.fromkeys(half, before + name)
        if index:
            (folder / "m" / index).write_text(json.dumps({"metadata": {}, "weight_map": table}))
        return folder / "m"

    return write


def both(*writers: Callable[[Path], Path]) -> Callable[[Path], Path]:
    """Several things in one folder."""
    return lambda folder: [write(folder) for write in writers][-1]


def file(name: str, state: State | None = STATE) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        if state is None:
            (folder / "m").mkdir(exist_ok=True)
            (folder / "m" / name).write_bytes(b"\0\5\26\7" + bytes(64))
        else:
            _write(folder / "m" / name, state)
        return folder / "m"

    return write


def named(write: Callable[[Path], Path], name: str) -> Callable[[Path], Path]:
    return lambda folder: write(folder) / name


def _cached(folder: Path) -> Path:
    top = folder / "models--someone--wan"
    for commit, state in (("b" * 40, OLD), ("c" * 40, STATE)):
        _write(top / "snapshots" / commit / "transformer" / "a.safetensors", state)
    (top / "refs").mkdir()
    (top / "refs/main").write_text("c" * 40)
    return top


ONE_OF_TWO = "a-00001-of-00002.safetensors", "a-00002-of-00002.safetensors"
FOUND: dict[str, Callable[[Path], Path]] = {
    "bin shards": shards("m-00001-of-00002.bin", "m-00002-of-00002.bin"),
    "bin shards, index": shards("m-00001-of-00002.bin", "m-00002-of-00002.bin", index="m.bin.index.json"),
    "variant before the number": shards(
        "m.fp16-00001-of-00002.safetensors", "m.fp16-00002-of-00002.safetensors", index="m.safetensors.index.fp16.json"
    ),
    "variant after the number": shards(
        "m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors", index="m.safetensors.index.fp16.json"
    ),
    "variant, no index": shards("m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors"),
    "short numbers, underscores": shards("m_part_1-of-2.safetensors", "m_part_2-of-2.safetensors"),
    "from zero": shards("m-00000-of-00002.safetensors", "m-00001-of-00002.safetensors"),
    "numbers joined by underscores": shards("m_00001_of_00002.safetensors", "m_00002_of_00002.safetensors"),
    "all in upper case": shards("M-00001-OF-00002.SAFETENSORS", "M-00002-OF-00002.SAFETENSORS"),
    "upper case": shards("M-00001-of-00002.SAFETENSORS", "M-00002-of-00002.SAFETENSORS"),
    "one file in upper case": file("MODEL.SAFETENSORS"),
    "a file a block": both(
        file("block_0.safetensors", {k: t for k, t in STATE.items() if k.startswith("blocks.0.")}),
        file("block_1.safetensors", {k: t for k, t in STATE.items() if k.startswith("blocks.1.")}),
        file("non_block.safetensors", {k: t for k, t in STATE.items() if not k.startswith("blocks.")}),
    ),
    "one shard of a variant": named(
        shards("m-00001-of-00002.fp16.safetensors", "m-00002-of-00002.fp16.safetensors"),
        "m-00002-of-00002.fp16.safetensors",
    ),
    "one shard of .bin": named(shards("m-00001-of-00002.bin", "m-00002-of-00002.bin"), "m-00001-of-00002.bin"),
    "one file of an index": named(
        shards("x.safetensors", "y.safetensors", index="z.safetensors.index.json"), "y.safetensors"
    ),
    "an index chooses": both(
        shards("a-00001-of-00003.safetensors", "a-00003-of-00003.safetensors", state=OLD),
        shards(*ONE_OF_TWO, index="a.safetensors.index.json"),
    ),
    "a broken set beside a whole one": both(file("a-00001-of-00003.safetensors", OLD), shards(*ONE_OF_TWO)),
    "dots in an index": shards(*ONE_OF_TWO, index="a.safetensors.index.json", before="./"),
    "macOS": both(
        shards(*ONE_OF_TWO, index="a.safetensors.index.json"),
        *(file(f"._{name}", None) for name in (*ONE_OF_TWO, "a.safetensors.index.json")),
    ),
    "what a trainer leaves": both(
        file("pytorch_model.bin"), file("optimizer.bin", OLD), file("scheduler.bin", OLD), file("rng_state_0.pth", None)
    ),
    "pipeline of .bin": both(
        file("model_index.json", None), file("unet/diffusion_pytorch_model.bin"), file("t5.pth", None)
    ),
    "pipeline of shards of .bin": shards("transformer/m-00001-of-00002.bin", "transformer/m-00002-of-00002.bin"),
    "top of the cache": _cached,
}


@pytest.mark.parametrize("what", FOUND)
def test_every_layout_is_the_whole_model(what, tmp_path):
    model = open_checkpoint(FOUND[what](tmp_path))
    assert set(model) == set(STATE)
    assert all(torch.equal(model.tensor(name), tensor) for name, tensor in STATE.items())


def test_split_gguf_is_one_model_and_a_part_is_none(tmp_path):
    place = shards("w-F32-00001-of-00002.gguf", "w-F32-00002-of-00002.gguf", state=WIDE)(tmp_path)
    model = open_checkpoint(place)
    assert all(torch.equal(model.tensor(name), tensor) for name, tensor in WIDE.items())
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(str(tmp_path / "renamed.gguf"), "wan")
    writer.add_uint16("split.count", 2)
    writer.add_tensor("blocks.0.ffn.0.weight", WIDE["blocks.0.ffn.0.weight"].numpy())
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    with pytest.raises(InputError, match=r"renamed\.gguf says that it is one of 2 parts of a model, and 1 are here"):
        open_checkpoint(tmp_path / "renamed.gguf")


REFUSED: dict[str, tuple[Callable[[Path], Path], str]] = {
    "two whole sets": (
        both(shards(*ONE_OF_TWO, state=OLD), *(file(f"a-0000{n}-of-00003.safetensors") for n in (1, 2, 3))),
        r"several models: a-\*-of-00002\.safetensors, a-\*-of-00003\.safetensors; leave one of these sets",
    ),
    "two broken sets": (
        both(file("a-00001-of-00002.safetensors"), file("a-00001-of-00003.safetensors")),
        "several models: a-.*-of-00002.*leave one of these sets",
    ),
    "a shard alone": (named(file("a-00001-of-00002.bin"), "a-00001-of-00002.bin"), "lacks 1 of 2 shards: a-00002-of"),
    "a block missing": (
        both(file("block_0.safetensors"), file("block_2.safetensors"), file("non_block.safetensors")),
        r"lacks 1 of 4 shards: block_1\.safetensors",
    ),
    "a stale index": (
        both(
            shards(*ONE_OF_TWO, index="a.safetensors.index.json", state=OLD),
            lambda folder: [(folder / "m" / name).unlink() for name in ONE_OF_TWO] and folder / "m",
            *(file(f"a-0000{n}-of-00003.safetensors") for n in (1, 2, 3)),
        ),
        r"not there: .*; a-\*-of-00003\.safetensors beside it is whole: remove the index",
    ),
    "an index of .bin that names a safetensors file": (
        shards("a.safetensors", "b.safetensors", index="a.bin.index.json"),
        "several models",
    ),
    "a distributed checkpoint": (
        both(file(".metadata", None), file("__0_0.distcp", None)),
        "format_utils dcp_to_torch .*/m model.pt",
    ),
    "only what macOS left": (file("._a.safetensors", None), "has no weights"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_never_a_part_of_a_model(what, tmp_path):
    write, message = REFUSED[what]
    with pytest.raises(InputError, match=message):
        open_checkpoint(write(tmp_path))


def test_what_is_passed_over_is_said(tmp_path):
    place = both(file("base.safetensors"), file("student.pt", OLD), file("Wan2.1_VAE.pth", OLD))(tmp_path)
    [note] = open_checkpoint(place).notes
    assert "base.safetensors is read, and not student.pt beside it" in note
    facts = describe(str(place))
    assert (facts["read"], facts["notes"]) == (["base.safetensors"], [note])
    broken = both(file("a-00001-of-00003.safetensors", OLD), shards(*ONE_OF_TWO))(tmp_path / "b")
    [note] = open_checkpoint(broken).notes
    assert "a-*-of-00003.safetensors lacks 2 of 3 files and is left alone" in note
    assert open_checkpoint(shards(*ONE_OF_TWO)(tmp_path / "c")).notes == ()


def test_a_file_is_read_by_what_it_is(tmp_path):
    tiny.write_original(tmp_path / "a.safetensors", STATE)
    shutil.copy(tmp_path / "a.safetensors", tmp_path / "a.ckpt")
    model = open_checkpoint(tmp_path / "a.ckpt")
    assert all(torch.equal(model.tensor(name), tensor) for name, tensor in STATE.items())
    assert "is a .safetensors file by what is in it" in model.notes[0]


def test_a_merge_of_pickled_shards_has_an_index_of_its_own(tmp_path):
    place = shards("m-00001-of-00002.bin", "m-00002-of-00002.bin", index="m.bin.index.json")(tmp_path)
    lora = tiny.write_lora(tmp_path / "l.safetensors", tiny.lora_factors(STATE))
    merge(str(place), [str(lora)], str(tmp_path / "out"))
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "m-00001-of-00002.safetensors",
        "m-00002-of-00002.safetensors",
        "m.safetensors.index.json",
    ]
    merged = open_checkpoint(tmp_path / "out")
    assert torch.equal(merged.tensor("head.head.bias"), STATE["head.head.bias"])
    assert not torch.equal(merged.tensor("blocks.1.ffn.0.weight"), STATE["blocks.1.ffn.0.weight"])
