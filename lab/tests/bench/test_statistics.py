"""No gap is closed where there is none, pairs stay pairs, and clips of one prompt count as one draw."""

import pytest
import torch

from loraport.sampling.statistics import mean_interval, ratio_interval
from loraport_lab.bench.statistics import frechet_distance, gap_closed, holm, p_value, pooled_gap, rank_correlation


def normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def names(count: int) -> tuple[str, ...]:
    return tuple(map(str, range(count)))


def test_pairs_make_small_differences_visible():
    clips = 10 * normal(50, 1)
    better = clips + 0.2 + 0.1 * normal(50, 2)
    assert mean_interval(better - clips, names(50)).sign == 1
    assert mean_interval(clips - better, names(50)).sign == -1
    shuffled = mean_interval(better - clips.flip(0), names(50))
    assert shuffled.sign == 0, "without the pairing it is lost in the clips' variety"


def test_the_gap_closed_is_zero_for_direct_one_for_the_oracle_and_half_between():
    direct = 20 + normal(80, 3)
    oracle = direct + 2 + 0.1 * normal(80, 4)
    assert gap_closed(direct, direct, oracle, names(80)).value == 0
    assert gap_closed(oracle, direct, oracle, names(80)).value == pytest.approx(1)
    half = gap_closed((direct + oracle) / 2, direct, oracle, names(80))
    assert half.value == pytest.approx(0.5) and half.low <= 0.5 <= half.high


def test_where_the_oracle_is_not_ahead_there_is_no_gap():
    direct = 20 + normal(80, 3)
    assert gap_closed(direct + 1, direct, direct + 0.01 * normal(80, 5), names(80)) is None
    assert gap_closed(direct + 1, direct, direct - 1, names(80)) is None


def test_a_lead_of_many_clips_of_few_prompts_is_no_gap():
    """Sixty clips that each lead, but all of it from one prompt of four: as sure as four draws are."""
    prompts = tuple(str(number % 4) for number in range(60))
    direct = normal(60, 3)
    oracle = direct + torch.tensor([4.0, 0.1, 0.0, -0.1]).repeat(15) + 0.01 * normal(60, 4)
    assert gap_closed(oracle, direct, oracle, names(60)).value == pytest.approx(1)
    assert gap_closed(oracle, direct, oracle, prompts) is None


def test_a_pooled_gap_is_the_share_of_all_there_is_to_close():
    """Not the mean of the cells' shares, which a cell without a gap would rule."""
    ones, ten = torch.ones(10), names(10)
    assert pooled_gap([ones, 0 * ones], [2 * ones, 4 * ones], ten).value == pytest.approx(1 / 6)
    assert pooled_gap([ones, ones], [2 * ones, 0.001 * ones], ten).value == pytest.approx(1, rel=1e-2)
    assert pooled_gap([], [], ten) is None and pooled_gap([ones], [-ones], ten) is None


def test_a_gap_is_that_of_means_and_not_of_medians():
    """One clip of ten carries all: the mean sees it, a median would not."""
    direct, oracle, ours = torch.zeros(40), torch.ones(40), torch.zeros(40)
    ours[::10] = 5.0
    assert gap_closed(ours, direct, oracle, names(40)).value == pytest.approx(0.5)


def test_cells_are_added_up_clip_by_clip_since_they_see_the_same_clips():
    """A clip that is easy is easy in every cell: gains and gaps that move together leave the share exact."""
    easy = 1 + 0.5 * normal(60, 9).abs()
    exact = pooled_gap([0.3 * easy, 0.3 * easy], [easy, easy], names(60))
    assert exact.low == pytest.approx(0.3) and exact.high == pytest.approx(0.3)
    apart = pooled_gap([0.3 * easy, 0.3 * easy.flip(0)], [easy, easy.roll(7)], names(60))
    assert apart.high - apart.low > 0.01


def test_a_share_is_that_of_the_sums_and_exact_where_both_are_the_same():
    ours, theirs = torch.rand(30) + 1, torch.rand(30) + 2
    share = ratio_interval(ours, theirs, names(30))
    assert share.value == pytest.approx(float(ours.double().sum() / theirs.double().sum()))
    assert share.low < share.value < share.high and ratio_interval(theirs, theirs, names(30)).high == 1


def test_frechet_distance_of_shifted_and_stretched_normals_by_hand():
    sample = normal(20000, 6).reshape(10000, 2)
    shifted = normal(20000, 7).reshape(10000, 2) + torch.tensor([3.0, 0.0])
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(sample, shifted) == pytest.approx(9, rel=0.03)
    assert frechet_distance(sample, 3 * sample) == pytest.approx(2 * (3 - 1) ** 2, rel=0.05)


def test_rank_correlation_sees_order_and_not_size():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)


@pytest.mark.parametrize("shift", [0.0, 0.2, 0.28, 0.3, 1.0, -0.3])
@pytest.mark.parametrize("prompts", [names(50), tuple(str(number // 2) for number in range(50))])
def test_a_chance_is_below_a_twentieth_where_the_interval_excludes_zero_and_nowhere_else(shift, prompts):
    values = normal(50, 8) - normal(50, 8).mean() + shift
    assert (p_value(values, prompts) < 0.05) == (mean_interval(values, prompts).sign != 0)
    assert p_value(values, prompts) == pytest.approx(p_value(-values, prompts))


def test_clips_of_one_prompt_are_no_further_evidence():
    values = normal(10, 11) + 0.8
    once, thrice = p_value(values, names(10)), p_value(values.repeat(3), names(10) * 3)
    assert once == pytest.approx(thrice) and p_value(values.repeat(3), names(30)) < 0.1 * once


def test_where_nothing_is_known_or_nothing_differs_the_chance_is_one_and_where_nothing_varies_it_is_none():
    assert p_value(torch.zeros(5), names(5)) == p_value(torch.ones(1), names(1)) == 1
    assert p_value(torch.ones(5), names(5)) == 0


def test_holms_correction_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == [] and holm([0.03]) == [0.03]


def test_holms_correction_is_never_more_liberal_than_none_nor_stricter_than_bonferroni():
    chances = torch.rand(200, generator=torch.Generator().manual_seed(1)).pow(4).tolist()
    corrected = holm(chances)
    assert all(chance <= after <= min(1, 200 * chance) for chance, after in zip(chances, corrected, strict=True))
    assert any(after < min(1, 200 * chance) for chance, after in zip(chances, corrected, strict=True))
    ranked = sorted(zip(chances, corrected, strict=True))
    assert [after for _, after in ranked] == sorted(corrected), "the order of evidence stays"


def test_holms_correction_keeps_errors_rare_where_single_tests_do_not():
    """Twenty tests of nothing: one of them is 'sure' in most tables, after the correction in few."""
    generator = torch.Generator().manual_seed(2)
    tables = torch.rand(400, 20, generator=generator).tolist()
    alone = sum(min(table) < 0.05 for table in tables) / 400
    together = sum(min(holm(table)) < 0.05 for table in tables) / 400
    assert alone > 0.5 and together < 0.1
