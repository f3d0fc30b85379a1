"""Every stage of the recipe runs, survives being killed, and gives the same bytes for the same seed."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from safetensors.torch import load_file

from loraport.toy.fit import Schedule, fit, generator_for
from loraport.toy.train import SHIPPED, Recipe, Workshop, train_family

BRIEF = Schedule(steps=2, rate=1e-3, batch=2, warmup=1, save_every=1)
TINY = Recipe(BRIEF, BRIEF, BRIEF, BRIEF, BRIEF, SHIPPED.adapters, trajectories=3, styled_trajectories=2, portion=2)


class PulledPlugError(Exception):
    """Ends a training in the middle of a step."""


def make(out: Path, seed: int = 0, stop_at: tuple[str, int] | None = None) -> list[tuple[str, int]]:
    """Train a tiny family; returns the steps that were really taken."""
    taken: list[tuple[str, int]] = []

    def progress(stage: str, step: int, steps: int, loss: float) -> None:
        taken.append((stage, step))
        if (stage, step) == stop_at:
            raise PulledPlugError

    train_family(Workshop(out, TINY, seed, progress))
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


def test_all_stages_leave_their_files(whole):
    assert set(contents(whole)) == {
        "base/transformer/diffusion_pytorch_model.safetensors",
        "student/transformer/diffusion_pytorch_model.safetensors",
        "judge.safetensors",
        "adapters/noir/adapter_model.safetensors",
        "adapters/retro.safetensors",
        "oracles/noir/adapter_model.safetensors",
        "oracles/retro.safetensors",
    }
    assert not [path for path in whole.rglob("*") if "part" in path.name]


def test_a_second_start_does_nothing(whole):
    assert make(whole) == []


def test_killed_four_times_is_as_if_never_killed(whole, tmp_path):
    for stop_at in [("base", 2), ("student trajectories", 2), ("student", 2), ("retro", 2)]:
        with pytest.raises(PulledPlugError):
            make(tmp_path, stop_at=stop_at)
    taken = make(tmp_path)
    assert taken[0] == ("retro", 2), "the first step, which the checkpoint held, was done again"
    assert equal(contents(tmp_path), contents(whole))


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
