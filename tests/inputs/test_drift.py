"""Drift from rounded files: which difference is the better one, and when a drift is no more than rounding."""

import pytest
import torch

from loraport.errors import InputError
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.models.weight import Weight
from loraport.inputs.config import RankRule
from loraport.inputs.drift import drift_between, within_floor
from loraport.merging import merge
from loraport.methods.layer import Layer
from loraport.methods.recipes import METHODS, find_recipe
from loraport.reports.transfer_page import transfer_findings
from loraport.spectral.basis import decompose
from loraport.spectral.low_rank import LowRank
from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import deltas, make_family

SIXTEEN = (torch.bfloat16, torch.float16)


def planted(dtype, size, start, n=512):
    """(source, target, true drift): fp32 weights, trained from there or from the rounded ones, then rounded."""
    generator = torch.Generator().manual_seed(0)
    W = 0.03 * torch.randn(n, n, generator=generator)
    noise = torch.randn(n, n, generator=generator)
    true = noise * (size * W.norm() / noise.norm())
    begun = W if start == "fine" else W.to(dtype).float()
    W_t = (begun.double() + true.double()).to(dtype)
    return Weight(W, "s", torch.float32), Weight(W_t.float(), "t", dtype), true


def error(found, true) -> float:
    return float((found - true).norm() / true.norm())


@pytest.mark.parametrize("dtype", SIXTEEN)
@pytest.mark.parametrize("start", ["fine", "rounded"])
@pytest.mark.parametrize("size", [3e-3, 1e-2, 0.1])
def test_the_better_difference_is_taken(dtype, size, start):
    source, target, true = planted(dtype, size, start)
    plain = target.matrix - source.matrix
    rounded = target.matrix - source.matrix.to(dtype).float()
    found = drift_between(source, target)
    best, other = sorted((plain, rounded), key=lambda D: error(D, true))
    told = dtype == torch.bfloat16 or size < 0.1
    if not told:  # in fp16 so large a drift hides where it began: the source is left as it is
        assert torch.equal(found.matrix, plain) and not found.source_rounded
        return
    assert torch.equal(found.matrix, best) or error(best, true) > 0.5
    if size >= 0.01:
        assert found.source_rounded == (start == "rounded")
        assert error(other, true) > 1.3 * error(best, true)


def test_no_source_is_rounded_by_chance():
    """The estimate is ten times as wide as what it decides on: a coin would be thrown for each layer."""
    for seed in range(24):
        g = torch.Generator().manual_seed(seed)
        W, noise = 0.03 * torch.randn(64, 64, generator=g), torch.randn(64, 64, generator=g)
        W_t = (W + 0.1 * W.norm() / noise.norm() * noise).half().float()
        found = drift_between(Weight(W, "s", torch.float32), Weight(W_t, "t", torch.float16))
        assert not found.source_rounded and torch.equal(found.matrix, W_t - W)


@pytest.mark.parametrize(("shape", "seed"), [((48, 24), 291), ((1, 24), 288), ((2, 2), 272), ((1, 1), 0)])
def test_zeros_and_a_few_numbers_do_not_tell_where_training_began(shape, seed):
    """Of 300 seeds those for which the estimate lands beyond three of its deviations."""
    W = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) / shape[1] ** 0.5
    found = drift_between(Weight(W, "s", torch.float32), Weight(torch.zeros(shape), "t", torch.float32))
    assert not found.source_rounded and torch.equal(found.matrix, -W)


@pytest.mark.parametrize("dtype", SIXTEEN)
def test_a_weight_that_was_only_rounded_has_no_drift(dtype):
    source, _, _ = planted(dtype, 0.1, "fine")
    target = Weight(source.matrix.to(dtype).float(), "t", dtype)
    found = drift_between(source, target)
    assert not found.matrix.any() and found.source_rounded and not within_floor(float(found.matrix.norm()), found.floor)
    assert (target.matrix - source.matrix).any()


def test_the_source_is_rounded_for_coarser_targets_only():
    W = torch.randn(40, 40, generator=torch.Generator().manual_seed(0))
    narrow = W.bfloat16().float()
    pairs = {
        "16-bit source": (Weight(narrow, "s", torch.bfloat16), Weight(W, "t", torch.float32)),
        "both 32-bit": (Weight(W, "s", torch.float32), Weight(W + 1e-3 * W.flip(0), "t", torch.float32)),
        "both bf16": (Weight(narrow, "s", torch.bfloat16), Weight((W * 1.5).bfloat16().float(), "t", torch.bfloat16)),
    }
    assert not any(drift_between(*pair).source_rounded for pair in pairs.values())
    # a 32-bit file of 16-bit values is what its values are
    assert drift_between(Weight(W, "s", torch.float32), Weight(narrow, "t", torch.float32)).source_rounded


def test_in_place_or_not_it_is_the_same():
    source, target, _ = planted(torch.bfloat16, 0.02, "fine")
    wanted = drift_between(source, target).matrix
    found = drift_between(source, target, in_place=True).matrix
    assert torch.equal(found, wanted) and found.data_ptr() == target.matrix.data_ptr()


@pytest.mark.parametrize("times", [0.5, 1.0, 1.9, 2.1, 5.0])
def test_twice_the_floor_is_the_border(times):
    W = torch.randn(64, 64, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn).float()
    source = Weight(W, "s", torch.float8_e4m3fn)
    noise = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    target = Weight(W + noise * (times * source.rounding / noise.norm()), "t", torch.float32)
    found = drift_between(source, target)
    assert within_floor(float(found.matrix.norm()), found.floor) == (times < 2)
    assert not within_floor(0.0, 1.0), "no drift at all is exact"


def test_which_methods_give_the_lora_back_where_there_is_no_drift():
    W = torch.randn(12, 10, generator=torch.Generator().manual_seed(0))
    lora = LowRank(torch.randn(12, 2), torch.randn(2, 10))
    basis = decompose(W)
    for name, method in METHODS.items():
        recipe = find_recipe("direct:1.3" if name == "direct" else "prolora" if name == "prolora" else name)
        update = recipe(Layer(lora, torch.zeros(12, 10), basis, basis))
        same = torch.allclose(update.dense(), lora.dense(), atol=1e-4)
        assert same or not method.reuses, name
        assert not (same and name == "rollback")


@pytest.fixture
def family(tmp_path):
    """A pair whose target moved in all layers but those of the last block, which were only rounded to fp8."""
    found = make_family(tmp_path)
    target = {
        name: W if name.startswith("blocks.0") else found.source_state[name] for name, W in found.target_state.items()
    }
    tiny.write_fp8(tmp_path / "fp8.safetensors", target, "lightx2v")
    return found


UNMOVED = [f"blocks.1.{layer}" for layer in ("self_attn.q", "cross_attn.o", "ffn.0", "ffn.2")]


@pytest.mark.parametrize("method", ["casa", "undo:0.5"])
def test_a_layer_that_was_only_rounded_is_left_alone(family, method):
    target = str(family.folder / "fp8.safetensors")
    config = family.config(target=target, method=method, rank=RankRule("full"))
    result = transfer(config)
    rows = {row.name: row for row in result.layers}
    written = deltas(config.output)
    for name, row in rows.items():
        B, A = family.factors[name]
        same = float((written[name] - B.double() @ A.double()).norm() / written[name].norm())
        assert row.status == ("copied" if name.startswith("blocks.1") else "transferred"), name
        assert (same < 1e-6) == (row.status == "copied")
        assert 0.01 < row.floor < 0.04 and row.drift > 0
    assert "cannot be told from rounding" not in (rows[UNMOVED[0]].reason or "")
    assert "within 2 times what rounding alone makes" in rows[UNMOVED[0]].reason
    assert result.keys.as_json() == {"in": 40, "transferred": 20, "copied": 20, "dropped": []} and not result.lost
    notes = "\n".join(result.warnings)
    assert "10 of 20 layers were copied: drift within twice what rounding makes counts as none" in notes
    assert "stored as fp8_e4m3fn, a scale a row" in notes
    assert any("In 10 layers the drift is within the rounding error" in text for text in transfer_findings(result))
    assert result.as_json()["layers"][0].keys() >= {"drift", "floor", "reason", "source_rounded"}


def test_forced_it_is_transferred_all_the_same(family):
    target = str(family.folder / "fp8.safetensors")
    result = transfer(family.config(target=target, method="undo:0.5", force_drift=True))
    assert {row.status for row in result.layers} == {"transferred"} and result.settings["force_drift"] is True
    assert not any("copied" in note for note in result.warnings)


def test_methods_that_do_not_look_at_the_drift_go_on(family):
    target = str(family.folder / "fp8.safetensors")
    for method in ("direct:1.2", "lora-x", "rollback"):
        result = transfer(family.config(f"by-{method[:4]}.safetensors", target=target, method=method))
        assert {row.status for row in result.layers} == {"transferred"}, method
    written = deltas(family.folder / "by-roll.safetensors")
    assert all(not written[name].any() for name in UNMOVED) and written["blocks.0.ffn.0"].any()


def test_the_same_bytes_after_a_restart_and_as_differences(family, monkeypatch):
    target = str(family.folder / "fp8.safetensors")
    transfer(family.config("a.safetensors", target=target, method="undo:0.5", as_diff=True))
    transfer(family.config("b.safetensors", target=target, method="undo:0.5", as_diff=True))
    assert (family.folder / "a.safetensors").read_bytes() == (family.folder / "b.safetensors").read_bytes()


@pytest.mark.parametrize("kind", ["fp8", "gguf"])
def test_merge_refuses_quantised_checkpoints(family, tmp_path, kind):
    place, lora = tmp_path / "fp8.safetensors", family.lora
    if kind == "gguf":
        state = tiny.tiny_state(dim=32, ffn=64)
        place = tiny.write_gguf(tmp_path / "m.gguf", state)
        lora = str(tiny.write_lora(tmp_path / "wider.safetensors", tiny.lora_factors(state)))
    with pytest.raises(InputError, match=r"nothing can be added exactly; merge into its bf16, fp16 or fp32 file"):
        merge(str(place), [lora], str(tmp_path / "out.safetensors"))
    assert not (tmp_path / "out.safetensors").exists()


def test_a_gguf_pair_is_transferred(tmp_path):
    source = tiny.tiny_state(dim=32, ffn=64)
    tiny.write_gguf(tmp_path / "target.gguf", tiny.drifted(source, size=0.2))
    tiny.write_original(tmp_path / "source.safetensors", source)
    tiny.write_lora(tmp_path / "lora.safetensors", tiny.lora_factors(source))
    family = make_family(tmp_path)
    places = {name: str(tmp_path / f"{name}.safetensors") for name in ("lora", "source")}
    tiny.write_original(tmp_path / "source.safetensors", source)
    tiny.write_lora(tmp_path / "lora.safetensors", tiny.lora_factors(source))
    config = family.config(**places, target=str(tmp_path / "target.gguf"), method="undo:0.5", rank=RankRule("full"))
    result = transfer(config)
    assert all(row.status == "transferred" and 0.003 < row.floor < 0.009 for row in result.layers)
    model, written = open_checkpoint(tmp_path / "target.gguf"), deltas(config.output)
    for name, (B, A) in tiny.lora_factors(source).items():
        wanted = B.double() @ A.double() - 0.5 * (model.read_weight(name) - source[f"{name}.weight"]).double()
        assert float((written[name] - wanted).norm() / wanted.norm()) < 1e-4
