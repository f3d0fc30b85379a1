"""The rules that project, from files to a file: the target's basis, the layer filter, what is reported and lost."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loraport.errors import SettingsError
from loraport.inputs.config import RankRule
from loraport.methods.settings import LoraxSettings, ProloraSettings
from loraport.transfers import run as running
from loraport.transfers.run import transfer
from tests import reference_projections as reference
from tests.transfers.models import deltas, make_family

BLOCKS = {"subspace": "rank:9", "null_space": True, "cross_terms": False}
INSIDE = {"subspace": "rank:9", "null_space": False, "cross_terms": False}
CROSS = {"subspace": "rank:9", "null_space": True, "cross_terms": True}
ROWS = {
    "prolora": ({"method": "prolora", "settings": ProloraSettings(**BLOCKS, phi_min=0.0)}, 8),
    "prolora, subspace only": ({"method": "prolora", "settings": ProloraSettings(**INSIDE, phi_min=0.0)}, 4),
    "prolora, cross terms": ({"method": "prolora", "settings": ProloraSettings(**CROSS, phi_min=0.0)}, 4),
    "lora-x": ({"method": "lora-x", "settings": LoraxSettings("rank:9")}, 4),
    "core": ({"method": "core"}, 4),
    "drift-orthogonal": ({"method": "drift-orthogonal:3"}, 4),
}


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def loops(family, name: str, layer: str) -> np.ndarray:
    """The reference's update of one layer, from the weights on disk."""
    W_s, W_t = (state[f"{layer}.weight"].double().numpy() for state in (family.source_state, family.target_state))
    B, A = (factor.double().numpy() for factor in family.factors[layer])
    if name == "core":
        return reference.core(B, A, W_t - W_s)
    if name == "lora-x":
        return reference.lorax(W_t, B @ A, subspace="rank:9")
    if name == "drift-orthogonal":
        return reference.drift_orthogonal(W_t - W_s, B @ A, 3)
    options = {"prolora": BLOCKS, "prolora, subspace only": INSIDE, "prolora, cross terms": CROSS}[name]
    return reference.prolora(W_s, W_t, B @ A, **options)


@pytest.mark.parametrize("name", ROWS)
def test_the_written_update_is_the_references_from_files_to_file(family, name):
    changes, rank = ROWS[name]
    result = transfer(family.config(**changes))
    assert {layer.rank_out for layer in result.layers} == {rank} and not result.lost
    for layer in ("blocks.0.self_attn.q", "blocks.1.ffn.0", "blocks.1.ffn.2"):
        written, expected = deltas(result.output)[layer], torch.from_numpy(loops(family, name, layer))
        direct = family.factors[layer][0].double() @ family.factors[layer][1].double()
        assert float((written - expected).norm() / expected.norm()) < 5e-3  # bases are kept in 16 bits
        assert float((direct - expected).norm() / expected.norm()) > 0.02
        row = next(row for row in result.layers if row.name == layer)
        cosine = float((direct * expected).sum() / direct.norm() / expected.norm())
        assert row.cosine == pytest.approx(cosine, abs=5e-3) and 0 < row.cosine < 1
    json.dumps(result.as_json(), allow_nan=False)


def test_what_shaped_the_numbers_is_in_the_report_and_in_the_file(family):
    result = transfer(family.config(**ROWS["prolora"][0]))
    with safe_open(result.output, "pt") as file:
        assert json.loads(file.metadata()["loraport.settings"]) == result.settings
    assert {name: result.settings[name] for name in BLOCKS} == BLOCKS and "tau" not in result.settings
    row = next(row for row in result.layers if row.name == "blocks.0.ffn.0").as_json()
    assert (row["k"], row["k_target"], row["overlap_random"]) == (9, 9, 9 / 40)
    W_s, W_t = (state["blocks.0.ffn.0.weight"].numpy() for state in (family.source_state, family.target_state))
    assert row["overlap"] == pytest.approx(reference.overlap(W_s, W_t, "rank:9"), abs=1e-3)


def test_core_says_that_it_takes_back_drift_and_prolora_does_not(family):
    for method, noted in {"core": True, "prolora": False, "direct": False}.items():
        with safe_open(transfer(family.config(f"{method}.safetensors", method=method)).output, "pt") as file:
            assert ("loraport.note" in file.metadata()) == noted


def test_both_bases_come_from_one_cache_by_content(family):
    """The target's bases of one run are the source's of a run the other way round."""
    cache = family.folder / "cache"
    transfer(family.config("one.safetensors", method="lora-x"))
    first = {path.name for path in cache.rglob("*.safetensors")}
    assert len(first) == len(family.factors)
    transfer(family.config("back.safetensors", source=family.target, target=family.source, method="casa"))
    back = {path.name for path in cache.rglob("*.safetensors")}
    assert first < back and len(back) == 2 * len(first), "CASA adds the routing of every layer"
    transfer(family.config("two.safetensors", method="prolora"))
    both = {path.name for path in cache.rglob("*.safetensors")}
    assert back < both and len(both) == len(back) + len(first)


def test_cold_warm_and_no_cache_give_the_same_bytes(family):
    changes = ROWS["prolora"][0]
    outputs = [transfer(family.config(f"{i}.safetensors", **changes)).output for i in range(2)]
    outputs.append(transfer(family.config("none.safetensors", **changes, cache=None)).output)
    first, *others = (load_file(output) for output in outputs)
    assert all(torch.equal(first[key], other[key]) for other in others for key in first)


def filtered(family):
    """Settings under which some layers pass ProLoRA's filter and some do not, and the names of those that do not."""
    every = transfer(family.config("every.safetensors", **ROWS["prolora"][0]))
    ordered = sorted(every.layers, key=lambda row: row.overlap)
    middle = (ordered[4].overlap + ordered[5].overlap) / 2
    return ProloraSettings(**BLOCKS, phi_min=middle), {row.name for row in ordered[:5]}


@pytest.mark.parametrize("as_diff", [False, True], ids=["lora", "diff"])
@pytest.mark.parametrize("rule", ["auto", "32", "0.9", "full"])
def test_layers_below_the_filter_get_no_adapter_and_are_accounted_for(family, as_diff, rule):
    settings, below = filtered(family)
    config = family.config(method="prolora", settings=settings, as_diff=as_diff, rank=RankRule.parse(rule))
    result = transfer(config)
    skipped = [row for row in result.layers if row.status == "skipped"]
    assert {row.name for row in skipped} == below and {row.rank_out for row in skipped} == {None}
    assert all(f"overlap by {row.overlap:.3f}" in row.reason for row in skipped)
    assert not any(name in key for name in below for key in load_file(result.output))
    assert (result.keys.total, result.keys.counts["transferred"], len(result.keys.dropped)) == (40, 30, 10)
    assert {reason for _, reason in result.keys.dropped} == {row.reason for row in skipped}
    assert result.lost, "a filter's loss is a loss: the command ends with 3"


def test_a_started_run_knows_its_skipped_layers(family, monkeypatch):
    settings, below = filtered(family)
    changes = {"method": "prolora", "settings": settings}
    whole = transfer(family.config("whole.safetensors", **changes))
    real = running.output_contents
    monkeypatch.setattr(running, "output_contents", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        transfer(family.config(**changes))
    monkeypatch.setattr(running, "output_contents", real)
    monkeypatch.setattr(running.LayerTransfer, "__call__", lambda *_: pytest.fail("done again"))
    again = transfer(family.config(**changes))
    assert again.keys == whole.keys and {row.name for row in again.layers if row.reason} == below
    first, second = load_file(whole.output), load_file(again.output)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def test_a_filter_that_leaves_nothing_writes_nothing(family):
    with pytest.raises(SettingsError, match=r"gives no layer an adapter; .*--phi-min 0 keeps every layer"):
        transfer(family.config(method="prolora", settings=ProloraSettings("rank:3", phi_min=1.0)))
    assert not (family.folder / "out.safetensors").exists()


def test_a_filter_that_says_nothing_says_so(family):
    blind = transfer(family.config("a.safetensors", method="prolora", settings=ProloraSettings("exact")))
    notes = [note for note in blind.warnings if "filter says nothing" in note]
    square = sum(row.shape[0] == row.shape[1] for row in blind.layers)
    assert len(notes) == 1 and f"in {square} of {len(blind.layers)} layers" in notes[0] and square < len(blind.layers)
    for changes in (ProloraSettings("rank:9", phi_min=0.5), ProloraSettings("exact", phi_min=0.0)):
        result = transfer(family.config("b.safetensors", method="prolora", settings=changes))
        assert not any("filter says nothing" in note for note in result.warnings)


def test_a_smaller_rank_is_the_best_one_between_the_factors(family):
    whole = transfer(family.config("whole.safetensors", **ROWS["prolora"][0]))
    short = transfer(family.config("short.safetensors", **ROWS["prolora"][0], rank=RankRule.parse("source")))
    assert {row.rank_out for row in short.layers} == {4}
    layer = "blocks.1.ffn.0"
    U, S, Vh = torch.linalg.svd(deltas(whole.output)[layer])
    best = U[:, :4] @ torch.diag(S[:4]) @ Vh[:4]
    assert float((deltas(short.output)[layer] - best).norm() / best.norm()) < 1e-5
    row = next(row for row in short.layers if row.name == layer)
    assert row.kept_energy == pytest.approx(float(S[:4].square().sum() / S.square().sum()), abs=1e-5)


@pytest.mark.parametrize("name", ["prolora", "lora-x"])
def test_direct_at_the_size_of_a_projection_is_its_control(family, name):
    changes = ROWS[name][0] | {"method": f"direct-matched:{name}"}
    moved, matched = transfer(family.config("a.safetensors", **ROWS[name][0])), transfer(family.config(**changes))
    for one, other in zip(moved.layers, matched.layers, strict=True):
        assert other.update == pytest.approx(one.update, rel=1e-5) and other.rank_out == 4
        assert other.cosine == pytest.approx(1, abs=1e-6) and one.cosine < 0.999 and 0 < other.amount < 1
    assert matched.settings == moved.settings
