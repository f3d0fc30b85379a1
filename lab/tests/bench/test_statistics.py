"""Intervals hold what they should, pairs stay pairs, and no gap is closed where there is none."""

import pytest
import torch

from loraport_lab.bench.statistics import (
    frechet_distance,
    gap_closed,
    mean_interval,
    pooled_gap,
    rank_correlation,
    resampled_rows,
    standard_error,
)


def normal(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_is_the_normal_one_for_many_clips():
    values = 3 + 2 * normal(400, 0)
    found = mean_interval(values)
    half = 1.96 * standard_error(values)
    assert found.value == pytest.approx(float(values.mean()))
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)


def test_19_of_20_intervals_hold_the_truth_and_half_as_wide_ones_do_not():
    found = [mean_interval(normal(60, seed)) for seed in range(200)]
    covered = sum(one.low < 0 < one.high for one in found) / len(found)
    narrow = sum(abs(one.value) < (one.high - one.low) / 8 for one in found) / len(found)
    assert 0.9 < covered < 0.99 and narrow < 0.75


def test_pairs_make_small_differences_visible():
    clips = 10 * normal(50, 1)
    better = clips + 0.2 + 0.1 * normal(50, 2)
    assert mean_interval(better - clips).sign == 1
    assert mean_interval(better - clips.flip(0)).sign == 0, "without the pairing it is lost in the clips' variety"


def test_the_gap_closed_is_zero_for_direct_one_for_the_oracle_and_half_between():
    direct = 20 + normal(80, 3)
    oracle = direct + 2 + 0.1 * normal(80, 4)
    assert gap_closed(direct, direct, oracle).value == 0
    assert gap_closed(oracle, direct, oracle).value == pytest.approx(1)
    half = gap_closed((direct + oracle) / 2, direct, oracle)
    assert half.value == pytest.approx(0.5) and half.low <= 0.5 <= half.high


def test_where_the_oracle_is_not_ahead_there_is_no_gap():
    direct = 20 + normal(80, 3)
    assert gap_closed(direct + 1, direct, direct + 0.01 * normal(80, 5)) is None
    assert gap_closed(direct + 1, direct, direct - 1) is None


def test_a_pooled_gap_is_the_share_of_all_there_is_to_close():
    """Not the mean of the cells' shares, which a cell without a gap would rule."""
    ones = torch.ones(10)
    assert pooled_gap([ones, 0 * ones], [2 * ones, 4 * ones]).value == pytest.approx(1 / 6)
    assert pooled_gap([ones, ones], [2 * ones, 0.001 * ones]).value == pytest.approx(1, rel=1e-2)
    assert pooled_gap([], []) is None and pooled_gap([ones], [-ones]) is None


def test_a_gap_is_that_of_means_and_not_of_medians():
    """One clip of ten carries all: the mean sees it, a median would not."""
    direct, oracle, ours = torch.zeros(40), torch.ones(40), torch.zeros(40)
    ours[::10] = 5.0
    assert gap_closed(ours, direct, oracle).value == pytest.approx(0.5)


def test_cells_are_resampled_together_since_they_see_the_same_clips():
    """A clip that is easy is easy in every cell: gains and gaps that move together leave the share exact."""
    easy = 1 + 0.5 * normal(60, 9).abs()
    exact = pooled_gap([0.3 * easy, 0.3 * easy], [easy, easy])
    assert exact.low == pytest.approx(0.3) and exact.high == pytest.approx(0.3)
    apart = pooled_gap([0.3 * easy, 0.3 * easy.flip(0)], [easy, easy.roll(7)])
    assert apart.high - apart.low > 0.01


def test_frechet_distance_of_shifted_and_stretched_normals_by_hand():
    sample = normal(20000, 6).reshape(10000, 2)
    shifted = normal(20000, 7).reshape(10000, 2) + torch.tensor([3.0, 0.0])
    assert frechet_distance(sample, sample) == pytest.approx(0, abs=1e-8)
    assert frechet_distance(sample, shifted) == pytest.approx(9, rel=0.03)
    assert frechet_distance(sample, 3 * sample) == pytest.approx(2 * (3 - 1) ** 2, rel=0.05)


def test_resamples_are_the_same_every_time_and_draw_with_replacement():
    rows = resampled_rows(12)
    assert torch.equal(rows, resampled_rows(12)) and not torch.equal(rows, resampled_rows(12, seed=1))
    assert any(len(set(row.tolist())) < 12 for row in rows)


def test_rank_correlation_sees_order_and_not_size():
    assert rank_correlation([1, 2, 3, 4], [1, 10, 100, 1000]) == pytest.approx(1)
    assert rank_correlation([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1)
