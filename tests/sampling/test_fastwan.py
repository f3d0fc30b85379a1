"""Targets that re-noise, FastVideo's own pipeline class among them: levels, fresh noise, and the source beside them."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import FlowMatchEulerDiscreteScheduler, FlowMatchLCMScheduler, UniPCMultistepScheduler
from typer.testing import CliRunner

from loraport.cli import app
from loraport.errors import MismatchError, SettingsError
from loraport.sampling.hooks import linear_layers
from loraport.sampling.pair import Clips
from loraport.sampling.schedules import PartialSchedule, find_sampler
from loraport.sampling.wan_pipelines import PipelinePair, PipelineSettings
from loraport.spectral.low_rank import LowRank
from tests.sampling.pipelines import as_fastvideo, drifted, tiny_transformer, write_pipeline
from tests.tiny import write_lora

pytestmark = pytest.mark.slow

SETTINGS = PipelineSettings(("a red ball", "a cat"), frames=5, height=32, width=32, source_steps=3, batch=2)
CLIPS = Clips("fit", 0, 2)


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder, source = tmp_path_factory.mktemp("fastwan"), tiny_transformer(0)
    unipc = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    return {
        "source": str(write_pipeline(folder / "source", source)),
        "fastwan": str(as_fastvideo(write_pipeline(folder / "fastwan", drifted(source), unipc))),
        "dense": str(as_fastvideo(write_pipeline(folder / "dense", drifted(source)), gates=False)),
        "itself": str(write_pipeline(folder / "itself", source, FlowMatchLCMScheduler(shift=1.0))),
        "causal": str(as_fastvideo(write_pipeline(folder / "causal", source), "WanCausalDMDPipeline")),
        "euler": str(write_pipeline(folder / "euler", source, FlowMatchEulerDiscreteScheduler(shift=3.0))),
    }


@pytest.fixture(scope="module")
def adapter():
    generator, layers = torch.Generator().manual_seed(2), linear_layers(tiny_transformer(0))
    return {
        name: LowRank(
            0.3 * torch.randn(layer.out_features, 2, generator=generator),
            torch.randn(2, layer.in_features, generator=generator) / layer.in_features**0.5,
        )
        for name, layer in layers.items()
        if name.startswith("blocks.")
    }


def opened(places, target="fastwan", **changes):
    return PipelinePair(places["source"], places[target], replace(SETTINGS, **changes))


def fastvideo_levels(times, shift):
    """FastVideo's rule: of σ = s u / (1 + (s − 1) u), u in thousandths, the one whose 1000 σ is nearest."""
    grid = [shift * (k / 1000) / (1 + (shift - 1) * k / 1000) for k in range(1, 1001)]
    return [min(grid, key=lambda level: abs(1000 * level - time)) for time in times]


def test_fastwan_looks_where_fastvideo_does(places):
    sampler = opened(places).sampler
    assert sampler.times == (1000, 757, 522) and sampler.renoises
    assert sampler.levels == pytest.approx([*fastvideo_levels((1000, 757, 522), 8.0), 0.0], abs=1e-7)
    assert sampler.levels[1] != pytest.approx(0.757, abs=1e-4)  # the nearest of its thousand, not the timestep itself
    given = opened(places, target_timesteps=(1000, 500))
    assert given.sampler.levels == pytest.approx([*fastvideo_levels((1000, 500), 8.0), 0.0], abs=1e-7)
    assert given.passes.target == 2 and given.target_identity != opened(places).target_identity


def reference(pair, places, clips):
    """The sampler as a loop over clips and steps, in float64."""
    network, noise = drifted(tiny_transformer(0)).double(), pair._noise(clips).double()
    text = pair._text("target", pair.prompts(clips))[0].double()
    times, ends = (1000.0, 757.0, 522.0), []
    for clip, fresh in enumerate(clips.generators("steps")):
        x, levels = noise[clip : clip + 1], [*fastvideo_levels(times, 8.0), 0.0]
        for step, time in enumerate(times):
            with torch.no_grad():
                v = network(x, torch.tensor([time]), text[clip : clip + 1], return_dict=False)[0]
            clean = x - levels[step] * v
            eps = torch.randn(x.shape, generator=fresh).double()
            x = (1 - levels[step + 1]) * clean + levels[step + 1] * eps
        ends.append(x)
    return torch.cat(ends)


def test_the_pipeline_is_the_loop(places):
    """diffusers' WanPipeline with the re-noising scheduler, to rounding; and not where noise or level are others."""
    pair = opened(places)
    wanted, found = reference(pair, places, CLIPS), pair.target(CLIPS, {}).double()
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert (opened(places, target_timesteps=(1000, 700, 522)).target(CLIPS, {}) - wanted).abs().max() > 1e-3
    assert (pair.target(Clips("fit", 0, 2, seed=1), {}) - wanted).abs().max() > 1e-1


@pytest.mark.parametrize("target", ["fastwan", "itself"])
def test_a_clip_is_the_same_in_every_batch(places, adapter, target):
    """And its fresh noise is that of every candidate: paired."""
    pair = opened(places, target)
    both = pair.target(CLIPS, adapter)
    alone = torch.cat([pair.target(one, adapter) for one in CLIPS.batches(1)])
    assert torch.allclose(both, alone, atol=1e-5)
    assert torch.equal(both, pair.target(CLIPS, adapter))


def test_the_source_goes_up_again_with_the_targets_noise(places, adapter):
    """A source of one step from every level on is the re-noising target of the same network, state by state."""
    pair = opened(places, "itself", source_steps=1, source_guidance=1.0, target_timesteps=(1000, 750, 500))
    assert pair.sampler.levels == (1.0, 0.75, 0.5, 0.0) and pair.passes.source == 3
    chain, end = pair.source(CLIPS, adapter), pair.target(CLIPS, adapter)
    assert torch.allclose(chain.end, end, atol=1e-5)
    for evaluation in pair.evaluations:
        clean = chain.states[:, evaluation.step] - evaluation.level * chain.velocities[:, evaluation.step]
        again = pair._sample(
            "target", CLIPS, adapter, chain.states[:, evaluation.step], PartialSchedule(pair_euler(), evaluation.level)
        )
        assert torch.allclose(clean, again[0][1], atol=1e-5)
    assert not torch.allclose(chain.end, pair.target(Clips("fit", 2, 4), adapter), atol=1e-1)


def pair_euler():
    """A scheduler whose one step ends at the clip."""

    class One(FlowMatchEulerDiscreteScheduler):
        def set_timesteps(self, num_inference_steps=None, device=None):
            super().set_timesteps(1, device=device)

    return One(shift=1.0)


SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0),
]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda one: type(one).__name__)
def test_a_run_entered_on_its_way(scheduler):
    scheduler.set_timesteps(4)
    own = scheduler.sigmas.tolist()
    for level, wanted in [(1.0, own), (own[2], own[2:]), (own[2] + 0.01, [own[2] + 0.01, *own[2:]])]:
        entered = PartialSchedule(scheduler, level)
        entered.set_timesteps(4)
        assert entered.sigmas.tolist() == pytest.approx(wanted) and len(entered.timesteps) == len(wanted) - 1
        assert [float(time) for time in entered.timesteps] == pytest.approx([1000 * one for one in wanted[:-1]], abs=1)


def test_a_run_entered_where_it_has_been_ends_alike(places, adapter):
    pair = opened(places, "euler", target_steps=3)
    start = pair._noise(CLIPS)
    states, levels = pair._sample("target", CLIPS, adapter, start)
    again, _ = pair._sample("target", CLIPS, adapter, states[1], PartialSchedule(pair.own, levels[1]))
    assert len(again) == 3 and torch.allclose(again[-1], states[-1], atol=1e-5)
    other, _ = pair._sample("target", CLIPS, adapter, states[1], PartialSchedule(pair.own, levels[1] - 0.1))
    assert not torch.allclose(other[-1], states[-1], atol=1e-3)


@pytest.mark.parametrize(
    ("target", "changes", "error", "says"),
    [
        ("causal", {}, MismatchError, "WanCausalDMDPipeline, which samples frames in turn"),
        ("fastwan", {"target_steps": 4}, SettingsError, "1000,757,522, not in 4 steps; give --target-timesteps"),
        ("fastwan", {"target_timesteps": (522.0, 1000.0)}, SettingsError, "do not fall"),
        ("fastwan", {"target_timesteps": (500.0,)}, SettingsError, "do not fall"),
        ("fastwan", {"target_timesteps": (1000.0, 0.0)}, SettingsError, "do not fall"),
        ("euler", {"target_timesteps": (1000.0, 500.0)}, SettingsError, "FlowMatchEuler.*give --target-steps"),
    ],
)
def test_what_cannot_be_sampled_is_refused(places, target, changes, error, says):
    with pytest.raises(error, match=says):
        opened(places, target, **changes)


def test_a_distilled_model_is_no_source(places):
    with pytest.raises(MismatchError, match="distilled"):
        PipelinePair(places["fastwan"], places["fastwan"], SETTINGS)


def test_left_out_gates_are_told_and_others_are_not_invented(places):
    assert "2 gates of video sparse attention" in opened(places).notes[0]
    assert opened(places, "dense").notes == ()
    assert torch.equal(opened(places).target(CLIPS, {}), opened(places, "dense").target(CLIPS, {}))


def test_stochastic_euler_steps_re_noise_too(tmp_path):
    for stochastic in (False, True):
        scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0, stochastic_sampling=stochastic)
        folder = write_pipeline(tmp_path / str(stochastic), tiny_transformer(0), scheduler)
        assert find_sampler(folder, 2, ()).renoises is stochastic


@pytest.fixture
def asked(places, adapter, tmp_path):
    """The LoRA's file, and the options that name the pair."""
    lora = str(write_lora(tmp_path / "lora.safetensors", {name: (low.B, low.A) for name, low in adapter.items()}))
    return lora, ["--source", places["source"], "--target", places["fastwan"], "--no-cache"]


@pytest.mark.slow
@pytest.mark.parametrize(("more", "told"), [([], [1000, 757, 522]), (["--target-timesteps", "1000,500"], [1000, 500])])
def test_the_schedule_stands_in_the_json_and_in_the_table(asked, more, told):
    lora, pair = asked
    small = ["--frames", "5", "--size", "32x32", "--source-steps", "1", "--clips", "2", *more]
    facts = json.loads(run(["score", "none", "--lora", lora, *pair, *small, "--json"]).stdout)
    assert facts["target_sampler"]["times"] == told and facts["target_sampler"]["renoises"] is True
    assert ("as given" if more else "FastVideo's own") in facts["target_sampler"]["reason"]
    shown = run(["score", "none", "--lora", lora, *pair, *small, "--dry-run"])
    assert f"timesteps {', '.join(map(str, told))}" in shown.stdout and "2 gates" in shown.stderr


def test_the_guard_tells_it_too(asked, tmp_path):
    lora, pair = asked
    sampling = ["--frames", "5", "--size", "32x32", "--source-steps", "1", "--target-timesteps", "1000,500"]
    out, page = tmp_path / "out.safetensors", tmp_path / "page.html"
    choose = ["choose", "direct:0.5", "--lora", lora, *pair, "-o", str(out), "--clips", "2", *sampling]
    done = json.loads(run([*choose, "--report", str(page), "--json"]).stdout)
    assert done["target_sampler"]["times"] == [1000, 500] and any("2 gates" in note for note in done["notes"])
    assert "timesteps 1000, 500" in page.read_text()


def run(words):
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 0, (outcome.output, outcome.exception)
    return outcome
