"""Estimates: the table against layers that were measured, sizes against files, and the words of a dry run."""

import shutil
from pathlib import Path

import pytest
import torch

from loraport.estimates import estimate as estimates
from loraport.estimates import machine
from loraport.estimates.estimate import estimate, output_bytes
from loraport.estimates.layer_cost import CARD, layer_seconds, transfer_cost
from loraport.inputs.config import RankRule
from loraport.inputs.open import prepare, prepare_many
from loraport.methods.recipes import METHODS, find_recipe
from loraport.transfers.dry_run import dry_run, duration
from loraport.transfers.passes import Pass
from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import make_family

MEASURED = {
    # shape: cold seconds of read, basis and routing together, warm ones, and casa's own
    (768, 768): (0.1599, 0.0173, 0.1617),
    (1536, 1536): (1.0731, 0.0704, 0.1959),
    (3072, 768): (0.3607, 0.0354, 0.3362),
    (8960, 1536): (3.0788, 0.188, 0.3028),
    (1536, 8960): (3.1192, 0.2542, 0.3095),
    (3072, 3072): (8.6747, 0.3756, 0.6389),
    (5120, 5120): (45.1515, 1.1591, 1.8291),
    (13824, 5120): (67.3678, 2.7549, 2.8147),
}
"""What `benchmarks.layer_costs` measured, one thread, on the machine of the table in docs/explanation/speed.md."""


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("family"))


@pytest.fixture(autouse=True)
def usual_speed(monkeypatch):
    monkeypatch.setattr(estimates, "slowness", lambda: 1.0)


@pytest.mark.parametrize(("shape", "seconds"), MEASURED.items(), ids=str)
def test_the_table_says_what_was_measured(shape, seconds):
    cost = layer_seconds(shape, find_recipe("casa"))
    assert cost.shared == pytest.approx(seconds[0], rel=0.25)
    assert cost.shared_again == pytest.approx(seconds[1], rel=0.3)
    assert cost.shared + cost.own == pytest.approx(seconds[0] + seconds[2], rel=0.35)


@pytest.mark.parametrize("method", METHODS)
def test_larger_layers_cost_more_and_a_card_less(method):
    recipe = find_recipe(method)
    sizes = [(256, 256), (1536, 1536), (8960, 1536), (5120, 5120), (13824, 5120)]
    costs = [layer_seconds(shape, recipe).shared + layer_seconds(shape, recipe).own for shape in sizes]
    assert costs == sorted(costs)
    big = layer_seconds((5120, 5120), recipe, CARD)
    assert not recipe.needs_basis or big.shared + big.own < costs[3] / 5  # reading is the processor's
    assert layer_seconds((1536, 1536), find_recipe("direct")).shared < layer_seconds((1536, 1536), recipe).shared + 1e-9


def test_what_runs_share_is_paid_once(family):
    casa = prepare(family.config("a.safetensors"))
    undo = prepare(family.config("b.safetensors", method="undo"))
    both = prepare_many([family.config("a.safetensors"), family.config("b.safetensors", method="undo")])
    alone = estimate([casa]).seconds + estimate([undo]).seconds
    assert estimate([casa]).seconds < estimate(both).seconds < alone
    assert transfer_cost(undo) < transfer_cost(casa)


@pytest.mark.parametrize(
    "changes",
    [{}, {"rank": RankRule("fixed", 3)}, {"as_diff": True}, {"dtype": "bf16"}, {"method": "direct"},
     {"exclude": ("ffn",)}, {"rank": RankRule("full")}],
    ids=str,
)  # fmt: skip
def test_the_output_is_as_large_as_was_said(family, changes):
    config = family.config("sized.safetensors", **changes)
    said = output_bytes(prepare(config))
    transfer(config)
    size = Path(config.output).stat().st_size
    header = int.from_bytes(Path(config.output).read_bytes()[:8], "little")
    assert said == pytest.approx(size - header, rel=0.02, abs=200)


def test_the_cache_is_as_large_as_was_said(tmp_path):
    shapes = {"blocks.0.self_attn.q": (256, 256), "blocks.0.ffn.0": (512, 256), "blocks.0.ffn.2": (256, 512)}
    source = {f"{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    target = {name: W + 0.1 * torch.randn_like(W) for name, W in source.items()}
    config_of = make_family(tmp_path).config
    config = config_of(
        "o.safetensors",
        source=str(tiny.write_original(tmp_path / "s.safetensors", source)),
        target=str(tiny.write_original(tmp_path / "t.safetensors", target)),
        lora=str(tiny.write_lora(tmp_path / "l.safetensors", tiny.lora_factors(source))),
        cache=str(tmp_path / "kept"),
    )
    said = estimate([prepare(config)])
    transfer(config)
    size = sum(path.stat().st_size for path in (tmp_path / "kept").rglob("*.safetensors"))
    assert said.cache_bytes == pytest.approx(size, rel=0.06)
    shutil.rmtree(tmp_path / "kept")
    assert estimate([prepare(config_of("o.safetensors", cache=None))]).cache_bytes == 0


def test_a_dry_run_is_at_most_ten_lines(family, capsys):
    from loraport.console import print_dry_run

    config = family.config("o.safetensors", exclude=("ffn",))
    dry = dry_run([Pass((config,), notes=("one note", "another"))])
    print_dry_run(dry, json=False, verbose=False)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 10 and lines[0].split() == "would move 16 of 20 layers, by casa".split()
    assert not any(line.startswith("transfer ") for line in lines) and "more notes: -v" in "".join(lines)
    print_dry_run(dry, json=False, verbose=True)
    assert len([line for line in capsys.readouterr().out.splitlines() if line.startswith("transfer ")]) == 16
    facts = dry.as_json()["estimate"]
    assert facts["memory_bytes"] > 10**7 and facts["output_bytes"] > 1000 and facts["download_bytes"] == 0
    assert 0 < facts["seconds_again"] < facts["seconds"] < 60


def test_times_are_said_as_people_do():
    assert [duration(seconds) for seconds in (0.2, 20, 100, 3600, 7800, 90_000)] == [
        "under a second", "about 20 s", "about 2 min", "about 60 min", "about 2 h 10 min", "about 25 h",
    ]  # fmt: skip


def test_this_machine_is_measured_once():
    machine.slowness.cache_clear()
    assert 0.05 < machine.slowness() < 100 and machine.slowness() == machine.slowness()
