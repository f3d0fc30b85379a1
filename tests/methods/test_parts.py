"""CASA and its kin in two parts: what is left of the LoRA, and what is taken back of the drift."""

from dataclasses import replace

import pytest
import torch

from loraport.errors import SettingsError
from loraport.methods.casa import casa, casa_parts
from loraport.methods.layer import Layer
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import PAPER
from loraport.spectral.routing import observe, to_routing
from tests.layers import SHAPES, both_bases, layer_of, random_weights, relative

EXACT = 1e-9
SPLIT = [
    "casa",
    "undo",
    "undo:0.5",
    "undo-orthogonal",
    "undo-matched",
    "core",
    "rollback",
    "restore-only",
    "arbitrate-only",
]
shapes = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
names = pytest.mark.parametrize("name", SPLIT)


@shapes
@names
def test_the_parts_add_up_to_the_whole_and_neither_is_all_of_it(name, shape):
    layer = both_bases(*random_weights(shape, 21))
    whole, parts = find_recipe(name)(layer).dense(), find_recipe(name).parts(layer)
    adapter, taken = parts.adapter.dense(), parts.counter_drift.dense()
    assert relative(adapter + taken, whole) < EXACT
    assert (relative(taken, whole) > 1e-2) == (adapter.norm() > 0) == (name != "rollback")
    assert relative(adapter, whole) > 1e-2
    assert parts.adapter.facts == parts.counter_drift.facts == find_recipe(name)(layer).facts


@shapes
@names
def test_a_zero_lora_puts_all_into_the_counter_drift_and_no_drift_all_into_the_adapter(name, shape):
    W_s, W_t, lora = random_weights(shape, 22)
    nothing = find_recipe(name).parts(layer_of(W_s, W_t, lora.scaled(0.0)))
    assert nothing.adapter.norm() == 0
    expected = find_recipe(name)(layer_of(W_s, W_t, lora.scaled(0.0))).dense()
    assert torch.allclose(nothing.counter_drift.dense(), expected, atol=1e-12)
    assert (expected.norm() == 0) == (name in ("core", "arbitrate-only")), "these take nothing back without a LoRA"
    still = find_recipe(name).parts(layer_of(W_s, W_s.clone(), lora))
    assert still.counter_drift.norm() == 0 and still.counter_drift.is_low_rank
    assert name == "rollback" or relative(still.adapter.dense(), lora.dense()) < EXACT


@shapes
def test_each_part_is_its_own_update_with_entries_left_out(shape):
    """The adapter's entries are the LoRA's or zero; the counter-drift's are minus the drift's or zero, never both."""
    W_s, W_t, lora = random_weights(shape, 23)
    layer = layer_of(W_s, W_t, lora)
    if layer.is_wide:
        layer = layer.transposed()
    parts = casa_parts(layer)
    C_lora, C_fft = to_routing(layer.lora, layer.basis), observe(layer.drift, layer.basis).C
    left, taken = (observe(part.dense(), layer.basis).C for part in (parts.adapter, parts.counter_drift))
    struck, undone = (left - C_lora).abs() > 1e-9, taken.abs() > 1e-9
    assert torch.allclose(left[struck], torch.zeros(1, dtype=left.dtype), atol=1e-9)
    assert torch.allclose(taken[undone], -C_fft[undone], atol=1e-9)
    assert struck.any() and undone.any() and not (struck & undone).any()
    # struck out where the drift is stronger; where both push the same way and the LoRA is stronger, the drift is undone
    assert (C_fft.abs() >= C_lora.abs() - 1e-12)[struck].all() and (C_lora * C_fft > 0)[struck].all()
    assert int(struck.sum()) < parts.adapter.facts["arbitrated"], "arbitration goes into both parts"
    # the split that lays all of arbitration into one part has not this property
    naive = (
        observe((casa(layer).dense() - casa(layer, replace(PAPER, arbitrate=False)).dense()), layer.basis).C + C_lora
    )
    mixed = (naive - C_lora).abs() > 1e-9
    assert not torch.allclose(naive[mixed], torch.zeros(1, dtype=naive.dtype), atol=1e-3)


def test_restoration_scales_the_counter_drift_alone():
    layer = layer_of(*random_weights((24, 24), 24))
    whole, half = (casa_parts(layer, replace(PAPER, restore=r, arbitrate=False)) for r in (1.0, 0.5))
    assert torch.equal(whole.adapter.dense(), half.adapter.dense())
    assert relative(2 * half.counter_drift.dense(), whole.counter_drift.dense()) < EXACT


def test_transposing_the_layer_transposes_both_parts():
    W_s, W_t, lora = random_weights((40, 18), 25)
    straight = casa_parts(layer_of(W_s, W_t, lora))
    turned = casa_parts(layer_of(W_s.T.contiguous(), W_t.T.contiguous(), lora.transposed())).transposed()
    assert relative(turned.adapter.dense(), straight.adapter.dense()) < EXACT
    assert relative(turned.counter_drift.dense(), straight.counter_drift.dense()) < EXACT


def test_exact_parts_stay_factors():
    """The LoRA as it is, and core undo's counter-drift, are of the LoRA's own rank; nothing dense is made."""
    layer = both_bases(*random_weights((40, 18), 26))
    for name in ("undo", "undo-orthogonal", "restore-only", "undo-matched", "core"):
        adapter = find_recipe(name).parts(layer).adapter
        assert adapter.is_low_rank and torch.equal(adapter.low_rank.dense(), layer.lora.dense())
    taken = find_recipe("core").parts(layer).counter_drift
    assert taken.is_low_rank and taken.low_rank.rank == layer.lora.rank
    assert not casa_parts(layer).adapter.is_low_rank


@pytest.mark.parametrize(
    "name", [*(name for name, method in METHODS.items() if not method.parts), "direct-matched:casa"]
)
def test_methods_that_take_no_drift_back_have_no_parts(name):
    with pytest.raises(SettingsError, match=f"{name!r} takes nothing of the drift back, .*; these can: casa, undo"):
        find_recipe(name).parts(both_bases(*random_weights((8, 8), 2)))


def test_every_method_that_takes_drift_back_has_parts():
    """A method whose answer to a LoRA depends on the drift and is no projection can be split."""
    assert {name.partition(":")[0] for name in SPLIT} == {name for name, method in METHODS.items() if method.parts}


def test_what_is_seen_of_the_drift_may_come_from_outside():
    """The routing that several LoRAs share gives the answer that each would have worked out itself."""
    for shape in SHAPES.values():
        layer = layer_of(*random_weights(shape, 27))
        shared = replace(layer, known_routing=layer.routing())
        assert torch.equal(casa(shared).dense(), casa(layer).dense())
        other = replace(layer, known_routing=Layer(layer.lora, layer.drift * 2, layer.basis).routing())
        assert relative(casa(other).dense(), casa(layer).dense()) > 1e-2
