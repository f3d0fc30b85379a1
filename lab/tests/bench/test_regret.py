"""Regret is counted from the best rule of each cell, found on other prompts, and luck is no regret."""

from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

from loraport.diagnosis.rule.advice import Thresholds
from loraport.diagnosis.rule.measured_map import measured_map
from loraport_lab.bench.regret import advised, best_on_other_half, fixed_rules, regrets
from loraport_lab.bench.rows import FRAME, MAIN

CLIPS = 40
PROMPTS = tuple(map(str, range(CLIPS)))
EASY = torch.linspace(-3, 3, CLIPS)


def cell(
    name: str, *, discriminating: bool = True, noise: float = 0.0, head: float = 0.3, accelerator: bool = False,
    **means: float,
):  # fmt: skip
    """A cell whose rules have these mean fidelities; the clips' own difficulty is shared."""
    groups = {"direct": "frame", "oracle": "frame", "swept": "control", "gains": "calibrated"}
    rows = {}
    for place, (rule, mean) in enumerate(means.items()):
        luck = noise * torch.randn(CLIPS, generator=torch.Generator().manual_seed(place))
        values = {"psnr": mean + EASY + luck}
        facts = {"chosen": "undo" if rule == "swept" else None}
        rows[rule] = SimpleNamespace(row=rule, group=groups.get(rule, "method"), values=values, facts=facts)
    return SimpleNamespace(
        cell=SimpleNamespace(name=name, student=SimpleNamespace(accelerator=accelerator)),
        premises={"head_drift": torch.tensor([head, head + 0.1, float("nan"), head - 0.1])},
        rows=rows,
        prompts=PROMPTS,
        admission=SimpleNamespace(discriminating=discriminating),
    )


ONE = cell("a", direct=20.0, casa=21.0, undo=20.5, oracle=25.0, swept=26.0, gains=27.0)
OTHER = cell("b", discriminating=False, direct=20.0, casa=18.0, undo=20.4, oracle=25.0, swept=26.0, gains=27.0)


def test_the_regret_of_a_rule_is_what_the_best_of_each_cell_has_more():
    found = {line.rule: line for line in regrets([ONE, OTHER], "psnr")}
    assert found["undo"].all_cells.value == pytest.approx((0.5 + 0) / 2)
    assert found["casa"].all_cells.value == pytest.approx((0 + 2.4) / 2)
    assert (found["casa"].worst, found["casa"].worst_cell) == (pytest.approx(2.4), "b")
    assert found["casa"].discriminating.value == pytest.approx(0)
    assert [line.rule for line in regrets([ONE, OTHER], "psnr")] == [
        "advised (undo everywhere)",
        "undo",
        "direct",
        "casa",
    ]


def test_good_advice_has_no_regret_and_bad_advice_all_of_it():
    good = regrets([ONE, OTHER], "psnr", lambda cell: {"a": "casa", "b": "undo"}[cell.cell.name])[0]
    assert (good.rule, good.all_cells.value) == ("advised (2 rules)", pytest.approx(0))
    bad = regrets([ONE, OTHER], "psnr", lambda cell: {"a": "direct", "b": "casa"}[cell.cell.name])[0]
    assert bad.all_cells.value == pytest.approx((1.0 + 2.4) / 2)
    none = regrets([OTHER], "psnr")[0]
    assert none.discriminating is None


def test_only_rules_that_need_no_samples_and_no_training_compete():
    assert fixed_rules([ONE]) == ["direct", "casa", "undo"]


def test_luck_is_no_regret():
    """Thirty rules that are one and the same: on the same clips the luckiest would lead, on the others it does not."""
    same = cell("a", noise=1.0, direct=20.0, **{f"rule{number}": 20.0 for number in range(30)})
    lucky = max(float(same.rows[rule].values["psnr"].mean()) for rule in fixed_rules([same]))
    assert lucky > 20.3
    assert abs(float(best_on_other_half(same, "psnr").mean()) - 20) < 0.2


def test_clips_of_one_prompt_are_in_one_half():
    both = cell("a", direct=20.0, casa=20.0)
    twice = tuple(str(number // 2) for number in range(CLIPS))
    first_of_prompt = torch.tensor([int(prompt) % 2 == 0 for prompt in twice])
    both.rows["casa"].values["psnr"] = both.rows["casa"].values["psnr"] + torch.where(first_of_prompt, 5.0, -5.0)
    mixed = best_on_other_half(SimpleNamespace(**{**vars(both), "prompts": twice}), "psnr")
    assert torch.allclose(mixed.float(), EASY + 20 + torch.where(first_of_prompt, 0.0, -5.0))


def test_what_is_advised_is_the_row_that_diagnose_would_name():
    limits = Thresholds(**measured_map().thresholds)
    between = (limits.unsure + limits.casa) / 2
    heads = {"undo": limits.unsure - 0.01, "casa": limits.casa + 0.01}
    found = {rule: advised(cell("a", head=head, direct=20.0)) for rule, head in heads.items()}
    assert found == {rule: rule for rule in heads}
    assert advised(cell("a", head=between, direct=20.0)) == "undo"  # nothing is sampled, so the safe rule stands in
    assert advised(cell("a", head=heads["casa"], accelerator=True, direct=20.0)) == limits.accelerated == "direct"
    assert {"undo", "casa", "direct"} <= {row.name for row in (*FRAME, *MAIN)}
