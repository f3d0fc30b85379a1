"""The one builder of layers: what counts as drift, what is kept in memory, and that nobody else builds one."""

import ast
from pathlib import Path

import pytest
import torch

import loraport
from loraport.inputs.identity import run_identity
from loraport.inputs.open import prepare
from loraport.methods.casa import casa_parts
from loraport.methods.recipes import find_recipe
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank
from loraport.transfers.layer_source import LayerSource
from tests.transfers.models import make_family, make_rounded_family

ROOT = Path(__file__).parents[2]
NAME = "blocks.0.ffn.0"


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def opened(family, **changes):
    return LayerSource.open(prepare(family.config(**{"cache": None, **changes})))


def plain(family):
    return LowRank(*family.factors[NAME])


def test_a_layer_has_what_was_asked_for(family):
    source = opened(family)
    W_s, W_t = (state[f"{NAME}.weight"] for state in (family.source_state, family.target_state))
    weights = source.read(NAME, with_target=True)
    layer = weights.layer(plain(family), target=True, routing=True)
    assert torch.equal(layer.drift, W_t - W_s)
    for basis, W in ((layer.basis, W_s), (layer.target, W_t)):
        assert torch.allclose(basis.S, decompose(W).S, rtol=1e-5)
    assert layer.known_routing is not None
    bare = source.read(NAME).layer(plain(family), basis=False)
    assert bare.basis is None and bare.target is None and bare.known_routing is None


def test_a_weight_is_let_go_when_its_basis_is_there_unless_it_is_kept(family):
    source = opened(family)
    kept, not_kept = (source.read(NAME, keep_weights=keep, with_target=True) for keep in (True, False))
    for weights in (kept, not_kept):
        assert torch.equal(weights.W_s, family.source_state[f"{NAME}.weight"])
        _ = weights.basis, weights.target_basis
    assert torch.equal(kept.W_s, family.source_state[f"{NAME}.weight"]) and kept.W_t is not None
    assert not_kept.W_t is None
    with pytest.raises(RuntimeError, match="keep_weights"):
        _ = not_kept.W_s


@pytest.mark.parametrize("forced", [False, True])
def test_a_drift_within_rounding_is_none_unless_it_is_forced(tmp_path, forced):
    source = opened(make_rounded_family(tmp_path), force_drift=forced)
    weights = source.read(NAME)
    assert weights.facts.within_rounding and weights.facts.drift > 0
    assert weights.is_rounding is not forced
    assert bool(weights.drift.any()) is forced and (weights.drift_norm > 0) is forced


def test_both_parts_of_a_split_are_made_once(family):
    calls = []

    class Counted:
        def parts(self, layer):
            calls.append(layer)
            return casa_parts(layer)

    weights = opened(family).read(NAME)
    layer = weights.layer(plain(family), routing=True)
    whole = find_recipe("casa")(layer).dense()
    adapter, drift = (weights.part("one", part, Counted(), layer) for part in ("adapter", "counter-drift"))
    assert len(calls) == 1 and torch.allclose(adapter.dense() + drift.dense(), whole, atol=1e-6)
    weights.part("one", "adapter", Counted(), layer)
    weights.part("another", "counter-drift", Counted(), layer)
    assert len(calls) == 3, "a part is taken once, and that of another update is not taken for it"


def test_a_run_is_the_same_work_only_with_the_same_settings_and_files(family):
    def identity(work="work", **changes):
        return run_identity(prepare(family.config(**changes)), torch.device("cpu"), work)

    first = identity()
    assert identity() == first == identity(exclude=("ffn",)), "which layers are left out is no part of it"
    assert len({first, identity("other work"), identity(rank=loraport.RankRule("source"))}) == 3
    path = Path(family.target)
    file = next(path.rglob("*.safetensors")) if path.is_dir() else path
    file.touch()
    assert identity() != first


def test_nobody_else_builds_layers_from_files():
    """Reading weights, judging their drift and fetching their bases is the builder's alone."""
    builder, allowed = {"LayerWeights", "FileWeights", "read_weights"}, {"layer_source", "survey"}
    users = set()
    for sources in (ROOT / "src", ROOT / "lab" / "src"):
        for path in sources.rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in builder:
                    users.add(path.stem)
    assert users == allowed, "the survey reads drifts only, of layers that no LoRA touches too"
