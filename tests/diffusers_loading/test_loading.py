"""`loraport.diffusers`: what a transfer to a file gives that the pipeline loads, on tiny pipelines of real classes."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("peft")
pytest.importorskip("diffusers")

import accelerate
import diffusers

import loraport
import loraport.diffusers
from loraport.diffusers.adapters import active_in
from loraport.diffusers.networks import weights_in_memory
from loraport.errors import InputError, MismatchError, SettingsError
from loraport.files.lora.provenance import accelerators_of
from tests import tiny
from tests.compare import pipelines as whole
from tests.families import factors, hunyuan
from tests.sampling.pipelines import CONFIG, drifted, tiny_transformer

pytestmark = pytest.mark.slow

LAYERS = ("blocks.0.self_attn.q", "blocks.0.ffn.0", "blocks.1.ffn.2")


def wan(network, second=None):
    return diffusers.WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=None, transformer=network, transformer_2=second,
        boundary_ratio=0.5 if second is not None else None,
    )  # fmt: skip


def copied(network):
    again = type(network).from_config(network.config)
    again.load_state_dict(network.state_dict())
    return again


def weights(network) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}


def same(one, other) -> bool:
    mine, theirs = weights(one), weights(other)
    return mine.keys() == theirs.keys() and all(torch.equal(tensor, theirs[name]) for name, tensor in mine.items())


def output(network) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    width = CONFIG["text_dim"]
    with torch.no_grad():
        return network(
            torch.randn(1, 4, 2, 4, 4, generator=generator), torch.tensor([500]),
            torch.randn(1, 3, width, generator=generator), return_dict=False,
        )[0]  # fmt: skip


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Base, distilled network, and LoRAs of the base: two styles and an accelerator."""
    folder = tmp_path_factory.mktemp("files")
    base = tiny_transformer(0)
    fast = drifted(base)
    for name, network in (("base", base), ("fast", fast)):
        network.save_pretrained(folder / name)
    state = tiny.tiny_state(0)
    for seed, name in enumerate(("style", "noir", "speed"), 2):
        found = tiny.lora_factors(state, seed)
        tiny.write_lora(folder / f"{name}.safetensors", {layer: found[layer] for layer in LAYERS})
    return SimpleNamespace(folder=folder, base=base, fast=fast, **{
        name: folder / f"{name}.safetensors" for name in ("style", "noir", "speed")
    })  # fmt: skip


def by_file(pipe, output: Path, adapter_name: str, *places, load=None, **settings):
    """Load a LoRA as one does by hand: transfer it to a file, and load that."""
    loraport.transfer(loraport.TransferConfig(*places, output, format="diffusers", **settings))
    (load or pipe.load_lora_weights)(str(output), adapter_name=adapter_name)


def test_it_is_the_file_that_the_pipeline_loads(files, tmp_path):
    pipe, by_hand = wan(copied(files.fast)), wan(copied(files.fast))
    bare = output(pipe.transformer)
    notes = []
    loaded = loraport.diffusers.load(
        pipe, files.style, files.folder / "base", cache=tmp_path / "cache", progress=SimpleNamespace(note=notes.append)
    )
    by_file(by_hand, tmp_path / "out.safetensors", "style", files.style, files.folder / "base",
            files.folder / "fast", dtype="fp32")  # fmt: skip
    assert loaded.adapter_name == "style" and pipe.get_active_adapters() == ["style"] and not loaded.lost
    assert same(pipe.transformer, by_hand.transformer)
    assert torch.equal(output(pipe.transformer), output(by_hand.transformer))
    assert not torch.equal(output(pipe.transformer), bare)
    assert (tmp_path / "cache").is_dir() and notes == list(loaded.notes)
    held = weights_in_memory("transformer", pipe.transformer).tensors  # the pipeline's own memory, no copy
    assert {held[name].data_ptr() for name in held} <= {
        one.data_ptr() for one in pipe.transformer.state_dict().values()
    }
    assert {row.status for row in loaded.states["transformer"].result.layers} == {"transferred"}
    loraport.diffusers.unload(pipe, "style")
    assert torch.equal(output(pipe.transformer), bare) and pipe.get_list_adapters() == {}


def test_several_loras_do_not_count_for_each_other(files, tmp_path):
    pipe, alone = wan(copied(files.fast)), wan(copied(files.fast))
    source, cache = files.folder / "base", tmp_path / "cache"
    first = loraport.diffusers.load(pipe, files.style, source, cache=cache, method="undo:0.5")
    second = loraport.diffusers.load(pipe, files.noir, source, cache=cache, adapter_name="dark", method="undo:0.5")
    wanted = loraport.diffusers.load(alone, files.noir, source, cache=cache, adapter_name="dark", method="undo:0.5")
    assert pipe.get_active_adapters() == ["style", "dark"] and first.adapter_name == "style"
    mine, theirs = second.states["transformer"].tensors, wanted.states["transformer"].tensors
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
    loraport.diffusers.unload(pipe, "style")
    assert pipe.get_active_adapters() == ["dark"] and same(pipe.transformer, alone.transformer)
    with pytest.raises(SettingsError, match="has an adapter 'dark' already; unload it first"):
        loraport.diffusers.load(pipe, files.noir, source, adapter_name="dark")
    with pytest.raises(SettingsError, match="no adapter 'style'; it has: dark"):
        loraport.diffusers.unload(pipe, "style")


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_an_adapter_that_is_active_is_a_part_of_the_target(files, tmp_path, strength):
    """On the source's own weights it is what `source+FILE*STRENGTH` is."""
    pipe = wan(copied(files.base))
    pipe.load_lora_weights(str(files.speed), adapter_name="speed")
    pipe.set_adapters(["speed"], [strength])
    loaded = loraport.diffusers.load(pipe, files.style, files.folder / "base", cache=None)
    loraport.transfer(
        loraport.TransferConfig(
            files.style,
            files.folder / "base",
            f"source+{files.speed}*{strength}",
            tmp_path / "o.safetensors",
            format="diffusers",
            dtype="fp32",
        )
    )
    mine, theirs = loaded.states["transformer"], load_file(tmp_path / "o.safetensors")
    assert mine.tensors.keys() == theirs.keys()
    assert all(torch.allclose(theirs[key], tensor, atol=1e-6) for key, tensor in mine.tensors.items())
    assert pipe.get_active_adapters() == ["speed", "style"]
    assert f"load the result beside speed at strength {strength:g}: the accelerator is not in it" in loaded.notes
    scales = {
        layer.scaling["speed"] for layer in pipe.transformer.modules() if "speed" in getattr(layer, "scaling", {})
    }
    assert scales == {strength}  # it is left as it was
    none = loraport.diffusers.load(pipe, files.style, files.folder / "base", cache=None, accelerator="",
                                   adapter_name="alone")  # fmt: skip
    assert any("the drift is zero" in note for note in none.notes)


def test_several_adapters_are_parts_of_the_target_each_at_its_weight(files, tmp_path):
    """What MODEL+FEW*1+CFG*0.5 gives as a file, loaded by load_lora_weights, to the last bit."""
    pipe, by_hand = wan(copied(files.fast)), wan(copied(files.fast))
    for one in (pipe, by_hand):
        for name in ("speed", "noir"):
            one.load_lora_weights(str(getattr(files, name)), adapter_name=name)
        one.set_adapters(["speed", "noir"], [1.0, 0.5])
    loaded = loraport.diffusers.load(
        pipe, files.style, files.folder / "base", adapter_name="style", accelerator=("speed", "noir"), cache=None
    )
    target = f"{files.folder / 'fast'}+{files.speed}+{files.noir}*0.5"
    by_file(by_hand, tmp_path / "o.safetensors", "style", files.style, files.folder / "base", target, dtype="fp32")
    mine, theirs = loaded.states["transformer"], load_file(tmp_path / "o.safetensors")
    assert mine.tensors.keys() == theirs.keys()
    assert all(torch.equal(theirs[key], tensor) for key, tensor in mine.tensors.items())
    for one in (pipe, by_hand):
        one.set_adapters(["speed", "noir", "style"], [1.0, 0.5, 1.0])
    assert same(pipe.transformer, by_hand.transformer) and torch.equal(
        output(pipe.transformer), output(by_hand.transformer)
    )
    assert accelerators_of(mine.metadata) == (("speed", 1.0), ("noir", 0.5))
    one = loraport.diffusers.load(
        pipe, files.style, files.folder / "base", adapter_name="one", accelerator=["speed"], cache=None
    )
    assert any(not torch.equal(one.states["transformer"].tensors[key], theirs[key]) for key in theirs)
    with pytest.raises(SettingsError, match="names an adapter twice"):
        loraport.diffusers.load(pipe, files.style, files.folder / "base", adapter_name="x", accelerator=["speed"] * 2)


def test_strengths_that_differ_and_several_accelerators(files):
    pipe = wan(copied(files.base))
    pipe.load_lora_weights(str(files.speed), adapter_name="speed")
    half = [layer for name, layer in pipe.transformer.named_modules() if name.endswith("blocks.0.attn1.to_q")]
    half[0].set_scale("speed", 0.5)
    loaded = loraport.diffusers.load(pipe, files.style, files.folder / "base", cache=None, method="undo:1")
    rows = {row.name: row.drift for row in loaded.states["transformer"].result.layers}
    assert rows["blocks.0.self_attn.q"] == pytest.approx(rows["blocks.0.ffn.0"] / 2, rel=0.6)
    pipe.load_lora_weights(str(files.noir), adapter_name="noir")
    pipe.set_adapters(["speed", "noir"])
    with pytest.raises(
        SettingsError, match=r"2 adapters are active .*: speed, noir; say .*='speed', .*\('speed', 'noir'\)"
    ):
        loraport.diffusers.load(pipe, files.style, files.folder / "base", adapter_name="again", cache=None)
    with pytest.raises(SettingsError, match="no active adapter 'fast' of yours; active: speed, noir"):
        loraport.diffusers.load(pipe, files.style, files.folder / "base", adapter_name="x", accelerator="fast")
    again = loraport.diffusers.load(pipe, files.style, files.folder / "base", adapter_name="again", cache=None,
                                    accelerator="speed", method="undo:1")  # fmt: skip
    assert again.states["transformer"].metadata["loraport.accelerator"] == "speed"
    pipe.disable_lora()
    off = loraport.diffusers.load(pipe, files.style, files.folder / "base", adapter_name="off", cache=None)
    assert any("the drift is zero" in note for note in off.notes)


def test_what_is_fused_counts_once_it_is_in_the_weights_for_good(files):
    pipe = wan(copied(files.base))
    pipe.load_lora_weights(str(files.speed), adapter_name="speed")
    pipe.fuse_lora(adapter_names=["speed"])
    with pytest.raises(SettingsError, match=r"speed is fused into the pipeline's transformer, .*unload_lora_weights"):
        loraport.diffusers.load(pipe, files.style, files.folder / "base", cache=None)
    pipe.unload_lora_weights()
    loaded = loraport.diffusers.load(pipe, files.style, files.folder / "base", cache=None, method="undo:1")
    assert "loraport.accelerator" not in loaded.states["transformer"].metadata
    assert all(row.drift > 0.05 for row in loaded.states["transformer"].result.layers)


@pytest.mark.parametrize("form", ["one file", "two files", "tensors"])
def test_both_experts_of_wan_2_2(files, form, tmp_path):
    low = drifted(tiny_transformer(1))
    tiny_transformer(1).save_pretrained(tmp_path / "low")
    low.save_pretrained(tmp_path / "fast-low")
    state = tiny.tiny_state(0)
    found = [{layer: tiny.lora_factors(state, seed)[layer] for layer in LAYERS} for seed in (11, 12)]
    places = [tiny.write_lora(tmp_path / f"style-{name}.safetensors", one)
              for name, one in zip(("high_noise", "low_noise"), found, strict=True)]  # fmt: skip
    both = {key.replace("diffusion_model.", start): tensor
            for place, start in zip(places, ("dit.", "dit2."), strict=True)
            for key, tensor in load_file(place).items()}  # fmt: skip
    save_file(both, tmp_path / "both.safetensors")
    given = {"one file": tmp_path / "both.safetensors", "two files": places[0], "tensors": both}[form]
    sources = (files.folder / "base", tmp_path / "low")
    pipe, by_hand = wan(copied(files.fast), copied(low)), wan(copied(files.fast), copied(low))
    loaded = loraport.diffusers.load(pipe, given, sources, adapter_name="style", cache=None)
    for at, target in enumerate((files.folder / "fast", tmp_path / "fast-low")):
        second = {"load_into_transformer_2": True} if at else {}
        by_file(by_hand, tmp_path / f"out-{at}.safetensors", "style", places[at], sources[at], target, dtype="fp32",
                load=lambda *given, second=second, **more: by_hand.load_lora_weights(*given, **second, **more),
                )  # fmt: skip
    assert list(loaded.states) == ["transformer", "transformer_2"]
    assert same(pipe.transformer, by_hand.transformer) and same(pipe.transformer_2, by_hand.transformer_2)
    loraport.diffusers.unload(pipe, "style")
    assert torch.equal(output(pipe.transformer), output(files.fast)) and pipe.get_list_adapters() == {}
    with pytest.raises(SettingsError, match="no high-noise and low-noise experts found in"):
        loraport.diffusers.load(pipe, given, files.folder / "base", cache=None)


def test_hunyuanvideo_1_5_has_no_loader_of_its_own(tmp_path):
    network = hunyuan()
    source = weights(network)
    network.load_state_dict(tiny.drifted(source))
    network.save_pretrained(tmp_path / "fast")
    found = {name: some for name, some in factors(network).items() if "attn" in name}
    tensors = {f"transformer.{name}.lora_{letter}.weight": factor for name, pair in found.items()
               for letter, factor in zip("AB", (pair[0], pair[1] / 20), strict=True)}  # fmt: skip
    save_file(tensors, tmp_path / "style.safetensors")
    save_file(source, tmp_path / "base.safetensors")
    parts = dict.fromkeys(("text_encoder", "tokenizer", "scheduler", "text_encoder_2", "tokenizer_2", "guider"))
    vae = diffusers.AutoencoderKLHunyuanVideo15(latent_channels=4, block_out_channels=(8, 8), layers_per_block=1,
                                                spatial_compression_ratio=2, temporal_compression_ratio=1)  # fmt: skip
    pipe = diffusers.HunyuanVideo15Pipeline(transformer=copied(network), vae=vae, **parts)
    assert not hasattr(pipe, "load_lora_weights")
    loaded = loraport.diffusers.load(pipe, tmp_path / "style.safetensors", tmp_path / "base.safetensors", cache=None)
    by_hand = copied(network)
    by_file(None, tmp_path / "out.safetensors", "style", tmp_path / "style.safetensors", tmp_path / "base.safetensors",
            tmp_path / "fast", dtype="fp32",
            load=lambda place, **more: by_hand.load_lora_adapter(load_file(place), prefix="transformer", **more),
            )  # fmt: skip
    assert same(pipe.transformer, by_hand) and loaded.states["transformer"].result.method == "casa"
    loraport.diffusers.unload(pipe, "style")
    left = weights_in_memory("transformer", pipe.transformer).tensors
    assert all(torch.equal(left[name], tensor) for name, tensor in network.state_dict().items())


def test_sdxl_with_the_layers_of_its_text_encoders(tmp_path):
    source = whole.unet()
    whole.write_sdxl(tmp_path / "base", source)
    whole.write_sdxl(tmp_path / "fast", whole.moved(source, whole.unet, 0.1))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for name, (A, B) in factors(source).items():
        if name.endswith(("attn1.to_q", "conv1")):
            tensors |= {f"unet.{name}.lora_A.weight": A, f"unet.{name}.lora_B.weight": B / 50}
    for encoder in ("text_encoder", "text_encoder_2"):
        layer = f"{encoder}.text_model.encoder.layers.0.self_attn.q_proj"
        for letter, shape in {"A": (2, 16), "B": (16, 2)}.items():
            tensors[f"{layer}.lora_{letter}.weight"] = torch.randn(shape, generator=generator) / 9
    save_file(tensors, tmp_path / "style.safetensors")
    pipes = [diffusers.StableDiffusionXLPipeline.from_pretrained(tmp_path / "fast") for _ in range(2)]
    places = [tmp_path / "style.safetensors", tmp_path / "base"]
    parts = ("unet", "text_encoder", "text_encoder_2")
    loaded = loraport.diffusers.load(pipes[0], *places, method="undo:0.5", cache=None)
    by_file(pipes[1], tmp_path / "o.safetensors", "style", *places, tmp_path / "fast", dtype="fp32", method="undo:0.5")
    assert all(same(getattr(pipes[0], part), getattr(pipes[1], part)) for part in parts) and not loaded.lost
    loraport.diffusers.load(pipes[0], *places, method="direct", adapter_name="second", cache=None)
    assert all(active_in(getattr(pipes[0], part)) == ["style", "second"] for part in parts)
    loraport.diffusers.unload(pipes[0], "style")
    assert pipes[0].get_list_adapters() == {part: ["second"] for part in parts}


def test_weights_that_accelerate_keeps_elsewhere_are_read(files, tmp_path):
    wanted = files.fast.state_dict()
    for move in (accelerate.cpu_offload, accelerate.disk_offload):
        network = copied(files.fast)
        folder = {"offload_dir": str(tmp_path)} if move is accelerate.disk_offload else {}
        move(network, execution_device=torch.device("cpu"), **folder)
        assert any(tensor.is_meta for tensor in network.state_dict().values())
        read = weights_in_memory("transformer", network).tensors
        assert read.keys() == wanted.keys() and all(torch.equal(read[name], tensor) for name, tensor in wanted.items())
    lost = copied(files.fast).to("meta")
    with pytest.raises(InputError, match=r"the pipeline's transformer: .* is on the device meta, .*target="):
        loraport.diffusers.load(wan(lost), files.style, files.folder / "base", cache=None)


def test_groups_that_diffusers_offloads(files, tmp_path):
    cpu = torch.device("cpu")
    pipe, bare = wan(copied(files.fast)), wan(copied(files.fast))
    pipe.transformer.enable_group_offload(cpu, cpu, "leaf_level")
    for one in (pipe, bare):
        loraport.diffusers.load(one, files.style, files.folder / "base", cache=None, method="undo:0.5")
    assert torch.equal(output(pipe.transformer), output(bare.transformer))
    away = wan(copied(files.fast))
    away.transformer.enable_group_offload(cpu, cpu, "leaf_level", offload_to_disk_path=str(tmp_path))
    with pytest.raises(
        InputError, match=r"transformer are offloaded to a disk, where they are not read; load .*target="
    ):
        loraport.diffusers.load(away, files.style, files.folder / "base", cache=None)


def test_quantised_weights_are_refused_by_name_and_the_targets_place_helps(files):
    from diffusers.quantizers.gguf.utils import GGUFParameter
    from gguf import GGMLQuantizationType

    network = copied(files.fast)
    codes = torch.zeros(24, 26, dtype=torch.uint8)
    network.blocks[0].attn2.to_v.weight = GGUFParameter(codes, quant_type=GGMLQuantizationType.Q4_0)
    pipe = wan(network)
    with pytest.raises(InputError, match=r"quantised: blocks.0.attn2.to_v.weight is a .*GGUFParameter, .*target="):
        loraport.diffusers.load(pipe, files.style, files.folder / "base", cache=None)
    assert pipe.get_list_adapters() == {}
    loaded = loraport.diffusers.load(
        pipe, files.style, files.folder / "base", target=files.folder / "fast", cache=None, method="undo:0.5"
    )
    wanted = loraport.diffusers.load(
        wan(copied(files.fast)), files.style, files.folder / "base", cache=None, method="undo:0.5"
    )
    mine, theirs = loaded.states["transformer"].tensors, wanted.states["transformer"].tensors
    assert all(torch.equal(tensor, theirs[key]) for key, tensor in mine.items())
    assert pipe.get_active_adapters() == ["style"]


def test_the_recommended_method_is_taken_and_recorded(files):
    loaded = loraport.diffusers.load(
        wan(copied(files.fast)), files.style, files.folder / "base", method="recommend", cache=None
    )
    told = loaded.diagnoses["transformer"]
    assert loaded.states["transformer"].result.method == told.method != "recommend"
    assert loaded.states["transformer"].metadata["loraport.method"] == told.method
    assert told.line() in loaded.states["transformer"].metadata["loraport.settings"]
    with pytest.raises(MismatchError, match="to move it all the same, name a method"):
        loraport.diffusers.load(
            wan(tiny_transformer(9)), files.style, files.folder / "base", method="recommend", cache=None
        )


def test_what_is_refused_leaves_the_pipeline_as_it_was(files, monkeypatch):
    pipe = wan(copied(files.fast), copied(files.fast))
    sources = (files.folder / "base", files.folder / "base")
    for change, message in (
        ({"adapter_name": "a.b"}, "without a full stop"), ({"as_diff": True}, "loads factors by diffusers' own names"),
        ({"format": "peft"}, "loads factors by diffusers' own names"),
        ({"methods": "casa"}, "unknown setting 'methods'"),
    ):  # fmt: skip
        with pytest.raises(SettingsError, match=message):
            loraport.diffusers.load(pipe, files.style, sources, cache=None, **change)
    with pytest.raises(InputError, match="a SimpleNamespace has no network in transformer, transformer_2, unet"):
        loraport.diffusers.load(SimpleNamespace(), files.style, sources[0])
    with pytest.raises(SettingsError, match="the pipeline has one network, and takes one source; there are 2"):
        loraport.diffusers.load(wan(files.fast), files.style, sources)

    real = type(pipe).load_lora_weights

    def second_fails(self, *given, **more):
        if more.get("load_into_transformer_2"):
            raise ValueError("no such module")
        return real(self, *given, **more)

    monkeypatch.setattr(type(pipe), "load_lora_weights", second_fails)
    with pytest.raises(InputError, match="diffusers does not load the result into transformer_2: no such module"):
        loraport.diffusers.load(pipe, files.style, sources, cache=None, method="direct")
    assert pipe.get_list_adapters() == {} and torch.equal(output(pipe.transformer), output(files.fast))


def test_weights_that_diffusers_keeps_in_fp8_are_read_with_a_note(files):
    network = copied(files.fast)
    network.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.bfloat16)
    loaded = loraport.diffusers.load(wan(network), files.style, files.folder / "base", cache=None, method="undo:0.5")
    assert any("the pipeline's transformer is stored as fp8_e4m3fn" in note for note in loaded.notes)
    assert {tensor.dtype for tensor in loaded.states["transformer"].tensors.values()} == {torch.bfloat16}


def test_without_peft_it_says_what_to_install(files, monkeypatch):
    pipe = wan(files.fast)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(SettingsError, match=r"PEFT, which is not installed: pip install 'loraport\[sample\]'"):
        loraport.diffusers.load(pipe, files.style, files.folder / "base")


def test_the_room_is_loaded_when_it_is_asked_for():
    assert loraport.diffusers.load.__name__ == "load"
    assert diffusers.__name__ == "diffusers" and hasattr(diffusers, "WanPipeline")
