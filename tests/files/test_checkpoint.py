"""Checkpoints: every layout gives the same tensors under the same names, and opening one reads headers only."""

from __future__ import annotations

import subprocess
import sys
import time
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from loraport.errors import InputError
from loraport.files.formats.safetensors_read import ByteReader, read_safetensors
from loraport.files.models.checkpoint import open_checkpoint
from tests import tiny
from tests.malformed.checkpoints import safetensors_bytes
from tests.tiny import State

GATED = tiny.tiny_state(gates=True)
PLAIN = tiny.tiny_state()
OTHER = tiny.drifted(PLAIN)


def renamed_folder(folder: Path, state: State) -> Path:
    """A hand-made folder: an index over shards whose names follow no pattern."""
    tiny.write_shards(folder, state, count=2, stem="x")
    for path in sorted(folder.glob("*.safetensors")):
        path.rename(folder / path.name.replace("x-0000", "part").replace("-of-00002", ""))
    index = folder / "x.safetensors.index.json"
    index.write_text(index.read_text().replace("x-0000", "part").replace("-of-00002", ""))
    return folder


def wan_repository(folder: Path, state: State) -> Path:
    """As the makers of Wan publish it: text encoder and VAE as pickles beside the network."""
    folder.mkdir()
    for name in ("models_t5.pth", "Wan2.1_VAE.pth"):
        torch.save({"other": torch.ones(3)}, folder / name)
    return tiny.write_original(folder / "diffusion_pytorch_model.safetensors", state).parent


LAYOUTS: dict[str, tuple[Callable[[Path], Path], str, str]] = {
    # name: (writer, naming, prefix)
    "one file": (lambda p: tiny.write_original(p / "a.safetensors", PLAIN), "original", ""),
    "comfy": (
        lambda p: tiny.write_original(p / "a.safetensors", PLAIN, "model.diffusion_model."),
        "original",
        "model.diffusion_model.",
    ),
    "comfy, short": (
        lambda p: tiny.write_original(p / "a.safetensors", PLAIN, "diffusion_model."),
        "original",
        "diffusion_model.",
    ),
    "krea": (lambda p: tiny.write_original(p / "a.safetensors", PLAIN, "model."), "original", "model."),
    "shards with index": (lambda p: tiny.write_shards(p / "m", PLAIN), "original", ""),
    "shards without index": (lambda p: tiny.write_shards(p / "m", PLAIN, index=False), "original", ""),
    "index file": (lambda p: next(tiny.write_shards(p / "m", PLAIN).glob("*.json")), "original", ""),
    "one shard of three": (
        lambda p: tiny.write_shards(p / "m", PLAIN) / "diffusion_pytorch_model-00002-of-00003.safetensors",
        "original",
        "",
    ),
    "shards of any name": (lambda p: renamed_folder(p / "m", PLAIN), "original", ""),
    "pipeline": (lambda p: tiny.write_diffusers(p / "m", PLAIN), "diffusers", ""),
    "pipeline, shards": (lambda p: tiny.write_diffusers(p / "m", PLAIN, shards=3), "diffusers", ""),
    "pipeline, no index": (lambda p: tiny.write_diffusers(p / "m", PLAIN, shards=2, index=False), "diffusers", ""),
    "transformer folder": (lambda p: tiny.write_diffusers(p / "m", PLAIN) / "transformer", "diffusers", ""),
    "repository of Wan": (lambda p: wan_repository(p / "m", PLAIN), "original", ""),
    "pickle, EMA first": (
        lambda p: tiny.write_pickle(p / "a.pt", {"generator": OTHER, "generator_ema": PLAIN, "critic": OTHER}),
        "original",
        "model.",
    ),
    "pickle, one part": (
        lambda p: tiny.write_pickle(p / "a.pt", {"generator": PLAIN, "critic": OTHER}, wrapped=False),
        "original",
        "model.",
    ),
    "pickle in a folder": (
        lambda p: tiny.write_pickle(p / "a.ckpt", {"state_dict": PLAIN}).parent,
        "original",
        "model.",
    ),
}


@pytest.fixture(params=LAYOUTS)
def layout(request, tmp_path):
    write, naming, prefix = LAYOUTS[request.param]
    return write(tmp_path), naming, prefix


def test_every_layout_gives_the_same_model(layout):
    where, naming, prefix = layout
    model = open_checkpoint(str(where))
    assert set(model) == set(PLAIN) == set(model.names())
    assert (model.naming, model.prefix, model.extra) == (naming, prefix, ())
    for name, tensor in PLAIN.items():
        assert model.shape(name) == tuple(tensor.shape)
        assert model.dtype(name) == tensor.dtype
        assert torch.equal(model.tensor(name), tensor)
    assert model.bytes == sum(tensor.nbytes for tensor in PLAIN.values())


def test_fingerprints_do_not_depend_on_the_layout(layout, tmp_path):
    plain = open_checkpoint(tiny.write_original(tmp_path / "plain.safetensors", PLAIN))
    model = open_checkpoint(layout[0])
    assert [model.fingerprint(name) for name in PLAIN] == [plain.fingerprint(name) for name in PLAIN]


def test_a_layer_of_a_fused_weight_reads_its_own_rows_alone(tmp_path, monkeypatch):
    W = torch.randn(12, 5)
    save_file({"double_blocks.0.img_attn_qkv.weight": W}, tmp_path / "model.safetensors")
    model = open_checkpoint(tmp_path / "model.safetensors")
    read, fill = [], ByteReader._fill
    monkeypatch.setattr(ByteReader, "_fill", lambda self, file, view: (read.append(len(view)), fill(self, file, view)))
    parts = [model.read(layer) for layer in model.layers]
    assert torch.equal(torch.cat([part.matrix for part in parts]), W) and len(parts) == 3
    assert sum(read) == W.nbytes, "every byte once"
    for part in parts:
        save_file({"x.weight": part.matrix}, tmp_path / "alone.safetensors")
        alone = open_checkpoint(tmp_path / "alone.safetensors")
        assert alone.fingerprint("x.weight") == alone.read("x").fingerprint == part.fingerprint


def test_gates_of_sparse_attention_are_there_and_harmless(tmp_path):
    model = open_checkpoint(tiny.write_diffusers(tmp_path / "fastwan", GATED, shards=2))
    assert set(model) == set(GATED)
    assert torch.equal(model.tensor("blocks.1.to_gate_compress.weight"), GATED["blocks.1.to_gate_compress.weight"])
    assert "blocks.1.to_gate_compress" in model.layers


def test_names_outside_the_table_are_kept_and_reported(tmp_path):
    state = {
        **PLAIN,
        "_cls_pred_branch.0.weight": torch.ones(2, 2),
        "extra_blocks.0.after_proj.weight": torch.ones(2, 2),
    }
    model = open_checkpoint(tiny.write_original(tmp_path / "a.safetensors", state, "model."))
    assert set(model.extra) == set(state) - set(PLAIN)
    assert torch.equal(model.tensor("_cls_pred_branch.0.weight"), torch.ones(2, 2))


def test_another_family_keeps_its_names(tmp_path):
    state = {f"down.{i}.attn.to_q.weight": torch.ones(2, 2) * i for i in range(8)}
    model = open_checkpoint(tiny.write_original(tmp_path / "a.safetensors", state, "model.diffusion_model."))
    assert (model.naming, set(model)) == ("unknown", set(state))
    assert set(model.extra) == set(state)


def test_a_part_can_be_chosen(tmp_path):
    path = tiny.write_pickle(tmp_path / "a.pt", {"generator": OTHER, "generator_ema": PLAIN, "critic": PLAIN})
    assert open_checkpoint(path).part == "generator_ema"
    model = open_checkpoint(path, part="generator")
    assert model.part == "generator"
    assert torch.equal(model.tensor("blocks.0.ffn.0.weight"), OTHER["blocks.0.ffn.0.weight"])
    with pytest.raises(InputError, match="has no part 'student'; its parts: generator, generator_ema, critic"):
        open_checkpoint(path, part="student")


def test_an_expert_can_be_named_either_way(tmp_path):
    tiny.write_diffusers(tmp_path / "m", PLAIN)
    tiny.write_diffusers(tmp_path / "m", OTHER, inner="transformer_2")
    for model in (open_checkpoint(tmp_path / "m", part="transformer_2"), open_checkpoint(tmp_path / "m/transformer_2")):
        assert torch.equal(model.tensor("head.head.weight"), OTHER["head.head.weight"])


def test_old_pickles_without_a_zip_are_read_too(tmp_path):
    torch.save({"state_dict": PLAIN}, tmp_path / "old.ckpt", _use_new_zipfile_serialization=False)
    model = open_checkpoint(tmp_path / "old.ckpt")
    assert all(torch.equal(model.tensor(name), tensor) for name, tensor in PLAIN.items())


def test_attributes_of_a_pickled_table_or_tensor_are_never_called(tmp_path):
    table = OrderedDict(PLAIN)
    parameter = torch.nn.Parameter(PLAIN["head.head.weight"])
    for thing, names in ((table, ("values", "keys", "get")), (parameter, ("detach", "clone", "untyped_storage"))):
        for name in names:
            setattr(thing, name, 5)
    table["head.head.weight"] = parameter
    torch.save({"model": table}, tmp_path / "odd.pt")
    model = open_checkpoint(tmp_path / "odd.pt")
    assert all(torch.equal(model.tensor(name), tensor) for name, tensor in PLAIN.items())


def test_an_archive_packed_anew_without_compression_is_the_same_file(tmp_path):
    torch.save(PLAIN, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as before, zipfile.ZipFile(tmp_path / "b.pt", "w") as after:
        for name in sorted(before.namelist(), reverse=True):
            after.writestr(name, before.read(name))
    model = open_checkpoint(tmp_path / "b.pt")
    assert all(torch.equal(model.tensor(name), tensor) for name, tensor in PLAIN.items())


def test_what_a_real_model_saves_is_what_is_read(tmp_path):
    diffusers = pytest.importorskip("diffusers")
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=tiny.CHANNELS,
        out_channels=tiny.CHANNELS,
        text_dim=tiny.TEXT,
        freq_dim=tiny.FREQUENCIES,
        ffn_dim=tiny.FFN,
        num_layers=2,
        rope_max_seq_len=16,
    )
    network.save_pretrained(tmp_path / "transformer", max_shard_size="30KB")
    assert len(list((tmp_path / "transformer").glob("*.safetensors"))) > 1
    model = open_checkpoint(tmp_path)
    real = network.state_dict()
    assert {model.key(name) for name in model} == set(real)
    assert all(torch.equal(model.tensor(name), real[model.key(name)]) for name in model)
    assert set(model) == set(PLAIN)
    assert {name: model.shape(name) for name in model} == tiny.tiny_shapes()


def test_layers_are_those_with_a_matrix(tmp_path):
    model = open_checkpoint(tiny.write_original(tmp_path / "a.safetensors", PLAIN))
    assert set(model.layers) == {
        name.removesuffix(".weight") for name, t in PLAIN.items() if name.endswith(".weight") and t.dim() > 1
    }
    assert "patch_embedding" in model.layers
    assert "blocks.0.norm3" not in model.layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_a_weight_is_a_float32_matrix_whatever_is_stored(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in PLAIN.items()}
    model = open_checkpoint(tiny.write_original(tmp_path / "a.safetensors", state))
    for layer in model.layers:
        W = model.read_weight(layer)
        assert W.dtype == torch.float32
        assert torch.equal(W, state[f"{layer}.weight"].float().flatten(1))
        again = model.read(layer)
        assert torch.equal(again.matrix, W)
        assert again.fingerprint == model.fingerprint(f"{layer}.weight")
        assert model.dtype(f"{layer}.weight") == model.tensor(f"{layer}.weight").dtype == dtype


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_not_finite_is_named_when_it_is_used(tmp_path, value):
    state = {name: tensor.clone() for name, tensor in PLAIN.items()}
    state["blocks.1.ffn.2.weight"][3, 4] = value
    model = open_checkpoint(tiny.write_original(tmp_path / "bad.safetensors", state))
    model.read_weight("blocks.0.ffn.2")
    with pytest.raises(InputError, match=r"bad\.safetensors.*blocks\.1\.ffn\.2.*NaN or infinite"):
        model.read_weight("blocks.1.ffn.2")


def test_an_absent_layer_is_named(tmp_path):
    model = open_checkpoint(tiny.write_original(tmp_path / "a.safetensors", PLAIN))
    with pytest.raises(InputError, match=r"a\.safetensors has no parameter 'blocks\.7\.ffn\.0\.weight'"):
        model.read_weight("blocks.7.ffn.0")
    with pytest.raises(InputError, match=r"blocks\.0\.norm3 has no matrix"):
        model.read_weight("blocks.0.norm3")


def test_tensors_are_fresh_memory(tmp_path):
    for path in (
        tiny.write_original(tmp_path / "a.safetensors", PLAIN),
        tiny.write_pickle(tmp_path / "a.pt", {"generator": PLAIN}),
    ):
        model = open_checkpoint(path)
        model.tensor("head.head.weight").zero_()
        assert torch.equal(model.tensor("head.head.weight"), PLAIN["head.head.weight"])


def test_a_file_that_shrinks_or_vanishes_is_named(tmp_path):
    path = tiny.write_original(tmp_path / "a.safetensors", PLAIN)
    model = open_checkpoint(path)
    path.write_bytes(path.read_bytes()[:9000])
    with pytest.raises(InputError, match=r"a\.safetensors was replaced while it was read; start again"):
        [model.tensor(name) for name in model]
    path.unlink()
    with pytest.raises(InputError, match=r"a\.safetensors cannot be read: No such file"):
        model.tensor("head.head.weight")


def test_fingerprints_see_values_dtype_and_shape(tmp_path):
    W = torch.arange(12.0).reshape(3, 4)
    flipped = W.clone()
    flipped[0, 0] = -0.0
    kinds = {"a": W, "b": W.clone().reshape(4, 3), "c": W.clone().view(torch.int32), "d": flipped, "e": W.clone()}
    save_file(kinds, tmp_path / "a.safetensors")
    model = open_checkpoint(tmp_path / "a.safetensors")
    assert model.fingerprint("a") == model.fingerprint("e")
    assert len({model.fingerprint(name) for name in kinds}) == 4


def test_identity_follows_headers_and_sizes_only(tmp_path):
    same = [
        open_checkpoint(tiny.write_original(tmp_path / f"{i}.safetensors", s)) for i, s in enumerate((PLAIN, OTHER))
    ]
    assert same[0].identity() == same[1].identity()
    assert same[0].fingerprint("head.head.weight") != same[1].fingerprint("head.head.weight")
    gated = open_checkpoint(tiny.write_original(tmp_path / "g.safetensors", GATED))
    half = open_checkpoint(tiny.write_original(tmp_path / "h.safetensors", {n: t.half() for n, t in PLAIN.items()}))
    assert len({same[0].identity(), gated.identity(), half.identity()}) == 3


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(
        st.text("abc._é", min_size=1, max_size=6),
        st.tuples(
            st.lists(st.integers(0, 3), max_size=4),
            st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.bool]),
        ),
        min_size=1,
        max_size=6,
    )
)
def test_plain_reads_equal_what_the_library_wrote(tmp_path_factory, kinds):
    path = tmp_path_factory.mktemp("any") / "a.safetensors"
    generator = torch.Generator().manual_seed(0)
    state = {key: (torch.randn(shape, generator=generator) * 3).to(dtype) for key, (shape, dtype) in kinds.items()}
    save_file(state, path)
    file = read_safetensors(path)
    assert file.tensors.keys() == state.keys()
    for key, tensor in state.items():
        read = file.tensors[key].read()
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(read, tensor)


def sparse_model(path: Path, layers: int, size: int) -> Path:
    """A file of any apparent size with a valid header and holes for data."""
    header = {}
    for number in range(layers):
        header[f"blocks.{number}.self_attn.q.weight"] = {
            "dtype": "F32",
            "shape": [size, size],
            "data_offsets": [number * size * size * 4, (number + 1) * size * size * 4],
        }
    raw = safetensors_bytes(header)
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(len(raw) + layers * size * size * 4)
    return path


MEASURE = """
import resource, sys, time
import torch  # the program imports it with the first weight that it reads
from loraport.files.formats.safetensors_read import ByteReader
from loraport.files.models.checkpoint import open_checkpoint
def read(): return int(next(l for l in open("/proc/self/io") if l.startswith("rchar")).split()[1])
def rss(): return int(next(l for l in open("/proc/self/status") if l.startswith("VmRSS")).split()[1]) * 1024
before, memory, start = read(), rss(), time.perf_counter()
model = open_checkpoint(sys.argv[1])
model.identity(), model.shape(model.names()[-1]), model.layers, model.bytes
print(read() - before, rss() - memory, time.perf_counter() - start)
high = []
for layer in model.layers[:int(sys.argv[2])]:
    model.tensor(layer + ".weight").sum()
    high.append(rss() - memory)
print(max(high) if high else 0)
"""


def measured(path: Path, layers: int) -> tuple[int, int, float, int]:
    """(bytes read on opening, growth of memory, seconds, growth while reading some layers), in its own process."""
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path), str(layers)], capture_output=True, text=True, check=True
    )
    first, second = done.stdout.splitlines()
    count, grown, seconds = first.split()
    return int(count), int(grown), float(seconds), int(second)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes through Linux's /proc")
def test_opening_57_gigabytes_reads_the_header_only(tmp_path):
    path = sparse_model(tmp_path / "huge.safetensors", layers=560, size=5120)
    assert path.stat().st_size > 57e9
    count, grown, seconds, _ = measured(path, 0)
    assert count < 4e6
    assert grown < 32e6
    assert seconds < 10


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="measures memory through Linux's /proc")
def test_memory_stays_flat_over_many_layers(tmp_path):
    path = sparse_model(tmp_path / "large.safetensors", layers=40, size=1024)
    *_, peak = measured(path, 40)
    assert peak < 60e6, "40 layers of 4 MiB pass through; a handful of them may be in memory at once"


@pytest.mark.slow
def test_opening_a_pickle_maps_it(tmp_path):
    torch.save(
        {"generator": {f"blocks.{i}.ffn.0.weight": torch.zeros(1024, 4096) for i in range(6)}}, tmp_path / "a.pt"
    )
    start = time.perf_counter()
    model = open_checkpoint(tmp_path / "a.pt")
    assert model.bytes == 6 * 16 * 2**20
    assert time.perf_counter() - start < 1
    if Path("/proc/self/io").exists():
        count, grown, _, _ = measured(tmp_path / "a.pt", 0)
        assert count < 8e6
        assert grown < 40e6
