"""Statistics of one layer: whichever way round, and with a meeting of LoRA and drift that is planted."""

from dataclasses import replace

import pytest
import torch

from loraport.analysis.layer_statistics import AnalyzedLayer, layer_statistics
from loraport.methods.casa import casa
from loraport.methods.layer import Layer
from loraport.methods.settings import PAPER
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank
from tests.layers import SHAPES, random_weights


def analyzed(W_s, W_t, lora) -> AnalyzedLayer:
    D = lora.dense()
    layer = Layer(lora, W_t - W_s, decompose(W_s), decompose(W_t))
    return AnalyzedLayer(layer, decompose(W_s + D), decompose(W_t + D))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_a_transposed_layer_has_the_same_numbers_with_senders_and_receivers_exchanged(shape):
    W_s, W_t, lora = random_weights(shape, 3)
    one = layer_statistics(analyzed(W_s, W_t, lora)).numbers
    other = layer_statistics(analyzed(W_s.mT.contiguous(), W_t.mT.contiguous(), lora.transposed())).numbers
    for name, value in one.items():
        twin = name.replace("send", "?").replace("receive", "send").replace("?", "receive")
        if name.startswith(("intruders", "intruder_energy", "similarity", "inside")):
            continue  # the test's main side is the left one
        assert other[twin] == pytest.approx(value, rel=1e-6, abs=1e-9), name
    assert one["gini_send_drift"] != pytest.approx(one["gini_receive_drift"], rel=1e-3), "the sides do differ"


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_numbers_are_those_of_the_method(shape):
    W_s, W_t, lora = random_weights(shape, 4)
    seen = layer_statistics(analyzed(W_s, W_t, lora)).numbers
    update = casa(Layer(lora, W_t - W_s, decompose(W_s)))
    assert seen["norm_casa"] == pytest.approx(update.norm() / float(W_s.norm()))
    assert (seen["k"], seen["clusters"]) == (update.facts["k"], update.facts["clusters"])
    assert seen["arbitrated"] == pytest.approx(update.facts["arbitrated"] / min(shape) ** 2)
    assert seen["restored"] + seen["preserved"] + seen["arbitrated"] == pytest.approx(1)
    assert 0 < seen["rho2_drift"] <= seen["drift"] and 0 < seen["rho2_lora"] <= seen["lora"], "Mirsky's bound"


@pytest.mark.parametrize(
    ("sign", "met", "not_met"), [(1, "constructive", "destructive"), (-1, "destructive", "constructive")]
)
def test_a_drift_that_is_the_lora_meets_it_wholly(sign, met, not_met):
    W_s, _, lora = random_weights((24, 24), 5)
    seen = layer_statistics(analyzed(W_s, W_s + sign * 0.5 * lora.dense(), lora)).numbers
    assert seen["cosine"] == pytest.approx(sign) and seen[met] == pytest.approx(1) and seen[not_met] < 1e-9
    assert seen["gini_send_lora"] == pytest.approx(seen["gini_send_drift"])


def test_nothing_is_claimed_where_nothing_moves():
    W_s, _, lora = random_weights((24, 24), 6)
    still = layer_statistics(analyzed(W_s, W_s.clone(), LowRank(lora.B * 0, lora.A)), replace(PAPER, q_dom=0.5)).numbers
    for name in ("rho2_lora", "rho2_drift", "drift", "lora", "constructive", "destructive", "chance"):
        assert still[name] == pytest.approx(0, abs=1e-12), name
    assert still["cosine"] is None and still["intruders_drift"] == 0 and still["kept_head_drift"] == pytest.approx(1)


def test_curves_come_with_the_detail_alone_and_fit_the_layer():
    seen = layer_statistics(analyzed(*random_weights((40, 18), 7)), detail=True)
    assert layer_statistics(analyzed(*random_weights((40, 18), 7))).curves == {}
    assert len(seen.curves["S_both"]) == 18 and seen.curves["mixing_V_both_tail"].shape == (6, 6)
    decided = seen.curves["map_decision"]
    assert decided.shape == (seen.numbers["k"],) * 2 and set(decided.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert all(isinstance(value, torch.Tensor) for value in seen.curves.values())
