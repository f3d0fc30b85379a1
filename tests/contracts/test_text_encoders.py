"""Text encoders of Stable Diffusion in every spelling, converted, and loaded by diffusers on tiny pipelines."""

import itertools
import json

import diffusers
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from loraport.conversion import convert
from loraport.errors import LoraportError, SettingsError
from loraport.files.inspect import describe, layer_lines, summary_lines
from loraport.files.lora.read import read_lora
from tests.families import unet

PARTS = {"sd1.5": ("unet", "text_encoder"), "sdxl": ("unet", "text_encoder", "text_encoder_2")}
FLAT = {"sd1.5": {"text_encoder": "lora_te_"}, "sdxl": {"text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}}
SHORT = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}
AB, DOWN_UP = ("lora_A.weight", "lora_B.weight"), ("lora_down.weight", "lora_up.weight")
LINEAR = ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight")
ALPHA = 3.0


def clip(kind):
    torch.manual_seed(1)
    sizes = dict(hidden_size=8, intermediate_size=12, num_hidden_layers=2, num_attention_heads=2, projection_dim=6)
    return kind(transformers.CLIPTextConfig(vocab_size=20, max_position_embeddings=8, **sizes))


def pipeline(name):
    """A fresh pipeline of one family."""
    large = name == "sdxl"
    both = dict(vae=None, tokenizer=None, text_encoder=clip(transformers.CLIPTextModel))
    both["scheduler"] = diffusers.EulerDiscreteScheduler(steps_offset=1)
    if large:
        second = clip(transformers.CLIPTextModelWithProjection)
        pipe = diffusers.StableDiffusionXLPipeline(unet=unet(3), tokenizer_2=None, text_encoder_2=second, **both)
    else:
        pipe = diffusers.StableDiffusionPipeline(
            unet=unet(4), safety_checker=None, feature_extractor=None, requires_safety_checker=False, **both
        )
    return pipe


@pytest.fixture(scope="module", params=PARTS)
def family(request):
    """(its name, a fresh pipeline of it)."""
    return request.param, pipeline(request.param)


def added_by_diffusers(name, pipe, path):
    """{(part, layer): what load_lora_weights adds to its weight}; the pipeline is as before afterwards."""
    weights = {(part, key): value for part in PARTS[name] for key, value in getattr(pipe, part).named_parameters()}
    before = {key: value.detach().clone() for key, value in weights.items()}
    pipe.load_lora_weights(str(path.parent), weight_name=path.name)
    pipe.fuse_lora(components=list(PARTS[name]))
    pipe.unload_lora_weights()
    after = {(part, key): value for part in PARTS[name] for key, value in getattr(pipe, part).named_parameters()}
    found = {key: after[key].detach() - value for key, value in before.items() if key[1].endswith(".weight")}
    with torch.no_grad():
        for key, value in before.items():
            after[key].copy_(value)
    return {(part, key.removesuffix(".weight")): delta for (part, key), delta in found.items() if delta.abs().max() > 0}


def layers(name, pipe):
    """(part, its own name, the name in a LoRA, the module) of some linear layers of every part."""
    for part in PARTS[name]:
        for own, module in getattr(pipe, part).named_modules():
            wanted = "attn2.to_q" if part == "unet" else ("q_proj", "out_proj", "fc1", "fc2")
            if isinstance(module, torch.nn.Linear) and own.endswith(wanted):
                alone = part == "unet" or own.startswith("text_model")
                yield part, own, own if alone else f"text_model.{own}", module


def kohya(name, part, full):
    prefix = "lora_unet_" if part == "unet" else FLAT[name][part]
    return prefix + full.replace(".", "_") + ".", DOWN_UP


def dotted(name, part, full):
    return f"{part}.{full}.", AB


def without_text_model(name, part, full):
    return f"{part}.{full.removeprefix('text_model.')}.", AB


def before_peft(name, part, full):
    """`to_q_lora` in the attention processors of both, as diffusers 0.16 wrote it."""
    if part == "unet":
        attention, _, projection = full.rpartition(".")
        return f"{part}.{attention}.processor.{projection}_", ("lora.down.weight", "lora.up.weight")
    if "self_attn" in full:
        attention, _, projection = full.removesuffix("_proj").rpartition(".")
        return f"{part}.{attention}.to_{projection}_", ("lora.down.weight", "lora.up.weight")
    return f"{part}.{full}.", LINEAR


def comfy(name, part, full):
    return (f"unet.{full}." if part == "unet" else f"text_encoders.{SHORT[part]}.transformer.{full}."), AB


def onetrainer(name, part, full):
    return (f"unet.{full}." if part == "unet" else f"{SHORT[part]}.{full}."), AB


def inside_peft(name, part, full):
    """A component's state behind PEFT's prefix: of the network that is read since ever."""
    return f"{part}.base_model.model.{full}.", AB


def numbered(name, part, full):
    """Short dotted names, `te1.`, as kohya's are without the underscores."""
    short = {"unet": "unet", "text_encoder": "te1", "text_encoder_2": "te2"}[part]
    return f"{short}.{'module.' if part == 'text_encoder' else ''}{full}.", AB


SPELLINGS = [kohya, dotted, without_text_model, before_peft, comfy, onetrainer, inside_peft, numbered]


@pytest.fixture
def written(family, tmp_path):
    """Writes a LoRA in a spelling, or another adapter: (path, {(part, layer): the delta})."""
    name, pipe = family

    def write(spell, kind="LoRA"):
        generator = torch.Generator().manual_seed(0)
        tensors, deltas = {}, {}
        for part, own, full, module in layers(name, pipe):
            out, inn = module.weight.shape
            stem, (down, up) = spell(name, part, full)
            A, B, C, D = (torch.randn(shape, generator=generator) for shape in ((2, inn), (out, 2), (2, inn), (out, 2)))
            if kind == "LoRA":
                tensors |= {stem + down: A, stem + up: B}
                scale = 1.0
            elif kind == "LoHa":
                halves = {"w1_b": A, "w1_a": B, "w2_b": C, "w2_a": D}
                tensors |= {f"{stem}hada_{half}": tensor for half, tensor in halves.items()}
            else:
                tensors |= {f"{stem}lokr_w1": torch.eye(2) * 2, f"{stem}lokr_w2": (B @ A)[: out // 2, : inn // 2]}
            if stem.startswith("lora_") and kind != "LoKr":
                tensors[f"{stem}alpha"], scale = torch.tensor(ALPHA), ALPHA / 2
            update = B @ A if kind == "LoRA" else (B @ A) * (D @ C)
            if kind == "LoKr":
                update, scale = torch.kron(torch.eye(2) * 2, (B @ A)[: out // 2, : inn // 2]), 1.0
            deltas[part, own] = update * scale
        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, tmp_path / "in.safetensors")
        return tmp_path / "in.safetensors", deltas

    return write


def check(family, path, deltas):
    found = added_by_diffusers(*family, path)
    assert found.keys() == deltas.keys()
    for key, delta in deltas.items():
        torch.testing.assert_close(found[key], delta, atol=1e-4, rtol=1e-4)


@pytest.mark.sampled(5)
@pytest.mark.parametrize(("spell", "to"), [*itertools.product(SPELLINGS, ("diffusers", "kohya"))])
def test_every_layer_arrives_from_every_spelling(family, written, tmp_path, spell, to):
    path, deltas = written(spell)
    done = convert(str(path), to, str(tmp_path / "out.safetensors"))
    assert not done.lost and done.keys.counts["transferred"] == done.keys.total == len(load_file(path))
    check(family, tmp_path / "out.safetensors", deltas)


@pytest.mark.parametrize(("kind", "to"), [*itertools.product(("LoHa", "LoKr"), ("diffusers", "kohya"))])
def test_other_adapters_of_text_encoders_become_factors(family, written, tmp_path, kind, to):
    path, deltas = written(kohya, kind)
    done = convert(str(path), to, str(tmp_path / "out.safetensors"), rank="full")
    assert not done.lost
    check(family, tmp_path / "out.safetensors", deltas)


@pytest.mark.sampled(5)
@pytest.mark.parametrize("spell", SPELLINGS)
def test_there_and_back_again(family, written, tmp_path, spell):
    """By ComfyUI's spelling too, which diffusers does not read for a U-Net."""
    path, deltas = written(spell)
    for number, to in enumerate(("comfy", "kohya", "comfy", "diffusers")):
        done = convert(str(path), to, str(tmp_path / f"{number}.safetensors"), dtype="fp32")
        assert not done.lost
        path = tmp_path / f"{number}.safetensors"
        if to == "comfy":
            stems = {key.partition(".text_model.")[0] for key in load_file(path) if ".text_model." in key}
            assert stems == set(PARTS[family[0]][1:])
    check(family, path, deltas)


def test_a_text_encoder_alone_is_a_lora(family, written, tmp_path):
    path, deltas = written(kohya)
    encoders = {key: tensor for key, tensor in load_file(path).items() if key.startswith("lora_te")}
    save_file(encoders, tmp_path / "te.safetensors")
    done = convert(str(tmp_path / "te.safetensors"), "diffusers", str(tmp_path / "out.safetensors"))
    assert not done.lost and done.layers == len(encoders) // 3
    check(family, tmp_path / "out.safetensors", {key: delta for key, delta in deltas.items() if key[0] != "unet"})


def test_what_has_no_place_is_dropped_with_the_true_reason(family, written, tmp_path):
    path, _ = written(kohya)
    other = "lora_te3_encoder_block_0_layer_0_SelfAttention_q"
    tensors = load_file(path) | {
        f"{other}.lora_down.weight": torch.ones(1, 2),
        f"{other}.lora_up.weight": torch.ones(2, 1),
    }
    save_file(tensors, path)
    encoders = {key for key in tensors if key.startswith("lora_te")}
    reasons = {}
    for to, output in (("diffusers", "d.safetensors"), ("peft", "folder"), ("kohya", "k.safetensors")):
        reasons[to] = dict(convert(str(path), to, str(tmp_path / output)).keys.dropped)
    assert set(reasons["peft"]) == encoders and not reasons["kohya"]
    assert all("adapter of one model" in reason for reason in reasons["peft"].values())
    assert set(reasons["diffusers"]) == {f"{other}.lora_down.weight", f"{other}.lora_up.weight"}
    assert all("other than CLIP" in reason for reason in reasons["diffusers"].values())
    assert not any(
        "lora_te" in key or "text" in key for key in load_file(tmp_path / "folder/adapter_model.safetensors")
    )


def test_inspect_tells_of_text_encoders(family, written, tmp_path):
    path, deltas = written(kohya)
    for name, tensors in (("all", load_file(path)), ("te", {})):
        if name == "te":
            tensors = {key: tensor for key, tensor in load_file(path).items() if key.startswith("lora_te")}
        save_file(tensors, tmp_path / f"{name}.safetensors")
        facts = describe(str(tmp_path / f"{name}.safetensors"))
        wanted = {part: sum(of == part for of, _ in deltas) for part in PARTS[family[0]][1:]}
        assert facts["kind"] == "LoRA" and facts["encoders"] == wanted and "refused" not in facts
        assert summary_lines(facts)["text encoders"].startswith(f"{wanted['text_encoder']} layers of text_encoder")
        assert sum(
            "text_model" in line for line in layer_lines(read_lora(tmp_path / f"{name}.safetensors", dense=True))
        ) == sum(wanted.values())


def test_dora_of_a_text_encoder_is_computed_on_the_weights_beside_the_network(family, written, tmp_path):
    """m ∘ (W + D) / ‖W + D‖ − W by rows, the encoder's W from the pipeline; without it, a sentence."""
    name, pipe = family
    path, deltas = written(kohya)
    tensors, wanted = load_file(path), dict(deltas)
    for part, own, full, module in layers(name, pipe):
        if part == "unet":
            continue
        W, D = module.weight.detach(), deltas[part, own]
        m = torch.rand(W.shape[0], 1) + 0.5
        tensors[kohya(name, part, full)[0] + "dora_scale"] = m
        wanted[part, own] = m * (W + D) / (W + D).norm(dim=1, keepdim=True) - W
    save_file(tensors, path)
    for part in PARTS[name]:
        state = {key: value.clone() for key, value in getattr(pipe, part).state_dict().items()}
        (tmp_path / "pipe" / part).mkdir(parents=True)
        file = "diffusion_pytorch_model" if part == "unet" else "model"
        save_file(state, tmp_path / "pipe" / part / f"{file}.safetensors")
    (tmp_path / "pipe/model_index.json").write_text("{}")
    out = tmp_path / "out.safetensors"
    with pytest.raises(SettingsError, match="is a DoRA"):
        convert(str(path), "diffusers", str(out))
    assert not convert(str(path), "diffusers", str(out), rank="full", source=str(tmp_path / "pipe")).lost
    check(family, out, wanted)
    alone = convert(
        str(path), "diffusers", str(out), source=str(tmp_path / "pipe/unet/diffusion_pytorch_model.safetensors")
    )
    assert not alone.lost, "the pipeline is around the file"
    (tmp_path / "pipe/model_index.json").unlink()
    lost = convert(str(path), "diffusers", str(out), source=str(tmp_path / "pipe/unet"))
    assert {key for key, _ in lost.keys.dropped} == {key for key in tensors if key.startswith("lora_te")}
    assert all("does not hold" in reason for _, reason in lost.keys.dropped)


@pytest.mark.parametrize(
    ("folder", "prefix"), [("text_encoder", "lora_te_"), ("text_encoder_2", "lora_te2_"), ("x", "lora_te_")]
)
@pytest.mark.parametrize("start", ["base_model.model.text_model.", "base_model.model.", "text_model."])
def test_pefts_adapter_of_one_encoder_is_of_the_one_that_its_folder_says(folder, prefix, start, tmp_path):
    """PEFT's names are the model's own, which has no `text_model` since version 5 of transformers."""
    (tmp_path / folder).mkdir()
    name = f"{start}encoder.layers.0.mlp.fc1"
    tensors = {f"{name}.lora_A.weight": torch.ones(2, 4), f"{name}.lora_B.weight": torch.ones(5, 2)}
    save_file(tensors, tmp_path / folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 6}
    (tmp_path / folder / "adapter_config.json").write_text(json.dumps(config))
    done = convert(str(tmp_path / folder), "kohya", str(tmp_path / "out.safetensors"))
    written = load_file(tmp_path / "out.safetensors")
    stem = f"{prefix}text_model_encoder_layers_0_mlp_fc1"
    assert set(written) == {f"{stem}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")}
    B, A, alpha = (written[f"{stem}.{end}"] for end in ("lora_up.weight", "lora_down.weight", "alpha"))
    torch.testing.assert_close(alpha / 2 * B @ A, torch.full((5, 4), 6.0))
    assert any("nothing says which model" in note for note in done.notes) == (prefix == "lora_te_")
    with pytest.raises(LoraportError, match="PEFT's folder is one network's"):
        convert(str(tmp_path / "out.safetensors"), "peft", str(tmp_path / "folder"))
