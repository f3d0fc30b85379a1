"""The fast recipe against the page of index loops, and against what the published code produced."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from loraport.methods.casa import casa
from loraport.methods.layer import Layer
from loraport.methods.recipes import find_recipe
from loraport.methods.settings import PAPER, PUBLISHED_CODE
from loraport.spectral.basis import decompose
from loraport.spectral.clusters import singular_clusters
from loraport.spectral.low_rank import LowRank
from loraport.spectral.routing import to_routing
from tests import reference
from tests.layers import SHAPES, layer_of, random_weights, relative

GOLDEN = Path(__file__).parent.parent / "golden"
SETTINGS = {
    "paper": PAPER,
    "published-code": PUBLISHED_CODE,
    "restore-only": replace(PAPER, arbitrate=False),
    "arbitrate-only": replace(PAPER, restore=0.0, q_act=0.5),
    "half": replace(PAPER, restore=0.5, tau=0.3, q_dom=0.7, energy=0.8, energy_rectangular=0.8),
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_agrees_with_index_loops(shape, settings):
    W_s, W_t, lora = random_weights(shape, seed=3)
    layer = layer_of(W_s, W_t, lora)
    energy = settings.energy if shape[0] == shape[1] else settings.energy_rectangular
    expected, facts = reference.casa(
        *(x.numpy() for x in (layer.basis.U, layer.basis.S, layer.basis.Vh, lora.dense(), W_t - W_s)),
        energy=energy, tau=settings.tau, eps=settings.eps, q_dom=settings.q_dom, q_act=settings.q_act,
        restore=settings.restore, arbitrate=settings.arbitrate, densities=settings.densities,
    )  # fmt: skip
    update = casa(layer, settings)
    assert {name: update.facts[name] for name in facts} == pytest.approx(facts)
    assert relative(update.dense(), torch.from_numpy(expected)) < 1e-10
    # the case is not trivial: the rule changes the update, and something is arbitrated where it may be
    assert relative(lora.dense(), torch.from_numpy(expected)) > 0.05
    assert (facts["arbitrated"] > 0) == settings.arbitrate


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_single_precision_agrees_to_1e_5(shape):
    W_s, W_t, lora = (x if isinstance(x, LowRank) else x.float() for x in random_weights(shape, seed=11))
    lora = LowRank(lora.B.float(), lora.A.float())
    basis = decompose(W_s)
    fast = casa(Layer(lora, W_t - W_s, basis)).dense().double()
    exact = [x.double().numpy() for x in (basis.U, basis.S, basis.Vh, lora.dense(), W_t - W_s)]
    expected, _ = reference.casa(
        *exact, energy=0.9, tau=1.0, eps=1e-6, q_dom=0.5, q_act=0.85, restore=1.0, arbitrate=True
    )
    assert relative(fast, torch.from_numpy(expected)) < 1e-5


@pytest.mark.parametrize(
    "case", json.loads((GOLDEN / "casa_square.json").read_text())["cases"], ids=lambda c: c["name"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_published_code_preset_reproduces_the_published_code(case, dtype):
    tensors = load_file(GOLDEN / "casa_square.safetensors")
    given = {key.split(".")[1]: value for key, value in tensors.items() if key.startswith(case["name"] + ".")}
    settings = replace(PUBLISHED_CODE, tau=case["tau"], q_dom=case["q_dom"], q_act=case["q_act"])
    W_s = given["W_source"].to(dtype)
    lora = LowRank(given["lora_B"].to(dtype), given["lora_A"].to(dtype))
    layer = Layer(lora, given["W_target"].to(dtype) - W_s, decompose(W_s))
    update = find_recipe("casa", settings)(layer)
    assert (update.facts["k"], update.facts["clusters"]) == (case["top_k"], case["clusters"])
    assert abs(update.facts["arbitrated"] - case["arbitrated"]) <= 2
    assert relative(update.dense(), given["delta_casa"].to(dtype)) < 1e-3
    C_lora = to_routing(lora, layer.basis)[: case["top_k"], : case["top_k"]]
    labels = singular_clusters(C_lora, layer.basis.S[: case["top_k"]], tau=case["tau"], eps=settings.eps)
    theirs = given["cluster_labels"]
    assert torch.equal(labels[:, None] == labels, theirs[:, None] == theirs), "the same directions belong together"
    # the paper preset is another rule: it must not pass for the published code
    paper = replace(PAPER, q_dom=case["q_dom"], q_act=case["q_act"])
    assert relative(find_recipe("casa", paper)(layer).dense(), given["delta_casa"].to(dtype)) > 1e-2


def test_reference_is_not_the_fast_code():
    """The page of loops is independent: it imports nothing of ours."""
    text = Path(reference.__file__).read_text()
    assert "loraport" not in text and np.__name__ in text
