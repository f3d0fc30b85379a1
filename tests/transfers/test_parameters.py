"""Differences of parameters outside all layers, spelled by ComfyUI or LightX2V: merged, carried, respelled."""

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport.conversion import convert
from loraport.errors import MismatchError
from loraport.inputs.config import TransferConfig
from loraport.merging import merge
from loraport.transfers.run import transfer
from tests import tiny

SPELLINGS = {
    # key behind diffusion_model. -> the parameter of an original Wan that it is added to
    "blocks.0.modulation.diff": "blocks.0.modulation",
    "blocks.0.diff_m": "blocks.0.modulation",
    "blocks.0.scale_shift_table.diff": "blocks.0.modulation",
    "head.modulation.diff": "head.modulation",
    "head.diff_m": "head.modulation",
    "blocks.1.self_attn.q.bias.diff": "blocks.1.self_attn.q.bias",
    "blocks.1.norm3.bias.diff": "blocks.1.norm3.bias",
}


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    state = tiny.tiny_state()
    tiny.write_original(folder / "source.safetensors", state)
    tiny.write_original(folder / "target.safetensors", tiny.drifted(state))
    tiny.write_lora(folder / "plain.safetensors", tiny.lora_factors(state))
    return folder, state


def with_difference(family, path, key):
    folder, state = family
    difference = torch.randn(state[SPELLINGS[key]].shape, generator=torch.Generator().manual_seed(3))
    save_file(load_file(folder / "plain.safetensors") | {f"diffusion_model.{key}": difference}, path)
    return difference


@pytest.mark.parametrize("key", SPELLINGS)
def test_every_spelling_is_merged_and_carried(family, tmp_path, key):
    folder, state = family
    difference = with_difference(family, tmp_path / "lora.safetensors", key)
    lora, source = str(tmp_path / "lora.safetensors"), str(folder / "source.safetensors")
    assert not merge(source, [lora], str(tmp_path / "merged.safetensors")).lost
    merged, name = load_file(tmp_path / "merged.safetensors"), SPELLINGS[key]
    torch.testing.assert_close(merged[name] - state[name], difference)
    for target in (str(folder / "target.safetensors"), f"source+{lora}"):
        out = tmp_path / "out.safetensors"
        run = transfer(TransferConfig(lora, source, target, str(out), method="direct", dtype="fp32", cache=None))
        assert not run.lost and not any("no place" in note for note in run.warnings)
        assert torch.equal(load_file(out)[f"diffusion_model.{key}"], difference)
        out.unlink()


@pytest.mark.parametrize("key", SPELLINGS)
def test_what_is_written_for_comfyui_is_the_name_of_the_parameter_or_a_bias_of_its_layer(family, tmp_path, key):
    difference = with_difference(family, tmp_path / "lora.safetensors", key)
    done = convert(str(tmp_path / "lora.safetensors"), "comfy", str(tmp_path / "out.safetensors"))
    name = SPELLINGS[key]
    written = load_file(tmp_path / "out.safetensors")
    readable = {f"diffusion_model.{name}.diff", f"diffusion_model.{name.removesuffix('.bias')}.diff_b"}
    (key,) = readable & written.keys()
    assert not done.lost and torch.equal(written[key], difference)
    for format in ("diffusers", "kohya"):
        lost = convert(str(tmp_path / "lora.safetensors"), format, str(tmp_path / f"{format}.safetensors"))
        assert lost.lost == (not (format == "kohya" or "self_attn" in name) or "modulation" in name)


def test_a_norm_that_comfyui_calls_scale_is_written_by_that_name(tmp_path):
    """Its keys end in `.scale`, so a `.diff` behind the name of the layer is one that it does not know."""
    layer = "transformer_blocks.0.attn.norm_q"
    save_file({f"transformer.{layer}.diff": torch.ones(4)}, tmp_path / "in.safetensors")
    convert(str(tmp_path / "in.safetensors"), "comfy", str(tmp_path / "out.safetensors"))
    name = "double_blocks.0.img_attn.norm.query_norm.scale"
    assert list(load_file(tmp_path / "out.safetensors")) == [f"diffusion_model.{name}.diff"]
    save_file(
        {f"{name}": torch.zeros(4), "double_blocks.0.img_attn.qkv.weight": torch.ones(6, 2)},
        tmp_path / "model.safetensors",
    )
    merge(str(tmp_path / "model.safetensors"), [str(tmp_path / "out.safetensors")], str(tmp_path / "m.safetensors"))
    assert torch.equal(load_file(tmp_path / "m.safetensors")[name], torch.ones(4))


def test_a_parameter_of_an_unknown_family_is_found_by_its_name(tmp_path):
    model = {"stage.0.mix.weight": torch.ones(3, 3), "stage.0.gain": torch.zeros(3)}
    save_file(model, tmp_path / "model.safetensors")
    save_file({"diffusion_model.stage.0.gain.diff": torch.ones(3)}, tmp_path / "lora.safetensors")
    merge(str(tmp_path / "model.safetensors"), [str(tmp_path / "lora.safetensors")], str(tmp_path / "m.safetensors"))
    assert torch.equal(load_file(tmp_path / "m.safetensors")["stage.0.gain"], torch.ones(3))


def test_one_that_the_model_lacks_is_dropped_with_the_reason(family, tmp_path):
    folder, _ = family
    tensors = load_file(folder / "plain.safetensors")
    save_file(
        tensors | {"diffusion_model.blocks.9.modulation.diff": torch.ones(1, 6, 24)}, tmp_path / "lora.safetensors"
    )
    done = merge(
        str(folder / "source.safetensors"), [str(tmp_path / "lora.safetensors")], str(tmp_path / "m.safetensors")
    )
    assert done.lost and done.keys.dropped[0][1].endswith("has no blocks.9.modulation")


UNKNOWN = "blocks.0.brand_new.proj"


@pytest.mark.parametrize("format", ["comfy", "diffusers", "peft", "kohya"])
def test_a_layer_in_no_table_is_dropped_where_its_name_would_change(family, tmp_path, format):
    pairs = {f"lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    more = {f"diffusion_model.{UNKNOWN}.{end}": tensor for end, tensor in pairs.items()}
    save_file(load_file(family[0] / "plain.safetensors") | more, tmp_path / "lora.safetensors")
    out = tmp_path / ("out" if format == "peft" else "out.safetensors")
    done = convert(str(tmp_path / "lora.safetensors"), format, str(out))
    if format == "comfy":
        assert not done.lost and more.keys() <= load_file(out).keys()
        return
    assert done.lost and {key for key, _ in done.keys.dropped} == more.keys()
    assert all("in no table" in reason for _, reason in done.keys.dropped)
    written = load_file(out / "adapter_model.safetensors" if format == "peft" else out)
    assert not any("brand_new" in key for key in written)
    assert done.layers == 20


def test_a_layer_that_diffusers_has_no_class_for_stays_behind(tmp_path):
    stem = "diffusion_model.audio_injector.injector.3.q"
    known = "diffusion_model.vace_blocks.0.before_proj"
    tensors = {f"{name}.lora_{x}.weight": torch.ones(2, 2) for name in (stem, known) for x in "AB"}
    save_file(tensors, tmp_path / "lora.safetensors")
    done = convert(str(tmp_path / "lora.safetensors"), "diffusers", str(tmp_path / "out.safetensors"))
    assert {key for key, _ in done.keys.dropped} == {f"{stem}.lora_{x}.weight" for x in "AB"}
    assert set(load_file(tmp_path / "out.safetensors")) == {
        f"transformer.vace_blocks.0.proj_in.lora_{x}.weight" for x in "AB"
    }
    assert not convert(str(tmp_path / "lora.safetensors"), "kohya", str(tmp_path / "kohya.safetensors")).lost


def test_a_lora_of_an_unknown_family_changes_its_prefix_only_within_one_program(tmp_path):
    tensors = {f"unet.stage.0.mix.lora_{x}.weight": torch.ones(2, 2) for x in "AB"}
    save_file(tensors, tmp_path / "lora.safetensors")
    place = str(tmp_path / "lora.safetensors")
    convert(place, "diffusers", str(tmp_path / "same.safetensors"))
    assert load_file(tmp_path / "same.safetensors").keys() == tensors.keys()
    convert(place, "peft", str(tmp_path / "peft"))
    for format in ("comfy", "kohya"):
        with pytest.raises(MismatchError, match="in no table"):
            convert(place, format, str(tmp_path / "none.safetensors"))
    model = {"stage.0.mix.weight": torch.eye(2)}
    save_file(model, tmp_path / "model.safetensors")
    config = TransferConfig(
        place, str(tmp_path / "model.safetensors"), str(tmp_path / "model.safetensors"),
        str(tmp_path / "none.safetensors"), method="direct", format="comfy", cache=None,
    )  # fmt: skip
    with pytest.raises(MismatchError, match="in no table"):
        transfer(config)
