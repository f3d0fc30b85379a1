"""No gap is closed where there is none, pairs stay pairs, and clips of one prompt count as one draw."""

import pytest
import torch

from loraport.sampling.statistics import mean_interval, ratio_interval
from loraport_lab.bench.statistics import frechet_distance, gap_closed, pooled_gap, rank_correlation


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
