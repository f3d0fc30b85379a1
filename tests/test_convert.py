"""A LoRA in another dialect: the same updates, all keys accounted for, nothing stale, and a way back."""

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.conversion import convert
from loraport.errors import InputError, MismatchError, OutputError, SettingsError
from loraport.files.lora.kohya import FFN_SIZES, KOHYA_BLOCK, is_complete, missing_layers, with_missing_layers
from loraport.files.lora.read import read_lora
from loraport.spectral.low_rank import LowRank
from tests.dialects import CASES, FORMATS, SHAPES, write

DOWN_UP = ("lora_down.weight", "lora_up.weight")
DIALECTS = ["g1-header-patterns", "g3-rslora", "g4-alpha", "g5", "g9-processor", "g10"]


@pytest.fixture
def lora(tmp_path):
    (tmp_path / "in").mkdir()
    return lambda case, extras=None: write(CASES[case], tmp_path / "in", extras)


@pytest.mark.parametrize("to", FORMATS)
@pytest.mark.parametrize("case", DIALECTS)
def test_every_dialect_becomes_every_format_with_the_same_updates(lora, tmp_path, case, to):
    given = lora(case)
    output = tmp_path / ("out" if to == "peft" else "out.safetensors")
    done = convert(str(given.path), to, str(output))
    back = read_lora(output)
    assert set(back.layers) == set(given.deltas) and back.dialect.label == {"peft": "peft"}.get(to, to)
    for layer, delta in given.deltas.items():
        dense = back.updates[layer].dense().double()
        assert float((dense - delta).norm()) <= 1e-6 * float(delta.norm())
    assert done.layers == len(given.deltas) and done.dtype == "fp32" and not done.lost
    keys = sum(len(layer.keys) for layer in read_lora(given.path).layers.values())
    assert done.keys.as_json() == {"in": keys, "transferred": keys, "copied": 0, "dropped": []}
    json.dumps(done.as_json())


def test_there_and_back_again_gives_the_same_tensors(lora, tmp_path):
    first, second, third = (str(tmp_path / f"{name}.safetensors") for name in ("one", "two", "three"))
    convert(str(lora("g4").path), "comfy", first)
    convert(first, "kohya", second)
    convert(second, "comfy", third)
    one, three = load_file(first), load_file(third)
    assert set(one) == set(three) and all(torch.equal(one[key], three[key]) for key in one)


def test_tencents_own_format_has_no_prefix_and_no_alpha(tmp_path):
    """HunyuanVideo-1.5's generate.py loads un-prefixed official names, split q, k and v."""
    stem = "double_blocks.3.img_attn_q"
    given = {
        f"transformer.{stem}.lora_A.weight": torch.ones(2, 4),
        f"transformer.{stem}.lora_B.weight": torch.ones(4, 2),
    }
    save_file(given | {f"transformer.{stem}.alpha": torch.tensor(4.0)}, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "tencent", str(tmp_path / "out.safetensors"))
    written = load_file(tmp_path / "out.safetensors")
    assert set(written) == {f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"}
    assert torch.equal(written[f"{stem}.lora_B.weight"] @ written[f"{stem}.lora_A.weight"], torch.full((4, 4), 4.0))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_dtype_is_the_inputs_own(lora, tmp_path, dtype):
    path = lora("g4").path
    save_file({key: tensor.to(dtype) for key, tensor in load_file(path).items()}, path)
    output = tmp_path / "out.safetensors"
    done = convert(str(path), "diffusers", str(output))
    assert {tensor.dtype for tensor in load_file(output).values()} == {dtype} and done.notes == ()
    convert(str(path), "diffusers", str(output), dtype="fp16")
    assert {tensor.dtype for tensor in load_file(output).values()} == {torch.float16}


def test_a_rounded_scale_is_said(lora, tmp_path):
    path = lora("g4-alpha").path
    save_file({key: tensor.bfloat16() for key, tensor in load_file(path).items()}, path)
    assert "--dtype fp32" in convert(str(path), "comfy", str(tmp_path / "a.safetensors")).notes[0]
    assert convert(str(path), "comfy", str(tmp_path / "b.safetensors"), dtype="bf16").notes == ()


def test_what_has_no_spelling_is_dropped_with_the_reason(lora, tmp_path):
    names = ("head.diff_m", "blocks.0.ffn.0.diff_b")
    extras = {f"diffusion_model.{name}": torch.ones(32) for name in names}
    path = str(lora("g4", extras).path)
    done = convert(path, "diffusers", str(tmp_path / "out.safetensors"))
    assert done.lost and done.keys.counts["copied"] == 1 and done.keys.total == 2 * len(SHAPES) + 2
    assert done.keys.dropped == (("diffusion_model.head.diff_m", "the loaders of this format read factors only"),)
    whole = convert(path, "comfy", str(tmp_path / "same.safetensors"))
    assert not whole.lost and whole.keys.counts["copied"] == 2


def test_a_layer_known_by_a_flattened_name_only(tmp_path):
    name = "lora_unet_mystery_layer_0"
    save_file({f"{name}.{k}": torch.ones(2, 2) for k in DOWN_UP}, tmp_path / "k.safetensors")
    given, output = str(tmp_path / "k.safetensors"), tmp_path / "out.safetensors"
    with pytest.raises(MismatchError, match="flattened names only"):
        convert(given, "comfy", str(output))
    assert not output.exists()
    assert not convert(given, "kohya", str(output)).lost
    save_file(load_file(given) | {f"lora_unet_blocks_0_ffn_0.{k}": torch.ones(2, 2) for k in DOWN_UP}, given)
    done = convert(given, "comfy", str(output))
    assert done.lost and done.layers == 1 and [key for key, _ in done.keys.dropped] == [f"{name}.{k}" for k in DOWN_UP]


def test_full_differences_alone(tmp_path):
    given, output = str(tmp_path / "dense.safetensors"), tmp_path / "out.safetensors"
    save_file({"diffusion_model.blocks.0.ffn.0.diff": torch.ones(4, 3, dtype=torch.bfloat16)}, given)
    done = convert(given, "kohya", str(output))
    assert list(load_file(output)) == ["lora_unet_blocks_0_ffn_0.diff"] and not done.lost
    assert done.keys.as_json() == {"in": 1, "transferred": 0, "copied": 1, "dropped": []} and done.dtype == "bf16"
    with pytest.raises(MismatchError, match="full differences and no factors; use comfy or kohya"):
        convert(given, "diffusers", str(tmp_path / "none.safetensors"))
    assert not (tmp_path / "none.safetensors").exists()


def without(tensors, *layers):
    return {key: tensor for key, tensor in tensors.items() if not any(f".{layer}." in key for layer in layers)}


HEAD = {
    f"diffusion_model.head.head.lora_{end}.weight": torch.ones(shape) for end, shape in (("A", (2, 24)), ("B", (16, 2)))
}
KOHYA_FILES = {
    # what is changed in a complete file, the note, whether diffusers takes the result
    "complete": (lambda tensors: tensors, (), True),
    "a layer is missing": (lambda tensors: without(tensors, "0.ffn.0"), ("1 layers of zeros were added",), True),
    "only attention": (lambda tensors: without(tensors, "ffn.0", "ffn.2"), ("4 are missing",), False),
    "the first block is missing": (lambda tensors: without(tensors, "blocks.0"), ("10 layers of zeros",), True),
    "a layer outside": (lambda tensors: tensors | HEAD, ("outside the blocks, such as head.head",), False),
}


@pytest.mark.parametrize("case", KOHYA_FILES)
def test_kohya_files_are_filled_up_so_that_diffusers_takes_them(lora, tmp_path, case):
    converters = pytest.importorskip("diffusers.loaders.lora_conversion_utils")
    change, notes, taken = KOHYA_FILES[case]
    given = lora("g4")
    save_file(change(load_file(given.path)), given.path)
    before = read_lora(given.path)
    done = convert(str(given.path), "kohya", str(tmp_path / "k.safetensors"))
    assert len(done.notes) == len(notes) and all(part in note for part, note in zip(notes, done.notes, strict=True))
    after = read_lora(tmp_path / "k.safetensors")
    for layer, update in after.updates.items():
        wanted = before.updates[layer].dense() if layer in before.layers else torch.zeros(update.shape)
        torch.testing.assert_close(update.dense(), wanted)
    assert len({update.rank for update in after.updates.values()}) == 1 and not done.lost
    call = converters._convert_musubi_wan_lora_to_diffusers
    if taken:
        assert len(call(load_file(tmp_path / "k.safetensors"))) == 2 * len(SHAPES) and is_complete(after.layers)
    else:
        with pytest.raises((KeyError, ValueError, IndexError)):
            call(load_file(tmp_path / "k.safetensors"))


def test_the_published_widths_tell_the_inner_size(lora, tmp_path):
    """Attention alone of a real model is filled up; of an unknown width it is left as it is."""
    q = {f"blocks.0.{layer}": LowRank(torch.zeros(1536, 1), torch.zeros(1, 1536)) for layer in KOHYA_BLOCK[:8]}
    assert with_missing_layers(q)["blocks.0.ffn.0"].shape == (FFN_SIZES[1536], 1536) == (8960, 1536)
    assert with_missing_layers(q)["blocks.0.ffn.2"].shape == (1536, 8960)
    narrow = {name: LowRank(torch.zeros(24, 1), torch.zeros(1, 24)) for name in q}
    assert with_missing_layers(narrow) == narrow and missing_layers(narrow) == ["blocks.0.ffn.0", "blocks.0.ffn.2"]
    image = q | {f"blocks.0.cross_attn.{x}_img": low for x, low in zip("kv", q.values(), strict=False)}
    assert is_complete(with_missing_layers(image)) and is_complete(with_missing_layers(q)) and not is_complete(q)


def test_metadata_is_ours_and_what_stays_true(lora, tmp_path):
    path = lora("g4").path
    stale = {
        "modelspec.trigger_phrase": "ohwx",
        "ss_network_dim": "99",
        "sshs_model_hash": "00",
        "loraport.method": "casa",
        "loraport.version": "0",
    }
    save_file(load_file(path), path, metadata=stale)
    convert(str(path), "kohya", str(tmp_path / "k.safetensors"))
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["loraport.method"] == "casa" and metadata["loraport.converted"] == path.name
    assert metadata["loraport.version"] != "0" and not {key for key in metadata if key.startswith("ss")}
    assert metadata["modelspec.trigger_phrase"] == "ohwx"


def test_the_same_bytes_every_time(lora, tmp_path):
    path = str(lora("g5").path)
    outputs = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    for output in outputs:
        convert(path, "comfy", str(output))
    assert outputs[0].read_bytes() == outputs[1].read_bytes()


def test_wrong_usage_writes_nothing(lora, tmp_path):
    path = str(lora("g4").path)
    before = sorted(tmp_path.rglob("*"))
    for to, output, dtype, error, message in (
        ("same", "o.safetensors", None, SettingsError, "known: comfy, diffusers, peft, kohya"),
        ("comfy", "o.safetensors", "fp8", SettingsError, "known: fp32, bf16, fp16"),
        ("comfy", "o.pt", None, OutputError, "no .safetensors ending"),
        ("comfy", "in/lora.safetensors", None, OutputError, "an input of this run"),
        ("peft", "in", None, OutputError, "an input of this run"),
        ("tencent", "o.safetensors", None, SettingsError, "HunyuanVideo-1.5's own code, but this LoRA is of wan"),
    ):
        with pytest.raises((InputError, OutputError), match=message) as refusal:
            convert(path, to, str(tmp_path / output), dtype=dtype)
        assert isinstance(refusal.value, error)
    assert sorted(tmp_path.rglob("*")) == before
