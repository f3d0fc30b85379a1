"""Score and calibration on whole, tiny diffusers pipelines: own schedulers, tokenizer and text encoder included."""

import json
import shutil
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, UniPCMultistepScheduler
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from loraport.cli import app
from loraport.errors import InputError, LoraportError, MismatchError
from loraport.files.lora.read import read_lora
from loraport.merging import merge
from loraport.sampling.calibration.run import CalibrationSettings, calibrate
from loraport.sampling.end_error import EndEffect
from loraport.sampling.hooks import fingerprint, linear_layers
from loraport.sampling.pair import Chain, Clips
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.places import find_model
from loraport.sampling.samples import SampleStore
from loraport.sampling.score import score
from loraport.sampling.wan_pipelines import PipelinePair, PipelineSettings, at_levels
from loraport.spectral.low_rank import LowRank
from tests.compare.pipelines import anyflow_transformer, write_anyflow
from tests.sampling.pipelines import as_fastvideo, drifted, tiny_transformer, write_pipeline
from tests.tiny import write_lora

SETTINGS = {"prompts": ("a red ball", "a cat"), "frames": 5, "height": 32, "width": 32, "source_steps": 3, "batch": 2}
CLIPS = Clips("fit", 0, 2)
SIZES = [
    "--frames",
    "5",
    "--size",
    "32x32",
    "--source-steps",
    "3",
    "--target-steps",
    "2",
    "--clips",
    "2",
    "--batch",
    "2",
]


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("pipelines"), tiny_transformer(0)
    target = drifted(source)
    schedulers = {
        "euler": FlowMatchEulerDiscreteScheduler(shift=5.0),
        "unipc": UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
        "renoise": FlowMatchLCMScheduler(shift=3.0),
    }
    found = {name: str(write_pipeline(folder / name, target, one)) for name, one in schedulers.items()}
    fastwan = as_fastvideo(write_pipeline(folder / "fastwan", target, schedulers["unipc"]))
    return found | {
        "fastwan": str(fastwan),
        "anyflow": str(write_anyflow(folder / "anyflow", flow_map_of(target))),
        "source": str(write_pipeline(folder / "source", source)),
        "itself": str(write_pipeline(folder / "itself", source)),
    }


@pytest.fixture(scope="module")
def adapter():
    generator = torch.Generator().manual_seed(2)
    return {
        name: LowRank(
            0.3 * torch.randn(layer.out_features, 2, generator=generator),
            torch.randn(2, layer.in_features, generator=generator) / layer.in_features**0.5,
        )
        for name, layer in linear_layers(tiny_transformer(0)).items()
        if name.startswith("blocks.")
    }


def flow_map_of(network):
    """AnyFlow with the weights of a Wan network wherever it has them."""
    flow = anyflow_transformer(0)
    flow.load_state_dict(network.state_dict(), strict=False)
    return flow


def opened(places, target, **changes):
    steps = {} if target == "fastwan" or "target_timesteps" in changes else {"target_steps": 2}
    return PipelinePair(places["source"], places[target], PipelineSettings(**{**SETTINGS, **steps, **changes}))


def effect_of(pair, adapter, store=None):
    return EndEffect(pair, adapter, Clips("fit", 0, 2), store or SampleStore(None), PassCounter(1))


@pytest.mark.slow
@pytest.mark.parametrize("target", ["euler", "unipc", "renoise", "fastwan", "anyflow"])
def test_every_scheduler_is_scored(places, adapter, target):
    pair = opened(places, target)
    effect = effect_of(pair, adapter)
    rows = score(effect, adapter, {"direct": adapter, "none": {}})
    assert rows[1].error.value > 0 and rows[0].error.value > 0 and rows[1].left.value == 1
    again = effect_of(pair, adapter)
    assert torch.equal(effect.wanted[0], again.wanted[0])  # the noise of re-noising schedulers is drawn again alike
    assert pair.prompts(Clips("fit", 0, 3)) == ("a red ball", "a cat", "a red ball")


@pytest.mark.slow
def test_a_flow_map_is_run_as_its_own_pipeline_runs_it(places, adapter):
    """Its evaluations, put together by their weights, end where diffusers' pipeline ends; in any number of steps."""
    for steps in (2, 3):
        pair = opened(places, "anyflow", target_steps=steps)
        assert len(pair.sampler.levels) == steps + 1 and not pair.sampler.renoises
        states = [pair._noise(CLIPS)]
        for one in pair.evaluations:
            chain = Chain(torch.stack([*states, *states[-1:] * 9], dim=1), torch.zeros(1))
            states.append(states[-1] - one.weight * pair.velocity(one, CLIPS, chain))
        assert torch.allclose(states[-1], pair.target(CLIPS, {}), atol=1e-5)
    changed = pair.target(CLIPS, adapter)
    assert not torch.allclose(changed, states[-1], atol=1e-3)
    with pytest.raises(MismatchError, match="is a AnyFlowPipeline, a distilled model"):
        PipelinePair(places["anyflow"], places["source"], PipelineSettings(**SETTINGS))


@pytest.mark.slow
def test_a_target_that_is_the_source_leaves_direct_without_error(places, adapter):
    pair = opened(places, "itself", target_steps=3, source_guidance=1.0)
    rows = score(effect_of(pair, adapter), adapter, {"direct": adapter, "none": {}})
    assert rows[0].error.value == pytest.approx(0, abs=1e-9)
    assert rows[1].error.value > 1e-6
    done = calibrate(pair, adapter, settings=CalibrationSettings(clips=2))
    assert fingerprint(done.updates) == fingerprint(adapter) and not done.steps


@pytest.mark.slow
@pytest.mark.parametrize(("target", "gains"), [("euler", "type"), ("fastwan", "none")])
def test_calibration_lowers_the_error_it_was_accepted_on(places, adapter, target, gains):
    pair = opened(places, target)
    settings = CalibrationSettings(clips=2, gains=gains)
    done = calibrate(pair, adapter, settings=settings)
    check = EndEffect(pair, adapter, settings.roles[1], SampleStore(None), PassCounter(1))
    assert float(check.errors(done.updates).mean()) < float(check.errors(adapter).mean())
    assert any(step.stride for step in done.steps)


@pytest.mark.slow
def test_readout_says_why_it_cannot_look_inside(places, adapter):
    for target in ("renoise", "euler"):
        pair = opened(places, target, target_guidance=3.0)
        with pytest.raises(LoraportError, match="guidance"):
            calibrate(pair, adapter, settings=CalibrationSettings(clips=1, gains="none"))
    done = calibrate(pair, adapter, settings=CalibrationSettings(clips=1, readout=False))
    assert set(done.updates) == set(adapter)


def accelerator(folder, layers=2, seed=3):
    """A LoRA on some blocks with a bias beside it, in a file of its own, and the network with both in its weights."""
    generator, network = torch.Generator().manual_seed(seed), tiny_transformer(0)
    pairs = {}
    for name, layer in linear_layers(network).items():
        if name.startswith("blocks.0."):
            B = 0.2 * torch.randn(layer.out_features, layers, generator=generator)
            pairs[name] = B, torch.randn(layers, layer.in_features, generator=generator) / layer.in_features**0.5
    path = write_lora(folder / "accelerator+fast.safetensors", pairs)
    state = load_file(path)
    bias = torch.full((24,), 0.05)
    save_file({**state, "diffusion_model.blocks.1.self_attn.q.diff_b": bias}, path)
    return path


@pytest.mark.slow
def test_a_target_with_an_accelerator_is_the_merged_model(places, adapter, tmp_path):
    """Its factors run beside the weights, its bias is in them; strength 0 is the bare model."""
    file = accelerator(tmp_path)
    whole = shutil.copytree(places["source"], tmp_path / "merged")
    weights = whole / "transformer" / "diffusion_pytorch_model.safetensors"
    for strength in (1, 0.5):
        merge(str(Path(places["source"]) / "transformer"), [f"{file}*{strength}"], str(tmp_path / f"m{strength}"))
        shutil.copy(tmp_path / f"m{strength}" / weights.name, weights)
        wanted = opened({**places, "merged": str(whole)}, "merged").target(CLIPS, adapter)
        for text in (f"source+{file}*{strength}", f"{places['source']}+{file}*{strength}"):
            pair = opened({**places, "sum": text}, "sum")
            assert torch.allclose(pair.target(CLIPS, adapter), wanted, atol=1e-4)
            assert pair.target_identity != opened(places, "itself").target_identity
    pair = opened({**places, "sum": f"source+{file}*0"}, "sum")
    assert torch.allclose(pair.target(CLIPS, adapter), opened(places, "itself").target(CLIPS, adapter), atol=1e-5)
    assert not torch.allclose(pair.target(CLIPS, adapter), wanted, atol=1e-2)


@pytest.mark.slow
def test_several_accelerators_add_up(places, tmp_path):
    file = accelerator(tmp_path)
    once = opened({**places, "sum": f"source+{file}"}, "sum").target(CLIPS, {})
    twice = opened({**places, "sum": f"source+{file}*0.5+{file}*0.5"}, "sum").target(CLIPS, {})
    assert torch.allclose(once, twice, atol=1e-5)


@pytest.mark.slow
def test_a_network_alone_takes_the_rest_from_a_pipeline(places, adapter, tmp_path):
    alone = tmp_path / "network.safetensors"
    shutil.copy(Path(places["unipc"]) / "transformer" / "diffusion_pytorch_model.safetensors", alone)
    wanted = opened(places, "unipc").target(CLIPS, adapter)
    pair = opened({**places, "alone": str(alone)}, "alone", pipeline=places["unipc"])
    assert torch.equal(pair.target(CLIPS, adapter), wanted) and pair.notes == ()
    pair = opened({**places, "alone": str(alone)}, "alone")
    assert "are the source's" in pair.notes[0] and not torch.equal(pair.target(CLIPS, adapter), wanted)
    with pytest.raises(InputError, match="--pipeline wan"):
        opened({**places, "source": str(alone)}, "unipc")
    with pytest.raises(InputError, match=r"has no model_index\.json: give a whole"):
        opened({**places, "alone": str(alone)}, "alone", pipeline=str(tmp_path))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("source+", "missing the model or"),
        ("+a.safetensors", "missing the model or"),
        ("source+missing.safetensors", "no accelerator .* is there"),
        ("missing.safetensors", "is not there"),
        ("source", "only the target"),
        ("{source}/transformer", "one part of a pipeline"),
    ],
)
def test_a_place_that_is_none_is_one_sentence(places, text, says):
    with pytest.raises(InputError, match=says):
        find_model(text.format(**places), source=None if text == "source" else places["source"])


def test_one_pipeline_is_open_at_a_time(places, adapter):
    pair = opened(places, "euler")
    pair.source(Clips("fit", 0, 1), {})
    assert pair.open[0] == "source"
    pair.target(Clips("fit", 0, 1), {})
    assert pair.open[0] == "target" and pair.open[1].vae is None


def test_states_are_read_off_the_straight_lines():
    states = torch.tensor([[0.0, 1.0, 3.0]])[..., None]
    found = at_levels(states, [1.0, 0.5, 0.0], [1.0, 0.75, 0.25, 0.0])
    assert found.flatten().tolist() == [0.0, 0.5, 2.0, 3.0]


def test_what_is_no_pipeline_is_refused(places, tmp_path):
    with pytest.raises(InputError, match=r"no model_index\.json"):
        PipelinePair(str(tmp_path), places["euler"], PipelineSettings(**SETTINGS))
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(MismatchError, match="FluxPipeline"):
        PipelinePair(str(tmp_path), places["euler"], PipelineSettings(**SETTINGS))


@pytest.mark.slow
def test_from_files_to_a_file(places, adapter, tmp_path):
    """`calibrate`, then `score` on what it wrote, through the command line."""
    lora = write_lora(tmp_path / "lora.safetensors", {name: (low.B, low.A) for name, low in adapter.items()})
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out.safetensors"
    prompts.write_text("a red ball rolls\n\na cat\n")
    common = ["--source", places["source"], "--target", places["euler"], *SIZES, "--prompts", str(prompts), "--json"]
    estimate = run(["calibrate", str(lora), *common, "-o", str(out), "--dry-run"])
    assert estimate["dry_run"] and estimate["passes"]["source"] == 4 * 2 * 6 and not out.exists()
    done = run(["calibrate", str(lora), *common, "-o", str(out)])
    assert done["kept"] in ("direct", "calibrated") and sum(done["passes"].values()) <= sum(estimate["passes"].values())
    written = read_lora(out)
    assert (
        set(written.layers) == set(adapter) and json.loads(written.metadata["loraport.guard"])["kept"] == done["kept"]
    )
    first = out.read_bytes()
    run(["calibrate", str(lora), *common, "-o", str(out), "--overwrite"])
    assert out.read_bytes() == first
    scored = run(["score", str(out), "none", "direct:1.15", "--lora", str(lora), *common])
    assert [row["candidate"] for row in scored["scores"]] == ["direct", str(out), "none", "direct:1.15"]
    again = run(["score", str(out), "none", "direct:1.15", "--lora", str(lora), *common])
    assert again["scores"] == scored["scores"] and again["passes"] == {"source": 0, "target": 0}


def run(words):
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return json.loads(outcome.stdout)
