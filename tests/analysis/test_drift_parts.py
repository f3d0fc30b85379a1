"""The models of appendix B.2 agree with index loops, touch what they should and nothing else."""

import numpy as np
import pytest
import torch

from loraport.analysis.measures.drift_parts import (
    block_noise,
    densest_blocks,
    dominant_drift,
    leading_routing,
    multiplied_entries,
    removed_by_dominance,
)
from loraport.analysis.probes import KeepDominant, OverActivate, no_lora
from loraport.errors import SettingsError
from loraport.methods.layer import Layer
from loraport.spectral.basis import decompose, energy_rank
from loraport.spectral.low_rank import LowRank
from tests import reference, reference_diagnostics
from tests.layers import SHAPES, generator, random_weights, relative

LABELS = torch.tensor([0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 4, 5])
K = len(LABELS)


def drifted(shape, seed=3):
    W_s, W_t, _ = random_weights(shape, seed)
    return decompose(W_s), W_t - W_s


def routed(D, basis):
    return basis.U.mT @ D @ basis.Vh.mT


@pytest.mark.parametrize("shape", [(12, 12), (20, 16), (16, 20)], ids=str)
def test_the_dominant_drift_agrees_with_index_loops_among_the_leading_directions(shape):
    basis, D = drifted(shape, 7)
    arrays = [x.numpy() for x in (basis.U, basis.Vh, D)]
    for q in (0.0, 0.6, 1.0):
        expected = reference_diagnostics.keep_dominant(*arrays, LABELS.tolist(), q, reference.quantile)
        assert np.allclose(dominant_drift(D, basis, LABELS, q=q), expected, atol=1e-12)
    beyond = routed(dominant_drift(D, basis, LABELS, q=0.0), basis)
    beyond[:K, :K] = 0
    assert beyond.abs().max() < 1e-12, "nothing of the drift stays beyond the leading directions"


def test_our_variant_agrees_with_index_loops_over_all_directions():
    basis, D = drifted((12, 12), 7)
    kept = D - removed_by_dominance(D, basis, LABELS, q=0.6)
    arrays = [x.numpy() for x in (basis.U, basis.Vh, D)]
    expected = reference_diagnostics.keep_dominant(*arrays, LABELS.tolist(), 0.6, reference.quantile)
    assert np.allclose(kept, expected, atol=1e-12) and relative(kept, D) > 0.1


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_our_variant_is_whole_at_zero_and_splits_the_drift_orthogonally(shape):
    basis, D = drifted(shape)
    labels = torch.arange(min(shape))
    assert not removed_by_dominance(D, basis, labels, q=0.0).any()
    sizes = []
    for q in (0.3, 0.6, 1.0):
        removed = removed_by_dominance(D, basis, labels, q=q)
        kept = D - removed
        assert relative(kept.square().sum() + removed.square().sum(), D.square().sum()) < 1e-9
        sizes.append(float(removed.norm()))
    assert 0 < sizes[0] < sizes[1] < sizes[2] < float(D.norm())


@pytest.mark.parametrize("top", [0.05, 0.25, 1.0])
def test_noise_lies_in_the_densest_blocks_and_nowhere_else(top):
    basis, D = drifted((30, 26), 5)
    C = leading_routing(D, basis, K)
    expected = reference_diagnostics.densest_blocks(C.numpy(), LABELS.tolist(), top)
    found = densest_blocks(C, LABELS, top=top)
    assert {tuple(pair) for pair in found.nonzero().tolist()} == expected
    added = routed(
        block_noise(D, basis, LABELS, top=top, mean=2.0, variance=5.0, scaled=False, generator=generator(0)), basis
    )
    touched = added.abs() > 1e-9
    inside = torch.zeros_like(touched)
    inside[:K, :K] = found[LABELS][:, LABELS]
    assert torch.equal(touched, inside)


def test_the_density_of_a_block_counts_its_entries():
    """One large block of a larger norm and one single entry of a larger density: the single one is the denser."""
    C = torch.zeros(5, 5, dtype=torch.float64)
    C[:4, :4], C[4, 4] = 1.0, 2.0
    labels = torch.tensor([0, 0, 0, 0, 1])
    assert float(C[:4, :4].norm()) > 2
    assert densest_blocks(C, labels, top=0.25).nonzero().tolist() == [[1, 1]]
    assert int(densest_blocks(C, labels, top=0.01).sum()) == 1, "a share of few blocks is at least one"
    assert not densest_blocks(C, labels, top=0.0).any()


def test_the_noise_has_the_mean_and_variance_that_were_asked_for_in_its_unit():
    basis, D = drifted((60, 60), 2)
    labels = torch.zeros(60, dtype=torch.long)

    def noise(scaled, seed=0, mean=2.0, variance=5.0):
        added = block_noise(
            D, basis, labels, top=1.0, mean=mean, variance=variance, scaled=scaled, generator=generator(seed)
        )
        return routed(added, basis)

    plain = noise(False)
    assert float(plain.mean()) == pytest.approx(2, abs=0.1) and float(plain.var()) == pytest.approx(5, rel=0.05)
    rms = float(routed(D, basis).square().mean().sqrt())
    assert torch.allclose(noise(True), plain * rms)
    assert torch.allclose(noise(False, mean=3.0, variance=0.0), torch.full((60, 60), 3.0, dtype=torch.float64))
    assert torch.equal(noise(False, 1), noise(False, 1)) and not torch.equal(noise(False, 1), noise(False, 2))


def test_our_factors_touch_the_strongest_entries_only():
    basis, D = drifted((24, 24))
    C = routed(D, basis)

    def added(top=0.05, mean=2.0, variance=5.0, seed=0):
        return routed(
            multiplied_entries(D, basis, top=top, mean=mean, variance=variance, generator=generator(seed)), basis
        )

    touched = added().abs() > 1e-9
    assert int(touched.sum()) == int(0.05 * 24 * 24)
    assert C.abs()[touched].min() >= C.abs()[~touched].max()
    assert torch.allclose(added(mean=3.0, variance=0.0)[touched], 2 * C[touched])
    assert added(top=0.0).abs().max() < 1e-12 and added(mean=1.0, variance=0.0).abs().max() < 1e-12


def test_the_probes_take_the_leading_directions_and_the_clusters_of_their_settings():
    basis, D = drifted((40, 30), 4)
    k = energy_rank(basis.S, 0.9)
    assert k < 30, "the case is not trivial"
    bare = Layer(no_lora((40, 30), D), D, basis)
    kept = routed(D + KeepDominant(0.5).added(bare, generator(0)), basis)
    assert kept[k:].abs().max() < 1e-12 and kept[:, k:].abs().max() < 1e-12 and kept[:k, :k].any()
    one_cluster = dominant_drift(D, basis, torch.zeros(k, dtype=torch.long), q=0.5)
    assert torch.allclose(D + KeepDominant(0.5, tau=0.0).added(bare, generator(0)), one_cluster), "all in one cluster"
    alone = dominant_drift(D, basis, torch.arange(k), q=0.5)
    for clusters in ("single", "lora"):
        assert torch.allclose(D + KeepDominant(0.5, clusters=clusters).added(bare, generator(0)), alone)
    B, A = torch.randn(40, 2, generator=generator(1)).double(), torch.randn(2, 30, generator=generator(2)).double()
    dressed = Layer(LowRank(B, A), D, basis)
    assert not torch.allclose(D + KeepDominant(0.5, clusters="lora").added(dressed, generator(0)), alone)


@pytest.mark.parametrize(
    "make",
    [
        lambda: KeepDominant(1.5),
        lambda: KeepDominant(directions="every"),
        lambda: KeepDominant(clusters="mine"),
        lambda: KeepDominant(energy=0.0),
        lambda: OverActivate(top=-0.1),
        lambda: OverActivate(variance=-1.0),
        lambda: OverActivate(noise="loud"),
        lambda: OverActivate(tau=-1.0),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(SettingsError):
        make()
