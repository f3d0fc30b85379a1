"""What CASA promises, each promise with its negation, on random layers of every shape."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loraport.methods.casa import casa
from loraport.methods.controls import arbitrate_only, restore_only, rollback
from loraport.methods.layer import Layer
from loraport.methods.settings import PAPER
from loraport.spectral.arbitration import dominant_directions, dominant_mask
from loraport.spectral.basis import SingularBasis, decompose, energy_rank
from loraport.spectral.clusters import singular_clusters
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import observe, to_routing
from tests.layers import SHAPES, generator, layer_of, orthogonal, random_weights, relative

EXACT = 1e-9
layers = st.tuples(st.sampled_from(list(SHAPES.values())), st.integers(0, 10_000))
a_few = settings(max_examples=25, deadline=None, derandomize=True)


@a_few
@given(layers)
def test_joint_sign_flips_change_nothing(drawn):
    shape, seed = drawn
    layer = layer_of(*random_weights(shape, seed))
    signs = torch.where(torch.rand(min(shape), generator=generator(seed)) < 0.5, -1.0, 1.0).double()
    signs[0] = -1
    flipped = SingularBasis(layer.basis.U * signs, layer.basis.S, signs[:, None] * layer.basis.Vh)
    expected = casa(layer).dense()
    assert relative(casa(replace(layer, basis=flipped)).dense(), expected) < EXACT
    # another orthonormal frame than a sign flip does change the answer
    turn = orthogonal(min(shape), seed)
    turned = SingularBasis(layer.basis.U @ turn, layer.basis.S, turn.T @ layer.basis.Vh)
    assert relative(casa(replace(layer, basis=turned)).dense(), expected) > 1e-2


@a_few
@given(layers)
def test_zero_drift_is_direct_reuse_exactly(drawn):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    still = casa(layer_of(W_s, W_s.clone(), lora))
    assert still.is_low_rank
    assert torch.equal(still.low_rank.B, lora.B) and torch.equal(still.low_rank.A, lora.A)
    moved = casa(layer_of(W_s, W_t, lora))
    assert not moved.is_low_rank and relative(moved.dense(), lora.dense()) > 1e-2


@a_few
@given(layers)
def test_off_the_dominant_mask_the_source_routing_is_restored(drawn):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    layer = layer_of(W_s, W_t, lora)
    if shape[0] < shape[1]:
        layer = layer.transposed()
    C_lora, drift = (
        to_routing(lora if shape[0] >= shape[1] else lora.transposed(), layer.basis),
        observe(layer.drift, layer.basis),
    )
    k = energy_rank(layer.basis.S, PAPER.energy)
    labels = singular_clusters(C_lora[:k, :k], layer.basis.S[:k], tau=PAPER.tau, eps=PAPER.eps)
    D = dominant_mask(
        dominant_directions(drift.receive, labels, q_dom=PAPER.q_dom),
        dominant_directions(drift.send, labels, q_dom=PAPER.q_dom),
    )
    C_casa = observe(casa(layer).dense(), layer.basis).C
    assert torch.allclose((drift.C + C_casa)[~D], C_lora[~D], atol=1e-10)
    assert (~D).any() and D.any()
    assert not torch.allclose((drift.C + C_casa)[D], C_lora[D], atol=1e-3)


@a_few
@given(layers)
def test_transposing_the_layer_transposes_the_answer(drawn):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    straight = casa(layer_of(W_s, W_t, lora)).dense()
    turned = casa(layer_of(W_s.T.contiguous(), W_t.T.contiguous(), lora.transposed())).dense()
    assert relative(turned.T, straight) < EXACT
    if shape[0] == shape[1]:
        assert relative(turned, straight) > 1e-2


@a_few
@given(layers)
def test_orthogonal_changes_of_coordinates_commute_with_transfer(drawn):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    P, Q = orthogonal(shape[0], seed + 1), orthogonal(shape[1], seed + 2)
    expected = P @ casa(layer_of(W_s, W_t, lora)).dense() @ Q
    changed = casa(layer_of(P @ W_s @ Q, P @ W_t @ Q, LowRank(P @ lora.B, lora.A @ Q))).dense()
    assert relative(changed, expected) < 1e-7
    # a change of coordinates that is not orthogonal does not commute
    M = torch.diag(torch.linspace(0.5, 2.0, shape[0], dtype=torch.float64))
    sheared = casa(layer_of(M @ W_s, M @ W_t, LowRank(M @ lora.B, lora.A))).dense()
    assert relative(sheared, M @ casa(layer_of(W_s, W_t, lora)).dense()) > 1e-3


@a_few
@given(layers, st.floats(0.01, 100))
def test_scaling_everything_scales_the_answer(drawn, factor):
    shape, seed = drawn
    W_s, W_t, lora = random_weights(shape, seed)
    small_eps = replace(PAPER, eps=1e-14)
    expected = factor * casa(layer_of(W_s, W_t, lora), small_eps).dense()
    assert relative(casa(layer_of(factor * W_s, factor * W_t, lora.scaled(factor)), small_eps).dense(), expected) < 1e-7
    # scaling the LoRA alone does not: the counter-drift stays
    assert (
        relative(casa(layer_of(W_s, W_t, lora.scaled(3.0))).dense(), 3 * casa(layer_of(W_s, W_t, lora)).dense()) > 1e-2
    )


@pytest.mark.parametrize("shape", [SHAPES["tall"], SHAPES["wide"]], ids=["tall", "wide"])
def test_tall_and_wide_layers_keep_their_complement(shape):
    W_s, W_t, lora = random_weights(shape, seed=5)
    layer = layer_of(W_s, W_t, lora)
    U, Vh = layer.basis.U, layer.basis.Vh

    def inside(D):
        return U @ (U.T @ D @ Vh.T) @ Vh

    update = casa(layer).dense()
    lost_by_thin_routing = relative(inside(update), update)
    assert lost_by_thin_routing > 0.3, "the complement is a large part of the answer, so losing it would show"
    # where nothing is taken back, the LoRA's own complement is there to the last digit
    kept = arbitrate_only(layer).dense()
    assert torch.allclose(kept - inside(kept), lora.dense() - inside(lora.dense()), atol=1e-10)
    # and what restoration takes from the drift's complement is what the projectors say, so not all and not nothing
    outside_drift = layer.drift - inside(layer.drift)
    taken = (lora.dense() - inside(lora.dense())) - (update - inside(update))
    assert 0.05 < float(taken.norm() / outside_drift.norm()) < 0.999


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_zero_lora_does_not_transfer_to_zero(shape):
    W_s, W_t, lora = random_weights(shape, seed=8)
    nothing = lora.scaled(0.0)
    assert casa(layer_of(W_s, W_t, nothing)).dense().norm() > 0.1 * (W_t - W_s).norm()
    assert casa(layer_of(W_s, W_s.clone(), nothing)).dense().norm() == 0


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_without_its_two_parts_casa_is_direct_reuse(shape):
    W_s, W_t, lora = random_weights(shape, seed=9)
    layer = layer_of(W_s, W_t, lora)
    assert torch.equal(casa(layer, replace(PAPER, restore=0.0, arbitrate=False)).dense(), lora.dense())
    # the two parts touch different entries, so their corrections add up to the whole
    parts = restore_only(layer).correction + arbitrate_only(layer).correction
    assert relative(parts, casa(layer).correction) < EXACT
    assert relative(restore_only(layer).dense(), casa(layer).dense()) > 1e-3
    assert relative(rollback(layer).dense(), restore_only(layer).correction) == 0


def test_tied_singular_values_make_single_vectors_arbitrary_but_not_the_clustered_whole():
    """A plateau merged into one cluster is seen as a whole: a rotation inside it leaves the restored part unchanged."""
    W_s, W_t, lora = random_weights((24, 24), seed=1)
    basis = decompose(W_s)
    S = basis.S.clone()
    S[4:8] = S[4:8].mean()
    turn = torch.eye(24, dtype=torch.float64)
    turn[4:8, 4:8] = orthogonal(4, 3)
    tied = SingularBasis(basis.U, S, basis.Vh)
    turned = SingularBasis(basis.U @ turn, S, turn.T @ basis.Vh)
    drift = W_t - W_s
    one_cluster = replace(PAPER, tau=0.0, arbitrate=False, q_dom=1.0, energy=0.9)
    same = [casa(Layer(lora, drift, b), one_cluster).dense() for b in (tied, turned)]
    assert relative(*same) < EXACT
    single = replace(PAPER, tau=1e9, arbitrate=False)
    split = [casa(Layer(lora, drift, b), single).dense() for b in (tied, turned)]
    assert relative(*split) > 1e-6


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_without_clusters_and_without_dominance_are_settings(shape):
    """The ablations of methods.md: infinite tau leaves each direction alone, q_dom 0 of all restores none."""
    layer = layer_of(*random_weights(shape, 5))
    alone = casa(layer, replace(PAPER, tau=float("inf"))).facts
    assert alone["clusters"] == alone["k"] and alone["largest_cluster"] == 1 / alone["k"]
    everywhere = replace(PAPER, q_dom=0.0, energy=1.0, energy_rectangular=1.0)
    assert casa(layer, everywhere).facts["restored"] == 0 and casa(layer).facts["restored"] > 0
    assert casa(layer, replace(PAPER, q_dom=0.0)).facts["restored"] > 0, "beyond the leading directions"
    unarbitrated = casa(layer, replace(everywhere, arbitrate=False))
    assert (
        relative(unarbitrated.dense(), layer.lora.dense())
        < EXACT
        < relative(casa(layer, everywhere).dense(), layer.lora.dense())
    )
