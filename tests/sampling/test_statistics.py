"""Intervals hold what they should with few clips, few prompts, many candidates; the guard is no surer than they are."""

import itertools

import pytest
import torch
from scipy import stats

from loraport.sampling.choice.guard import FEWEST, decide
from loraport.sampling.score import compare
from loraport.sampling.statistics import mean_interval, ratio_interval, sign_test, simultaneous_intervals


def normal(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def test_the_interval_of_a_mean_is_students():
    values = normal(7, seed=0) + 3
    found = mean_interval(values, names(7))
    low, high = stats.t.interval(0.95, 6, loc=values.mean().item(), scale=stats.sem(values.numpy()))
    assert (found.low, found.high) == pytest.approx((low, high))


@pytest.mark.parametrize("clips", [2, 4, 8])
def test_one_in_forty_is_surely_better_by_luck_however_few_the_clips(clips):
    """2.5 % of 1500 are 37; a bootstrap of two clips calls a quarter sure."""
    sure = sum(mean_interval(values, names(clips)).high < 0 for values in normal(1500, clips, seed=1))
    assert 18 <= sure <= 60


def test_clips_of_one_prompt_are_one_draw():
    """Four prompts with four clips each, prompts as different as clips: 95 in 100 intervals hold the truth."""
    prompts = tuple(str(i // 4) for i in range(16))
    held = {"prompts": 0, "clips": 0}
    for seed in range(400):
        values = normal(4, seed=seed).repeat_interleave(4) + normal(16, seed=1000 + seed)
        for name, groups in (("prompts", prompts), ("clips", names(16))):
            found = mean_interval(values, groups)
            held[name] += found.low < 0 < found.high
    assert held["prompts"] / 400 > 0.92 and held["clips"] / 400 < 0.85
    alone = mean_interval(normal(16, seed=3), ("one",) * 16)
    assert alone == mean_interval(normal(16, seed=3), names(16)), "one prompt alone: its clips are all that varies"


@pytest.mark.parametrize("rivals", [1, 5])
def test_the_chance_that_any_of_several_passes_by_luck_is_that_of_one(rivals):
    """5 % of the sets of rivals have an interval beside zero, to either side; each by itself it would be 20 %."""
    runs = 300
    missed = {"together": 0, "alone": 0}
    for seed in range(runs):
        drawn = list(normal(rivals, 10, seed=seed))
        missed["together"] += any(one.low > 0 or one.high < 0 for one in simultaneous_intervals(drawn, names(10)))
        alone = [mean_interval(one, names(10)) for one in drawn]
        missed["alone"] += any(one.low > 0 or one.high < 0 for one in alone)
    assert missed["together"] / runs < 0.085
    assert rivals == 1 or missed["alone"] / runs > 0.14


def test_equal_rivals_cost_nothing_and_one_that_never_differs_is_exact():
    values = normal(12, seed=4)
    one = mean_interval(values, names(12))
    same = simultaneous_intervals([values, values, torch.zeros(12)], names(12))
    assert same[0].high - same[0].low == pytest.approx(one.high - one.low, rel=0.02)
    assert (same[2].low, same[2].value, same[2].high) == (0, 0, 0)


def test_the_interval_of_a_ratio_holds_it():
    held = 0
    for seed in range(300):
        below = normal(20, seed=seed).abs() + 1
        above = 0.5 * below + 0.1 * normal(20, seed=500 + seed)
        found = ratio_interval(above, below, names(20))
        held += found.low < 0.5 < found.high
    assert 0.9 < held / 300 < 0.99
    assert ratio_interval(torch.ones(3), torch.zeros(3), names(3)) is None


def test_what_one_clip_leaves_open_is_no_number_in_json():
    assert mean_interval(torch.ones(1), ("a",)).as_json() == {"value": 1.0, "low": None, "high": None}


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (5, 0), (3, 4), (7, 1)])
def test_the_sign_test_is_that_of_fair_coins(better, worse):
    tosses = list(itertools.product((0, 1), repeat=better + worse))
    uneven = [abs(2 * sum(one) - len(one)) >= abs(better - worse) for one in tosses]
    assert sign_test(better, worse) == pytest.approx(sum(uneven) / len(uneven))


def test_the_guard_takes_what_is_surely_better_and_nothing_else():
    direct = torch.rand(32, generator=torch.Generator().manual_seed(1)) + 1
    luck = 0.5 * torch.randn(32, generator=torch.Generator().manual_seed(2))
    prompts = tuple(map(str, range(32)))

    def kept(**errors):
        return decide(compare({"direct": direct, **errors}, direct, direct * 3, prompts), 32).kept

    assert kept(good=direct * 0.9, better=direct * 0.5) == "better"
    assert kept(lucky=direct + luck - luck.mean() - 0.01) == "direct"  # a lower mean is not enough
    assert kept(bad=direct * 1.1) == "direct"
    assert kept(same=direct) == "direct"
    assert kept() == "direct"


def test_of_few_clips_nothing_is_sure():
    direct = torch.rand(FEWEST, generator=torch.Generator().manual_seed(1)) + 1
    for clips in (FEWEST - 1, FEWEST):
        errors = {"direct": direct[:clips], "better": 0.1 * direct[:clips]}
        verdict = decide(compare(errors, direct[:clips], 3 * direct[:clips], names(clips)), clips)
        assert verdict.kept == ("better" if clips == FEWEST else "direct")
        assert (f"fewer than {FEWEST} clips" in verdict.reason) == (clips < FEWEST)
