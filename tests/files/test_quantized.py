"""fp8 and GGUF: every layout gives the values that its makers mean, lazily, with the rounding that it cost."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from loraport.errors import InputError
from loraport.files.formats.gguf import CODES, read_gguf
from loraport.files.inspect import describe
from loraport.files.models.checkpoint import open_checkpoint
from tests import tiny

STATE = tiny.tiny_state(dim=32, ffn=64)
LAYERS = [name.removesuffix(".weight") for name, W in STATE.items() if "blocks" in name and W.dim() == 2]
FP8 = [(layout, dtype) for layout in tiny.FP8_LAYOUTS for dtype in (torch.float8_e4m3fn, torch.float8_e5m2)]
GGUF = {"Q8_0": 0.006, "Q5_1": 0.04, "Q4_0": 0.09, "BF16": 0.002, "F16": 0.0003}


def meant(tensors: tiny.State, layer: str, layout: str) -> torch.Tensor:
    """q · scale, entry by entry, in float64."""
    q = tensors[f"{layer}.weight"].double()
    scale = tensors.get(f"{layer}.scale_weight", tensors.get(f"{layer}.weight_scale", torch.ones(()))).double()
    W = torch.empty_like(q)
    for i in range(q.shape[0]):
        for j in range(q.shape[1]):
            block = j // (q.shape[1] // scale.shape[1]) if layout == "musubi" else 0
            at = {0: (), 2: (i, 0), 3: (i, block, 0)}[scale.dim()]
            W[i, j] = q[i, j] * scale[at]
    return W


@pytest.mark.parametrize(("layout", "dtype"), FP8)
def test_fp8_is_read_as_it_is_meant(tmp_path, layout, dtype):
    path = tiny.write_fp8(tmp_path / "m.safetensors", STATE, layout, dtype, prefix="model.diffusion_model.")
    tensors, _ = tiny.in_fp8(STATE, layout, dtype)
    model = open_checkpoint(path)
    assert set(model) == set(STATE) and model.extra == () and model.naming == "original"
    for layer in LAYERS[::7]:
        W = model.read_weight(layer)
        assert torch.allclose(W.double(), meant(tensors, layer, layout), rtol=1e-6, atol=0)
        assert model.shape(f"{layer}.weight") == tuple(W.shape) and model.dtype(f"{layer}.weight") == W.dtype
        assert model.format(f"{layer}.weight").startswith("fp8_e4m3fn" if "e4m3" in str(dtype) else "fp8_e5m2")
    assert len(model.quantized) == 1 and model.format("head.head.bias") in ("float32", "bfloat16")


@pytest.mark.parametrize(("layout", "dtype"), FP8)
def test_the_rounding_of_fp8_is_found_from_the_stored_values(tmp_path, layout, dtype):
    """On wide layers: where few values share a scale, the largest of them fits exactly, and that is not foreseen."""
    state = {name: W for name, W in tiny.tiny_state(dim=256, ffn=512, blocks=1).items() if "ffn" in name}
    model = open_checkpoint(tiny.write_fp8(tmp_path / "m.safetensors", state, layout, dtype))
    expected, actual = 0.0, 0.0
    for layer in ("blocks.0.ffn.0", "blocks.0.ffn.2"):
        weight = model.read(layer)
        expected += weight.rounding**2
        actual += float((weight.matrix - state[f"{layer}.weight"]).square().sum())
    assert math.isclose(expected, actual, rel_tol=0.1)


def test_another_scale_is_another_content(tmp_path):
    tensors, _ = tiny.in_fp8(STATE, "lightx2v")
    key = f"{LAYERS[0]}.weight_scale"
    models = []
    for number, change in enumerate((1.0, 1.0, 1.5)):
        changed = {**tensors, key: tensors[key] * change}
        models.append(open_checkpoint(tiny.write_original(tmp_path / f"{number}.safetensors", changed)))
    prints = [[model.read(layer).fingerprint for layer in LAYERS] for model in models]
    assert prints[0] == prints[1] and prints[0][0] != prints[2][0] and prints[0][1:] == prints[2][1:]
    assert prints[0][0] == models[0].fingerprint(f"{LAYERS[0]}.weight")


def test_equal_values_have_equal_content_however_they_are_stored(tmp_path):
    model = open_checkpoint(tiny.write_fp8(tmp_path / "a.safetensors", STATE, "comfy, older"))
    wide = {name: model.tensor(name) for name in model}
    same = open_checkpoint(tiny.write_original(tmp_path / "b.safetensors", wide))
    assert [model.read(layer).fingerprint for layer in LAYERS] == [same.read(layer).fingerprint for layer in LAYERS]


def test_fp8_in_shards_and_in_pickles(tmp_path):
    tensors, _ = tiny.in_fp8(STATE, "comfy, older")
    alone = open_checkpoint(tiny.write_original(tmp_path / "m.safetensors", tensors))
    shards = open_checkpoint(tiny.write_shards(tmp_path / "shards", tensors))  # scales lie in other shards
    pickled = open_checkpoint(tiny.write_pickle(tmp_path / "m.pt", {"generator": tensors}, wrapped=False))
    for layer in LAYERS[:3]:
        W = alone.read_weight(layer)
        assert torch.equal(shards.read_weight(layer), W) and torch.equal(pickled.read_weight(layer), W)


@pytest.mark.parametrize("bad", [float("nan"), 0.0, -1.0])
def test_a_scale_that_is_none_is_named_when_it_is_used(tmp_path, bad):
    tensors, _ = tiny.in_fp8(STATE, "comfy, older")
    tensors[f"{LAYERS[1]}.scale_weight"] = torch.tensor(bad)
    model = open_checkpoint(tiny.write_original(tmp_path / "m.safetensors", tensors))
    model.read_weight(LAYERS[0])
    with pytest.raises(InputError, match=r"m\.safetensors: .*scale_weight.* not valid scales of"):
        model.read_weight(LAYERS[1])


@pytest.mark.parametrize("kind", GGUF)
def test_gguf_is_read_as_the_package_means_it(tmp_path, kind):
    gguf = pytest.importorskip("gguf")
    path = tiny.write_gguf(tmp_path / "m.gguf", STATE, kind)
    model = open_checkpoint(path)
    assert {name: model.shape(name) for name in model} == {name: tuple(W.shape) for name, W in STATE.items()}
    by_name = {tensor.name: tensor for tensor in gguf.GGUFReader(path).tensors}
    expected, actual = 0.0, 0.0
    for layer in LAYERS:
        name = f"{layer}.weight"
        weight = model.read(layer)
        wanted = gguf.quants.dequantize(by_name[name].data, by_name[name].tensor_type).reshape(STATE[name].shape)
        assert np.array_equal(weight.matrix.numpy(), wanted)
        expected += weight.rounding**2
        actual += float((weight.matrix - STATE[name]).square().sum())
    size = math.sqrt(actual / sum(float(STATE[f"{layer}.weight"].square().sum()) for layer in LAYERS))
    assert size < GGUF[kind] < 3 * size
    # Q4_0 and Q5_1 cut off what lies beyond their last level: rounding alone is a little less
    assert math.isclose(expected, actual, rel_tol=0.25 if kind.startswith("Q4") else 0.1)
    assert torch.equal(model.tensor("head.head.weight"), STATE["head.head.weight"])


@pytest.mark.parametrize("kind", CODES)
def test_the_step_of_every_gguf_type_is_that_of_its_own_grid(tmp_path, kind):
    """In blocks of random bits: the values of one group are whole steps apart, and steps are of the right size."""
    gguf = pytest.importorskip("gguf")
    type_ = gguf.GGMLQuantizationType[kind]
    size, width = gguf.GGML_QUANT_SIZES[type_]
    blocks = np.random.default_rng(0).integers(0, 256, (12, width), dtype=np.uint8)
    scales = {"Q2_K": (80, 84), "Q3_K": (108, 110), "Q6_K": (208, 210), "Q4_K": (0, 4), "Q5_K": (0, 4)}
    first, last = scales.get(kind, (0, 4 if kind.endswith("_1") else 2))
    blocks[:, first:last] = np.full((12, (last - first) // 2), 0.01, np.float16).view(np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "wan")
    writer.add_tensor("x.weight", blocks, raw_dtype=type_)
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    stored, _ = read_gguf(tmp_path / "m.gguf")
    values, steps = (X.double().view(-1, 16) for X in stored["x.weight"].quantization.read())
    assert values.numel() == 12 * size
    live = steps[:, 0] > 0
    assert live.sum() > 0.8 * len(live)
    values, steps = values[live], steps[live]
    assert torch.allclose(steps, steps[:, :1].expand_as(steps), rtol=1e-3), "one step a group of sixteen"
    apart = (values - values[:, :1]) / steps
    assert torch.allclose(apart, apart.round(), atol=2e-2)
    most = {"2": 3, "3": 7, "4": 15, "5": 31, "6": 63, "8": 255}[kind[1]]
    assert (
        0.5 * most < float(apart.max() - apart.min())
        and float((values.amax(1) - values.amin(1)).sub(most * steps[:, 0]).max()) < 1e-6
    )


def test_a_reshaped_gguf_tensor_gets_its_shape_back(tmp_path):
    name = f"{LAYERS[0]}.weight"
    out, inn = STATE[name].shape
    model = open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", STATE, notes={name: [out, inn // 4, 2, 2]}))
    assert model.shape(name) == (out, inn // 4, 2, 2) and tuple(model.read_weight(LAYERS[0]).shape) == (out, inn)


def test_gguf_alone_in_a_folder_is_found_and_described(tmp_path):
    tiny.write_gguf(tmp_path / "m.gguf", STATE)
    facts = describe(str(tmp_path))
    assert facts["dtypes"] == {"GGUF Q8_0": len(LAYERS), "float32": len(STATE) - len(LAYERS)}
    assert facts["naming"] == "original" and facts["extra"] == []


def test_without_the_package_the_message_says_what_to_install(tmp_path, monkeypatch):
    path = tiny.write_gguf(tmp_path / "m.gguf", STATE)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(InputError, match=r"m\.gguf is a GGUF file; to read it: pip install 'loraport\[gguf\]'"):
        open_checkpoint(path)


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="counts bytes through Linux's /proc")
def test_a_convolution_with_outputs_and_inputs_in_one_dimension_has_its_kernel_back(tmp_path):
    """GGUF holds four dimensions: a 3-D convolution is (out · in) × t × h × w there, and its bias tells the outputs."""
    name, W = "patch_embedding.weight", STATE["patch_embedding.weight"]
    folded = {**STATE, name: W.flatten(0, 1)}
    model = open_checkpoint(tiny.write_gguf(tmp_path / "m.gguf", folded))
    assert model.shape(name) == tuple(W.shape) and torch.equal(model.tensor(name), W)
    del folded["patch_embedding.bias"]
    assert len(open_checkpoint(tiny.write_gguf(tmp_path / "bare.gguf", folded)).shape(name)) == 4


@pytest.mark.parametrize("write", [tiny.write_gguf, lambda path, state: tiny.write_fp8(path, state, "lightx2v")])
def test_opening_reads_no_weights(tmp_path, write):
    def read_so_far() -> int:
        return int(next(line for line in Path("/proc/self/io").read_text().splitlines() if "rchar" in line).split()[1])

    state = tiny.tiny_state(dim=256, ffn=512, blocks=1)
    path = write(tmp_path / ("m.gguf" if write is tiny.write_gguf else "m.safetensors"), state)
    open_checkpoint(path)  # what Python itself reads on the first call is not counted
    before = read_so_far()
    model = open_checkpoint(path)
    assert read_so_far() - before < 0.1 * path.stat().st_size
    before = read_so_far()
    model.read("blocks.0.ffn.0")
    assert read_so_far() - before < 0.5 * path.stat().st_size
