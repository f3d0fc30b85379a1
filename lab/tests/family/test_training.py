"""Every stage of the recipe runs, survives being killed, and gives the same bytes for the same seed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from safetensors.torch import load_file

from loraport.errors import SettingsError
from loraport_lab.family.clips import draw_prompts, embed, render_effect, to_latents
from loraport_lab.family.family import ADAPTERS, STUDENTS
from loraport_lab.family.model import Size, new_model, predict_clean, prepared
from loraport_lab.family.sample import BASE_STEPS, draw_noise, euler_step, sample_student, student_levels, trajectory
from loraport_lab.training.distill import KEPT, Matching, Trajectories, denoising_loss, landing_error, regression_loss
from loraport_lab.training.fit import Schedule, fit, generator_for
from loraport_lab.training.recipe import Recipe, Rounds
from loraport_lab.training.stages import TrainingJob, train_base
from loraport_lab.training.train import needed, plan, train_family

BRIEF = Schedule(steps=2, rate=1e-3, batch=2, warmup=1, save_every=1)
SMALL = Size(width=64, blocks=2)
CELLS = ("causal/swing", "matched/neon", "accelerator/noir")
ALL = (*STUDENTS, *ADAPTERS, *CELLS)
TINY = Recipe(
    base=BRIEF,
    judge=BRIEF,
    students=dict.fromkeys(STUDENTS, BRIEF),
    matching=BRIEF,
    adapters=dict.fromkeys(ADAPTERS, BRIEF),
    oracle=Rounds(BRIEF, most=2, gain=0.0),
    trajectories=3,
    styled=2,
    held_out=1,
    portion=2,
    size=SMALL,
)


class PulledPlugError(Exception):
    """Ends a training in the middle of a step."""


def make(out: Path, seed: int = 0, stop_at: tuple[str, int] | None = None) -> list[tuple[str, int]]:
    """Train a tiny family; returns the steps that were really taken."""
    taken: list[tuple[str, int]] = []

    def progress(stage: str, step: int, steps: int, loss: float) -> None:
        taken.append((stage, step))
        if (stage, step) == stop_at:
            raise PulledPlugError

    train_family(TrainingJob(out, TINY, seed, progress), only=ALL)
    return taken


def contents(out: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {
        str(path.relative_to(out)): load_file(path)
        for path in sorted(out.rglob("*.safetensors"))
        if "checkpoints" not in path.parts
    }


def equal(one: dict[str, dict[str, torch.Tensor]], two: dict[str, dict[str, torch.Tensor]]) -> bool:
    return one.keys() == two.keys() and all(
        one[file].keys() == two[file].keys() and all(torch.equal(one[file][key], two[file][key]) for key in one[file])
        for file in one
    )


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("family")
    torch.set_num_threads(1)
    make(out)
    return out


@pytest.mark.slow
def test_all_stages_leave_their_files(whole):
    models = ["base", *(f"students/{name}" for name, student in STUDENTS.items() if not student.accelerator)]
    assert set(contents(whole)) == {
        *(f"{model}/transformer/diffusion_pytorch_model.safetensors" for model in models),
        "students/accelerator.safetensors",
        "judge.safetensors",
        *(f"adapters/{name}/adapter_model.safetensors" for name in ("noir", "swing")),
        *(f"adapters/{name}.safetensors" for name in ("retro", "neon", "noir-b")),
        *(f"oracles/{cell}.safetensors" for cell in CELLS),
    }
    assert not [path for path in whole.rglob("*") if "part" in path.name]


@pytest.mark.slow
def test_a_second_start_does_nothing(whole):
    assert make(whole) == []


@pytest.mark.slow
def test_only_what_a_cell_needs_is_made(whole):
    steps = plan(TrainingJob(whole, TINY, 0, print))
    assert list(needed(steps, ["causal/swing"])) == [
        "base", "judge", "trajectories", "swing", "causal", "swing-trajectories", "causal/swing",
    ]  # fmt: skip
    with pytest.raises(SettingsError, match=r"stage.*causal/swing"):
        needed(steps, ["causal/swung"])


def without(whole: Path, out: Path, *stages: str) -> Path:
    """A copy of the family that lacks what these stages made, so that only they are left to do."""
    shutil.copytree(whole, out, dirs_exist_ok=True)
    steps = plan(TrainingJob(out, TINY, 0, print))
    for place in (*(steps[stage].result for stage in stages), *(out / "checkpoints").glob("*")):
        stage = place.name.removesuffix(".done").removesuffix(".pt").removesuffix("-matching")
        if place.parent.name != "checkpoints" or stage in stages or any(one.startswith(f"{stage}/") for one in stages):
            shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)
    return out


@pytest.mark.slow
def test_killed_five_times_is_as_if_never_killed(whole, tmp_path):
    left = ("base", "trajectories", "swing", "swing-trajectories", "causal", "matched", "causal/swing")
    without(whole, tmp_path, *left)
    for stop_at in [
        ("base", 2),
        ("trajectories", 2),
        ("swing", 2),
        ("matched-matching", 1),
        ("causal/swing/1", 1),
    ]:
        with pytest.raises(PulledPlugError):
            make(tmp_path, stop_at=stop_at)
    taken = make(tmp_path)
    assert taken and ("base", 1) not in taken and ("causal/swing/0", 1) not in taken, "steps were done again"
    assert equal(contents(tmp_path), contents(whole))


@pytest.mark.slow
def test_stages_side_by_side_give_the_same_bytes(whole, tmp_path):
    """In the order that they need: the oracle waits for the student and for the adapter's trajectories."""
    without(whole, tmp_path, "noir", "swing", "swing-trajectories", "causal", "causal/swing")
    train_family(TrainingJob(tmp_path, TINY, 0, print), jobs=2, only=ALL)
    assert equal(contents(tmp_path), contents(whole))


@pytest.mark.slow
def test_an_oracle_says_how_it_was_trained(whole):
    curve = json.loads((whole / "oracles/causal/swing.json").read_text())["held_out"]
    assert 1 <= len(curve) <= 1 + TINY.oracle.most and sorted(curve, reverse=True) == curve


@pytest.mark.slow
def test_another_seed_gives_other_weights(whole, tmp_path):
    with pytest.raises(PulledPlugError):
        make(tmp_path, seed=1, stop_at=("judge", 1))
    file = "base/transformer/diffusion_pytorch_model.safetensors"
    ours, theirs = load_file(tmp_path / file), contents(whole)[file]
    assert not torch.equal(ours["proj_out.weight"], theirs["proj_out.weight"])


def test_fit_learns_and_stops_where_the_optimum_is(tmp_path):
    module = torch.nn.Linear(3, 1, bias=False)
    truth = torch.tensor([[1.0, -2.0, 0.5]])

    def loss(generator: torch.Generator) -> torch.Tensor:
        x = torch.randn(32, 3, generator=generator)
        return (module(x) - x @ truth.T).square().mean()

    schedule = Schedule(steps=300, rate=0.05, batch=32, average=0.9)
    fit("line", module, loss, schedule, seed=0, checkpoint=tmp_path / "line.pt", progress=lambda *_: None)
    assert torch.allclose(module.weight, truth, atol=0.01)


def test_the_rate_warms_up_stays_and_falls():
    schedule = Schedule(steps=100, rate=1.0, batch=1, warmup=10, fall=0.5)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9:51] == [1.0] * 42 and rates[99] == pytest.approx(0.02)
    assert replace(schedule, steps=200).rate_at(60) == 1.0


def test_randomness_depends_on_the_place_alone():
    draw = [
        torch.rand(4, generator=generator_for(*place)) for place in ((0, "a", 1), (0, "a", 1), (0, "a", 2), (1, "a", 1))
    ]
    assert torch.equal(draw[0], draw[1])
    assert not torch.equal(draw[0], draw[2]) and not torch.equal(draw[0], draw[3])


@pytest.fixture(scope="module")
def given() -> Trajectories:
    """Real trajectories, of an untrained base."""
    rng = torch.Generator().manual_seed(0)
    prompts, noise = draw_prompts(3, rng), draw_noise(3, rng)
    states = list(trajectory(new_model(1, SMALL), prompts, noise))
    return Trajectories(prompts, torch.stack([states[step] for step in KEPT], dim=1))


@pytest.mark.parametrize("name", [name for name, student in STUDENTS.items() if student.sampler != "renoise"])
def test_whoever_follows_the_trajectory_has_no_loss_and_lands_at_its_end(name, given):
    student = STUDENTS[name]
    states, levels = given.at(student, torch.arange(3)), student_levels(student)

    class Knows(torch.nn.Module):
        """From a kept state of a clip it predicts the clean latents whose step leads to the next kept state."""

        def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict):
            frames = hidden_states.shape[2]
            now = timestep.reshape(len(hidden_states), -1)[
                :, :: max(1, timestep.shape[-1] // frames) if timestep.ndim == 2 else 1
            ]
            now = now.expand(-1, frames) / 1000
            clean = hidden_states.clone()
            for clip in range(len(hidden_states)):
                row = int((given_text == encoder_hidden_states[clip]).flatten(1).all(1).nonzero()[0])
                for frame in range(frames):
                    step = int((levels - now[clip, frame]).abs().argmin())
                    if step < len(student.steps):
                        start, end = states[row, step, :, frame], states[row, step + 1, :, frame]
                        kept = levels[step + 1] / levels[step]
                        clean[clip, :, frame] = (end - kept * start) / (1 - kept)
            return (clean,)

    given_text = embed(given.prompts)
    assert len(given_text.flatten(1).unique(dim=0)) == 3, "prompts tell the clips apart"
    loss = regression_loss(Knows(), student, given, 8, torch.Generator().manual_seed(1))
    assert float(loss) < 1e-9 and landing_error(Knows(), student, given) < 1e-9
    untrained = prepared(new_model(2, SMALL), student)
    assert float(regression_loss(untrained, student, given, 8, torch.Generator().manual_seed(1)).detach()) > 1e-3
    assert landing_error(untrained, student, given) > 1e-3


def test_the_students_turn_pulls_towards_the_base_and_the_critics_turn_moves_the_critic_alone(given):
    student = STUDENTS["matched"]
    made, critic, base = (new_model(seed, SMALL).requires_grad_(seed != 5) for seed in (3, 4, 5))
    matching = Matching(student, made, critic)
    turns = {}
    for seed in range(12):
        matching.zero_grad(set_to_none=True)
        torch.autograd.backward(matching.loss(base, 2, torch.Generator().manual_seed(seed)))
        moved = tuple(any(w.grad is not None for w in part.parameters()) for part in (made, critic))
        turns[moved] = turns.get(moved, 0) + 1
    assert set(turns) == {(True, False), (False, True)} and turns[False, True] > turns[True, False]
    matching.critic.load_state_dict(
        base.state_dict()
    )  # a critic that cannot tell student and base apart but by guidance
    assert all(weight.grad is None for weight in base.parameters())


@pytest.mark.parametrize("name", STUDENTS)
def test_every_loss_is_taken_where_the_network_is(name, given):
    """The meta device computes nothing but refuses, as a card does, what lies elsewhere."""
    student, away, rng = STUDENTS[name], torch.device("meta"), torch.Generator().manual_seed(0)
    model, critic, base = (prepared(new_model(seed, SMALL), student).to(away) for seed in (1, 2, 3))
    losses = [regression_loss(model, student, given, 4, rng)]
    if student.sampler == "renoise":
        matching = Matching(student, model, critic)
        losses += [matching.loss(base, 2, torch.Generator().manual_seed(seed)) for seed in range(6)]
    clean = to_latents(render_effect(given.prompts, rng, "noir"))
    losses.append(denoising_loss(model, clean.to(away), embed(given.prompts), rng))
    for loss in losses:
        torch.autograd.backward(loss)
        assert loss.device == away and model.proj_out.weight.device == away
    with torch.no_grad():
        noise = draw_noise(2, rng, len(student.steps)).to(away)
        assert sample_student(model, student, given.prompts[:2], noise).device == away
        assert list(trajectory(model, given.prompts[:2], noise))[-1].device == away
    with pytest.raises(RuntimeError, match="device"):
        torch.autograd.backward(denoising_loss(model, clean, embed(given.prompts), rng))


def test_no_frame_of_a_streaming_student_sees_the_future():
    student = STUDENTS["causal"]
    model, rng = prepared(new_model(6, SMALL), student).eval(), torch.Generator().manual_seed(0)
    prompts, noise = draw_prompts(2, rng), draw_noise(2, rng, 2)
    other = noise.clone()
    other[:, :, :, 2:] = torch.randn(other[:, :, :, 2:].shape, generator=rng)
    one, two = (sample_student(model, student, prompts, start) for start in (noise, other))
    assert torch.equal(one[:, :, :2], two[:, :, :2])
    assert not torch.allclose(one[:, :, 2:], two[:, :, 2:])
    level = torch.full((2, 4), 0.5)
    seen = [
        predict_clean(network, start[:, 0], level, embed(prompts))
        for network in (model, new_model(6, SMALL))
        for start in (noise, other)
    ]
    assert torch.allclose(seen[0][:, :, :2], seen[1][:, :, :2], atol=1e-6)
    assert not torch.allclose(seen[2][:, :, :2], seen[3][:, :, :2], atol=1e-6), "without the mask it does see it"


def test_an_euler_step_of_the_true_clean_clip_stays_on_the_line():
    clean, noise = torch.randn(2, 3), torch.randn(2, 3)
    now, then = torch.tensor(0.8), torch.tensor(0.3)
    assert torch.allclose(euler_step(0.2 * clean + 0.8 * noise, clean, now, then), 0.7 * clean + 0.3 * noise, atol=1e-6)
    assert KEPT[-1] == BASE_STEPS and all(set(student.steps) <= set(KEPT) for student in STUDENTS.values())


def test_only_a_base_that_is_to_be_compiled_is_compiled(tmp_path, monkeypatch):
    """The compiler itself takes half a minute; here what it returns is the network, so the bytes must be the same."""
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda module: compiled.append(module) or module)
    for name, wish in (("plain", False), ("fused", True)):
        train_base(TrainingJob(tmp_path / name, TINY, 0, lambda *_: None, compiled=wish))
        assert len(compiled) == wish
    assert equal(contents(tmp_path / "plain"), contents(tmp_path / "fused"))
