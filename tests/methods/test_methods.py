"""Recipes by name, and the controls."""

from dataclasses import replace

import pytest
import torch

from loraport.errors import SettingsError
from loraport.methods.casa import casa
from loraport.methods.controls import restore_only
from loraport.methods.layer import Layer
from loraport.methods.recipes import METHODS, find_recipe
from loraport.methods.settings import CasaSettings
from tests.layers import SHAPES, both_bases, layer_of, random_weights, relative

NAMES = [*METHODS, "direct:1.15", "undo:0.5", "drift-orthogonal:3", "direct-matched:prolora", "direct-matched:undo:0.5"]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("name", NAMES)
def test_every_method_runs_on_every_shape_and_means_what_it_declares(name, shape):
    layer = both_bases(*random_weights(shape, 2))
    recipe = find_recipe(name)
    basis, target = layer.basis if recipe.needs_basis else None, layer.target if recipe.needs_target else None
    update = recipe(Layer(layer.lora, layer.drift, basis, target))
    assert update.dense().shape == shape and torch.isfinite(update.dense()).all()
    assert update.reason is None and float(update.dense().norm()) == pytest.approx(update.norm())
    assert update.is_low_rank == (recipe.method.low_rank or name == "prolora")
    if recipe.method.low_rank:
        assert torch.linalg.matrix_rank(update.dense()) <= update.low_rank.rank == layer.lora.rank


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("rollback", "prolora", "lora-x")])
def test_without_drift_every_method_but_rollback_and_projections_is_direct_reuse(name):
    W_s, _, lora = random_weights((24, 24), 2)
    assert relative(find_recipe(name)(layer_of(W_s, W_s.clone(), lora)).dense(), lora.dense()) < 1e-12
    assert find_recipe("rollback")(layer_of(W_s, W_s.clone(), lora)).dense().norm() == 0
    for projection in ("prolora", "lora-x"):
        assert relative(find_recipe(projection)(both_bases(W_s, W_s.clone(), lora)).dense(), lora.dense()) > 1e-3


def test_formulas_of_the_controls():
    layer = layer_of(*random_weights((40, 18), 6))
    lora, drift = layer.lora.dense(), layer.drift
    assert relative(find_recipe("direct:1.5")(layer).dense(), 1.5 * lora) < 1e-12
    assert find_recipe("direct")(layer).low_rank is layer.lora
    assert relative(find_recipe("undo:0.25")(layer).dense(), lora - 0.25 * drift) < 1e-12
    assert relative(find_recipe("undo:1")(layer).dense() + drift, lora) < 1e-12
    matched = find_recipe("direct-matched")(layer)
    assert float(matched.dense().norm()) == pytest.approx(float(casa(layer).dense().norm()))
    assert relative(matched.dense() / matched.facts["amount"], lora) < 1e-12
    assert matched.facts["amount"] > 1.01, "CASA's update is larger here, so matching does something"
    undone = find_recipe("undo-matched")(layer)
    assert float(undone.correction.norm()) == pytest.approx(float(restore_only(layer).correction.norm()))
    assert relative(undone.correction, -undone.facts["amount"] * drift) < 1e-12


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_orthogonal_undo_leaves_as_much_of_the_drift_whatever_the_lora_holds_of_it(shape):
    """Along the drift the target ends at 1 − β; plain undo ends there only with a LoRA that is orthogonal to it."""
    layer = both_bases(*random_weights(shape, 7))
    size = float(layer.drift.square().sum())
    for strength in (-3.0, 0.0, 1.0, 40.0):
        leaning = replace(layer, lora=layer.lora.scaled(strength))
        ends = {
            name: 1 + float((find_recipe(f"{name}:0.25")(leaning).dense() * layer.drift).sum()) / size
            for name in ("undo", "undo-orthogonal")
        }
        assert ends["undo-orthogonal"] == pytest.approx(0.75, abs=1e-9)
        assert (abs(ends["undo"] - 0.75) < 1e-9) == (strength == 0)
    assert torch.equal(
        find_recipe("undo-orthogonal")(replace(layer, drift=0 * layer.drift)).dense(), layer.lora.dense()
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("caza", "unknown method 'caza'; known: casa, direct, direct-matched, undo"),
        ("casa:2", "takes no number"),
        ("direct:much", "'much' is not a number"),
        ("direct:", "'' is not a number"),
        ("undo:nan", "is not a number"),
        ("direct:inf", "is not a number"),
        ("drift-orthogonal:0", "directions is 0, but it must be 1 or more"),
        ("drift-orthogonal:1.5", "'1.5' is not a whole number; write for example 'drift-orthogonal:16'"),
        ("direct-matched:caza", "unknown method 'caza'"),
        ("direct-matched:direct-matched", "matches itself"),
        ("prolora:2", "takes no number"),
    ],
)
def test_wrong_names_are_refused_with_what_to_write_instead(name, message):
    with pytest.raises(SettingsError, match=message):
        find_recipe(name)


@pytest.mark.parametrize(
    ("field", "value"),
    [("q_dom", 1.5), ("q_dom", -0.1), ("q_act", float("nan")), ("energy", 0.0), ("tau", -1.0), ("restore", 2.0)],
)  # fmt: skip
def test_settings_outside_their_range_are_refused(field, value):
    with pytest.raises(SettingsError, match=f"{field} is"):
        CasaSettings(**{field: value})


def test_casa_says_what_it_needs():
    layer = layer_of(*random_weights((8, 8), 2))
    with pytest.raises(SettingsError, match="singular basis"):
        casa(Layer(layer.lora, layer.drift))
