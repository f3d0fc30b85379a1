"""What is sampled is what a transfer reads; what is missing or damaged in a pipeline's folder is one sentence."""

import json
import shutil

import pytest
import torch
from diffusers import WanTransformer3DModel
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

pytest.importorskip("transformers")

from loraport.cli import app
from loraport.errors import InputError
from loraport.sampling.end_error import require_finite
from loraport.sampling.network import open_network, open_pipeline
from loraport.sampling.places import SampledModel
from loraport.sampling.wan_pipelines import PipelinePair, PipelineSettings
from tests import tiny
from tests.families import canonical_parameter
from tests.sampling.pipelines import CONFIG, tiny_transformer, write_pipeline

pytestmark = pytest.mark.slow

SETTINGS = {"prompts": ("a red ball rolls",), "frames": 5, "height": 32, "width": 32, "source_steps": 2}
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_pipeline(tmp_path_factory.mktemp("pipeline") / "whole", tiny_transformer(0))


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "pipeline")


def same(network, state):
    found = network.state_dict()
    return found.keys() == state.keys() and all(torch.equal(found[name], state[name]) for name in state)


def test_a_plain_file_is_what_diffusers_opens_in_every_dtype(whole):
    for dtype in (torch.float32, torch.bfloat16):
        theirs = WanTransformer3DModel.from_pretrained(whole / "transformer", dtype=dtype)
        ours = open_network(whole / "transformer", dtype)
        assert same(ours, theirs.state_dict()) and not ours.training
        assert {name: p.dtype for name, p in ours.named_parameters()} == {
            n: p.dtype for n, p in theirs.named_parameters()
        }
        for (name, mine), (_, other) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
            assert torch.equal(mine, other), name


def fp8(state):
    coded, meant = {}, {}
    for name, W in state.items():
        if name.startswith("blocks.") and W.ndim == 2 and name.endswith(".weight"):
            scale = W.abs().amax(1, keepdim=True) / 448
            codes = (W / scale).to(torch.float8_e4m3fn)
            coded |= {name: codes, f"{name}_scale": scale}
            meant[name] = codes.float() * scale
        else:
            coded[name] = meant[name] = W
    return coded, meant


def test_scaled_codes_are_sampled_as_what_they_mean(folder):
    """Diffusers drops the scales with a warning: the codes alone are another network."""
    coded, meant = fp8(load_file(folder / WEIGHTS))
    save_file(coded, folder / WEIGHTS)
    assert same(open_network(folder / "transformer", torch.float32), meant)
    theirs = WanTransformer3DModel.from_pretrained(folder / "transformer", dtype=torch.float32)
    assert not same(theirs, meant)


def as_variant(folder):
    (folder / WEIGHTS).rename(folder / "transformer/diffusion_pytorch_model.fp16.safetensors")


def as_original(folder):
    state = load_file(folder / WEIGHTS)
    save_file({canonical_parameter(name) or name: W for name, W in state.items()}, folder / WEIGHTS)


def as_pickle(folder):
    torch.save(load_file(folder / WEIGHTS), folder / "transformer/diffusion_pytorch_model.bin")
    (folder / WEIGHTS).unlink()


@pytest.mark.parametrize("change", [as_variant, as_original, as_pickle])
def test_what_a_transfer_reads_is_sampled(change, folder, whole):
    change(folder)
    assert same(open_pipeline(SampledModel(str(folder), folder), torch.float32).transformer, load_file(whole / WEIGHTS))


def without(name):
    def change(folder):
        state = load_file(folder / WEIGHTS)
        del state[name]
        save_file(state, folder / WEIGHTS)

    return change


def damaged(folder):
    state = load_file(folder / WEIGHTS)
    state["blocks.0.attn1.to_q.weight"][0, 0] = float("nan")
    save_file(state, folder / WEIGHTS)


def configured(**changes):
    def change(folder):
        place = folder / "transformer/config.json"
        place.write_text(json.dumps({**json.loads(place.read_text()), **changes}))

    return change


def no_tokenizer(folder):
    shutil.rmtree(folder / "tokenizer")


def no_encoder_weights(folder):
    for place in (folder / "text_encoder").glob("*.safetensors"):
        place.unlink()


def half_an_encoder(folder):
    place = next((folder / "text_encoder").glob("*.safetensors"))
    place.write_bytes(place.read_bytes()[:500])


def an_encoder_without_one_parameter(folder):
    place = next((folder / "text_encoder").glob("*.safetensors"))
    state = load_file(place)
    state.pop(next(name for name in state if "layer_norm" in name))
    save_file(state, place, metadata={"format": "pt"})


def another_encoder(folder):
    place = folder / "model_index.json"
    place.write_text(json.dumps({**json.loads(place.read_text()), "text_encoder": ["os", "system"]}))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("blocks.1.ffn.net.2.bias"), "lacks 1 parameters"),
        (damaged, "holds NaN or infinite values"),
        (configured(num_layers=3), "lacks"),
        (configured(num_layers=1), "has beside it"),
        (configured(ffn_dim=48), "by .*config.json"),
        (configured(num_layers="two"), "does not describe a WanTransformer3DModel"),
        (no_tokenizer, "the pipeline of .* cannot be opened|has no tokenizer"),
        (no_encoder_weights, "the text encoder of .* cannot be opened"),
        (half_an_encoder, "the text encoder of .* cannot be opened"),
        (an_encoder_without_one_parameter, "text_encoder lacks 1 parameters"),
        (another_encoder, "not a UMT5EncoderModel"),
    ],
)
def test_what_is_missing_or_damaged_is_one_sentence(change, says, folder):
    change(folder)
    with pytest.raises(InputError, match=says) as raised:
        open_pipeline(SampledModel(str(folder), folder), torch.float32)
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("change", "settings", "says"),
    [
        (configured(in_channels=9), {}, "takes 9 channels and gives 4"),
        (configured(in_channels=8, out_channels=8), {}, "4 channels and the target's 8"),
        (configured(in_channels="4"), {}, "in_channels is '4', not a positive whole number"),
        (configured(patch_size=2), {}, "patch_size is 2"),
        (configured(), {"height": 40, "width": 40}, "not a multiple of the 16 × 16 pixels"),
        (configured(), {"height": 0}, "not a multiple of the 16 × 16 pixels"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_opened(change, settings, says, folder, whole):
    change(folder)
    with pytest.raises(InputError, match=says):
        PipelinePair(str(whole), str(folder), PipelineSettings(**{**SETTINGS, **settings}))


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("model_index.json", "[" * 100_000),
        ("model_index.json", '{"_class_name": ["WanPipeline"]}'),
        ("scheduler/scheduler_config.json", '{"_class_name": "__doc__"}'),
        ("scheduler/scheduler_config.json", '{"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": "wide"}'),
        ("transformer/config.json", "[]"),
    ],
)
def test_odd_configurations_are_refused(file, text, folder, whole):
    (folder / file).write_text(text)
    with pytest.raises(InputError):
        PipelinePair(str(whole), str(folder), PipelineSettings(**SETTINGS))


def test_values_that_are_not_finite_end_the_run():
    assert require_finite("target", torch.ones(2)).sum() == 2
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(InputError, match="sampling the target gave values that are not finite"):
            require_finite("target", torch.tensor([1.0, wrong]))


def test_a_damaged_weight_ends_score_with_one_sentence(folder, whole, tmp_path):
    damaged(folder)
    width = CONFIG["num_attention_heads"] * CONFIG["attention_head_dim"]
    lora = tiny.write_lora(
        tmp_path / "lora.safetensors", {"blocks.0.self_attn.q": (torch.ones(width, 1), torch.ones(1, width))}
    )
    words = ["score", "direct", "--lora", str(lora), "--source", str(whole), "--target", str(folder), "--no-cache"]
    sizes = ["--frames", "5", "--size", "32x32", "--source-steps", "1", "--target-steps", "1", "--clips", "2"]
    done = CliRunner().invoke(app, [*words, *sizes])
    assert isinstance(done.exception, InputError) and "to_q.weight" in str(done.exception)
