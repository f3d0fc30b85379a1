"""The statistics of an analysis: each agrees with index loops, finds what was planted, and only that."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from loraport.analysis.measures.concentration import (
    block_energy,
    chance_coherence,
    cluster_energy,
    gini,
    pattern_coherence,
    rms_energy,
    top_share,
    variation,
)
from loraport.analysis.measures.interference import head_interference, interference, majority, overlap
from loraport.analysis.measures.intruders import intruders
from loraport.analysis.measures.mixing import adjusted_rand_index, kept_directions, mixing, observed_clusters, windows
from loraport.analysis.measures.rigidity import degenerate, relative_gaps, spectral_change
from loraport.spectral.basis import decompose
from loraport.spectral.clusters import singular_clusters
from loraport.spectral.head import head_share
from loraport.spectral.routing import directional_alignment
from tests import reference_diagnostics
from tests.layers import generator, random_weights
from tests.planted import basis_with, dense, inside_blocks, noise, plateaus, separate, turned

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5])
K = len(LABELS)


def close(found, expected):
    return np.allclose(np.asarray(found), np.asarray(expected), rtol=1e-9, atol=1e-12, equal_nan=True)


# --- index loops


def test_statistics_agree_with_index_loops():
    C_lora, C_fft, strength = noise(K, K, seed=1), noise(K, K, seed=2), noise(K, seed=3).abs()
    labels = LABELS.tolist()
    assert close(rms_energy(strength, LABELS), reference_diagnostics.rms_energy(strength.numpy(), labels))
    assert close(block_energy(C_lora, LABELS), reference_diagnostics.block_energy(C_lora.numpy(), labels))
    assert close(gini(strength), reference_diagnostics.gini(strength.tolist()))
    assert close(pattern_coherence(C_lora, LABELS), reference_diagnostics.coherence(C_lora.numpy(), labels))
    assert close(variation(strength, LABELS), reference_diagnostics.variation(strength.tolist(), labels))
    found = interference(C_lora, C_fft, LABELS)
    expected = reference_diagnostics.interference(C_lora.numpy(), C_fft.numpy(), labels)
    assert close((found.constructive, found.destructive), expected) and min(expected) > 0.01


def test_mixing_rigidity_and_intruders_agree_with_index_loops():
    W_s, W_t, _ = random_weights((24, 24), 5, drift=0.2)
    before, after = decompose(W_s), decompose(W_t)
    U, V, U2, V2 = (x.numpy() for x in (before.U, before.Vh.mT, after.U, after.Vh.mT))
    S, S2 = before.S.tolist(), after.S.tolist()
    assert close(spectral_change(before.S, after.S), reference_diagnostics.spectral_change(S, S2))
    for mixed in (0.2, 0.5, 0.8):
        labels = observed_clusters(before, after, 15, mixed=mixed)
        assert labels.tolist() == reference_diagnostics.observed(U, U2, V, V2, 15, mixed)
    found = intruders(before.U, after.U, after.S, 9)
    count, energy, inside = reference_diagnostics.intruders(U, U2, S2, 9, 10, 0.5)
    assert (found.count, len(found.inside)) == (count, 10)
    assert close(found.energy, energy) and close(found.inside, inside)
    assert 0 < count < 10, "the case is not trivial"


@pytest.mark.parametrize("seed", range(5))
def test_adjusted_rand_index_agrees_with_pair_counting(seed):
    g = generator(seed)
    a, b = (torch.unique(torch.randint(0, 4, (20,), generator=g), return_inverse=True)[1] for _ in range(2))
    assert close(adjusted_rand_index(a, b), reference_diagnostics.adjusted_rand(a.tolist(), b.tolist()))


# --- rigidity and what the file fixes


def test_rotation_alone_is_perfectly_rigid_and_growth_is_not():
    basis = basis_with(separate(20))
    other = basis_with(separate(20), seed=9)
    W, rotated = dense(torch.diag(basis.S), basis), dense(torch.diag(basis.S), other)
    assert spectral_change(decompose(W).S, decompose(rotated).S) < 1e-12
    assert spectral_change(decompose(W).S, decompose(1.03 * W).S) == pytest.approx(0.03)
    W_s, W_t, _ = random_weights((24, 24), 1, drift=0.2)
    assert spectral_change(decompose(W_s).S, decompose(W_t).S) <= 0.2, "Mirsky's bound"
    assert spectral_change(torch.zeros(3), torch.ones(3)) == 0.0


def test_gaps_and_degeneracy_are_those_of_the_staircase():
    assert degenerate(plateaus(4, 3)[0]).all()
    assert not degenerate(separate(12)).any()
    mixed = torch.tensor([5.0, 3.0, 2.9999, 1.0, 0.0])
    assert degenerate(mixed).tolist() == [False, True, True, False, True]
    steps = torch.tensor([5.0, 3.0, 2.5], dtype=torch.float64)
    assert close(relative_gaps(steps), [0.4, 0.5 / 3, 0.2])
    assert torch.isinf(relative_gaps(torch.ones(1))).all()


# --- mixing and clusters


def test_planted_clusters_are_predicted_and_observed():
    S, labels = plateaus(6, 5)
    basis = basis_with(S)
    C = inside_blocks(labels, 1e-3, seed=2)
    after = decompose(dense(torch.diag(S) + C, basis))
    predicted = singular_clusters(C, S, tau=1.0, eps=1e-6)
    observed = observed_clusters(basis, after, len(S))
    assert adjusted_rand_index(predicted, labels) == 1.0
    assert adjusted_rand_index(observed, labels) > 0.9
    assert spectral_change(S, after.S) < 1e-3


def test_where_values_are_apart_the_same_update_makes_no_clusters():
    S, labels = separate(30), plateaus(6, 5)[1]
    basis = basis_with(S)
    C = inside_blocks(labels, 1e-3, seed=2)
    after = decompose(dense(torch.diag(S) + C, basis))
    assert int(singular_clusters(C, S, tau=1.0, eps=1e-6).max()) == 29
    assert int(observed_clusters(basis, after, 30).max()) == 29
    assert kept_directions(basis, after).min() > 0.999


def test_mixing_shows_blocks_where_directions_turn_inside_plateaus():
    _, labels = plateaus(4, 5)
    basis = basis_with(separate(20))
    after = turned(basis, labels, seed=3)
    seen = mixing(basis.U, after.U)
    same = labels[:, None] == labels[None, :]
    assert seen[~same].max() < 1e-12 and seen[same].mean() > 0.3
    assert kept_directions(basis, after).mean() < 0.8
    assert close(kept_directions(basis, basis), 1.0)


def test_windows_cover_head_middle_and_tail():
    assert windows(100, 20) == {"head": slice(0, 20), "middle": slice(40, 60), "tail": slice(80, 100)}
    assert windows(8, 20)["tail"] == slice(0, 8)


def test_adjusted_rand_index_is_one_for_the_same_and_about_zero_for_chance():
    one, alone = torch.zeros(9, dtype=torch.long), torch.arange(9)
    assert adjusted_rand_index(one, one) == adjusted_rand_index(alone, alone) == 1.0
    assert adjusted_rand_index(one, alone) == 0.0
    g = generator(0)
    chance = [adjusted_rand_index(*torch.randint(0, 5, (2, 200), generator=g)) for _ in range(20)]
    assert abs(sum(chance) / 20) < 0.02


# --- concentration


def test_planted_head_concentration_is_recovered():
    C = torch.ones(40, 40, dtype=torch.float64)
    C[:, :4] = 6.0  # 4 of 40 senders hold 36·4 / (36·4 + 36) = 80 % of the energy
    send, receive = C.norm(dim=0), C.norm(dim=1)
    alone = torch.arange(40)
    assert head_share(send) == pytest.approx(0.8) and head_share(receive) == pytest.approx(0.1)
    assert top_share(cluster_energy(send, alone)) == pytest.approx(0.8)
    assert gini(rms_energy(send, alone)) > 0.2 and gini(rms_energy(receive, alone)) == pytest.approx(0.0)
    tail = send.flip(0)
    assert head_share(tail) < 0.05 and top_share(cluster_energy(tail, alone)) == pytest.approx(0.8)


def test_gini_knows_its_ends():
    assert gini(torch.ones(10)) == pytest.approx(0.0)
    one = torch.zeros(10)
    one[3] = 2
    assert gini(one) == pytest.approx(0.9) and gini(torch.zeros(4)) == 0.0


def test_a_planted_block_stands_out_and_an_even_matrix_shows_none():
    C = torch.ones(K, K, dtype=torch.float64)
    assert close(block_energy(C, LABELS), 1.0) and close(rms_energy(C.norm(dim=0), LABELS), 1.0)
    C[6:10, 3:5] = 10
    found = block_energy(C, LABELS)
    assert int(found.argmax()) == 3 * 6 + 1 and found[3, 1] > 3
    assert close(block_energy(torch.zeros(K, K), LABELS), 1.0)


def test_members_that_route_alike_are_coherent_and_random_ones_are_at_chance():
    pattern = noise(60, 6, seed=5)
    C = pattern[:, LABELS] * (1 + noise(K, seed=6).abs())
    C[:, 4] *= -1  # a sign is no difference
    found = pattern_coherence(C, LABELS)
    several = ~torch.isnan(found)
    assert several.tolist() == [True, True, False, True, False, False]
    assert close(found[several], 1.0) and chance_coherence(C) < 0.6
    random = noise(60, K, seed=7)
    assert abs(float(pattern_coherence(random, LABELS)[several].mean()) - chance_coherence(random)) < 0.06
    assert math.isnan(chance_coherence(random[:, :1]))


def test_equal_members_do_not_vary_and_unequal_ones_do():
    found = variation(torch.tensor([2.0, 2, 2, 1, 3, 9, 5, 5, 5, 5, 1, 1]), LABELS)
    assert close(found, [0, 0.5, math.nan, 0, math.nan, math.nan])


# --- interference


def test_planted_aligned_and_opposed_blocks_are_weighed():
    C_lora = torch.zeros(K, K, dtype=torch.float64)
    C_lora[0:3, 3:5], C_lora[6:10, 6:10] = noise(3, 2, seed=1), noise(4, 4, seed=2)
    C_fft = torch.zeros_like(C_lora)
    C_fft[0:3, 3:5], C_fft[6:10, 6:10] = C_lora[0:3, 3:5], -C_lora[6:10, 6:10]
    total = float(C_lora.square().sum())
    found = interference(C_lora, C_fft, LABELS)
    assert found.constructive == pytest.approx(float(C_lora[0:3, 3:5].square().sum()) / total)
    assert found.destructive == pytest.approx(float(C_lora[6:10, 6:10].square().sum()) / total)
    cosine = directional_alignment(C_lora, C_fft, LABELS)
    assert cosine[0, 1] == pytest.approx(1, abs=1e-6) and cosine[3, 3] == pytest.approx(-1, abs=1e-6)
    assert int(overlap(C_lora, C_fft, LABELS).argmax()) in (1, 21)
    assert found.constructive + found.destructive > 1.5 * 2 * found.chance


def test_unrelated_updates_interfere_at_chance():
    labels = torch.arange(30).repeat_interleave(4)
    pairs = [(noise(120, 120, seed=s), noise(120, 120, seed=s + 50)) for s in range(4)]
    for C_lora, C_fft in pairs:
        for clusters in (labels, torch.arange(120)):
            found = interference(C_lora, C_fft, clusters)
            assert found.constructive == pytest.approx(found.chance, rel=0.15)
            assert found.destructive == pytest.approx(found.chance, rel=0.15)
    zero = torch.zeros(K, K)
    assert interference(zero, zero, LABELS).chance == 0.0


def test_a_block_counts_only_with_more_than_half_of_its_entries():
    mask = torch.zeros(K, K, dtype=torch.bool)
    mask[0:3, 3:5] = True
    mask[6:10, 0:3] = torch.tensor([True, True, False, False])[:, None]  # exactly half
    assert majority(mask, LABELS).nonzero().tolist() == [[0, 1]]


# --- intruders


def test_a_planted_intruder_is_found_and_told_from_rotation_inside_a_plateau():
    basis = basis_with(separate(30), out=60)
    W = dense(torch.diag(basis.S), basis)
    outside = noise(60, seed=8)
    outside -= basis.U @ (basis.U.mT @ outside)
    new = W + 40 * torch.outer(outside / outside.norm(), basis.Vh[5:9].sum(0) / 2)
    after = decompose(new)
    found = intruders(basis.U, after.U, after.S, 30)
    assert found.count == 1 and float(found.inside.min()) < 0.2 and found.energy > 0.3
    assert intruders(basis.U, basis.U, basis.S, 30).count == 0

    spread = turned(basis, torch.zeros(30, dtype=torch.long), seed=4)
    rotated = intruders(basis.U, spread.U, basis.S, 30)
    assert rotated.count > 5, "rotation inside a plateau looks like intruders"
    assert close(rotated.inside, 1.0), "but stays inside the leading directions"


def test_the_share_of_the_head_is_even_for_noise_and_one_where_all_lies_there():
    even = head_interference(torch.ones(20, 20), torch.ones(20, 20))
    assert even == pytest.approx(1 - 0.9**2)
    C = torch.zeros(20, 20)
    C[0, 5] = C[7, 1] = -2.0
    assert head_interference(C, C) == 1.0
    C[7, 7] = 2.0
    assert head_interference(C, C) == pytest.approx(2 / 3)
    assert head_interference(C, torch.zeros(20, 20)) is None


def test_directions_count_as_mixed_above_the_footnotes_cosine():
    """0.2 in the paper's footnote 1: a turn by 0.19 leaves two directions apart, one by 0.21 joins them."""
    basis = basis_with(separate(6))
    for cosine, clusters in ((0.19, 6), (0.21, 5)):
        angle = math.asin(cosine)
        turn = torch.eye(6, dtype=torch.float64)
        turn[:2, :2] = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        after = replace(basis, U=basis.U @ turn)
        assert int(observed_clusters(basis, after, 6).max()) + 1 == clusters
