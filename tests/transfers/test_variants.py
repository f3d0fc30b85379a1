"""DoRA, LoHa, LoKr and full differences through transfers, merges, accelerators and conversions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loraport.conversion import convert
from loraport.errors import SettingsError
from loraport.files.lora.read import read_lora
from loraport.inputs.batch import one_or_many
from loraport.inputs.config import RankRule
from loraport.inputs.recipes import chosen_recipes
from loraport.merging import merge
from loraport.methods.recipes import METHODS
from loraport.transfers.run import transfer, transfer_many
from tests import tiny
from tests.transfers.adapters import LAYERS, MAKERS, added, dora, loha, written
from tests.transfers.models import deltas, make_family

FULL = RankRule("full")


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    return make_family(tmp_path_factory.mktemp("family"), rank=2)


def far(got, wanted):
    return float((got.double() - wanted.double()).norm() / wanted.double().norm())


@pytest.mark.parametrize("kind", MAKERS)
def test_direct_reuse_at_full_rank_is_what_the_adapter_adds_to_the_source(family, kind):
    place = MAKERS[kind](family)
    result = transfer(family.config(f"{kind}.safetensors", lora=place, method="direct", rank=FULL))
    got = deltas(result.output)
    for layer in LAYERS:
        assert far(got[layer], added(family, place, family.source_state, layer)) < 1e-5
    assert [row.kind for row in result.layers] == [kind] * 3
    assert result.kept_energy == pytest.approx(1)


@pytest.mark.parametrize("kind", MAKERS)
def test_dense_output_loses_nothing(family, kind):
    place = MAKERS[kind](family)
    out = transfer(family.config(f"{kind}-d.safetensors", lora=place, method="direct", as_diff=True)).output
    for layer in LAYERS:
        got = load_file(out)[f"diffusion_model.{layer}.diff"]
        assert far(got, added(family, place, family.source_state, layer)) < 1e-5


@pytest.mark.parametrize("rule", [RankRule(), RankRule("fixed", 3), RankRule("energy", 0.9)])
def test_what_a_rank_loses_of_a_dora_is_reported(family, rule):
    place = dora(family)
    result = transfer(family.config("cut.safetensors", lora=place, method="direct", rank=rule))
    got = deltas(result.output)
    for row in result.layers:
        exact = added(family, place, family.source_state, row.name)
        S = torch.linalg.svdvals(exact).square()
        best = float(S[: row.rank_out].sum() / S.sum())
        kept = 1 - far(got[row.name], exact) ** 2
        assert row.kept_energy == pytest.approx(kept, abs=1e-4) and kept == pytest.approx(best, abs=1e-4)
        assert row.rank_in == 2
        if rule.kind == "energy":
            assert kept >= 0.9
        else:
            assert row.rank_out == (rule.value or 4) and kept < 0.999


def test_the_product_of_two_twos_needs_four(family):
    result = transfer(family.config("four.safetensors", lora=loha(family), method="direct"))
    assert {row.rank_out for row in result.layers} == {4} and result.kept_energy == pytest.approx(1)


def test_without_drift_both_readings_of_dora_are_one_and_with_drift_they_are_not(family):
    place = dora(family)
    outputs = {}
    for target in (family.source, family.target):
        for reading in ("effective", "magnitude"):
            config = family.config(f"{reading}.safetensors", lora=place, target=target, method="direct", rank=FULL)
            outputs[target, reading] = deltas(transfer(replace(config, dora=reading)).output)
    for layer in LAYERS:
        same, other = (
            far(outputs[target, "magnitude"][layer], outputs[target, "effective"][layer])
            for target in (family.source, family.target)
        )
        assert same < 1e-5 < 0.01 < other


def test_the_magnitude_reading_rescales_the_rows_of_the_target(family):
    """m_t = m·‖W_t‖ / ‖W_s‖, and the rows of W_t + D'' have these lengths."""
    place = dora(family)
    config = family.config("rows.safetensors", lora=place, method="direct", rank=FULL, dora="magnitude")
    got = deltas(transfer(config).output)
    for layer in LAYERS:
        W_s, W_t = (state[f"{layer}.weight"].double() for state in (family.source_state, family.target_state))
        m = load_file(place)[f"diffusion_model.{layer}.dora_scale"].double()
        wanted = m[:, 0] * W_t.norm(dim=1) / W_s.norm(dim=1)
        torch.testing.assert_close((W_t + got[layer]).norm(dim=1), wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.sampled(4)
@pytest.mark.parametrize("reading", ["effective", "magnitude"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_a_dora(family, method, reading):
    config = family.config("all.safetensors", lora=dora(family), method=method, dora=reading, include=("blocks.0.",))
    result = transfer(config)
    assert [row.status for row in result.layers if row.name == LAYERS[0]] == ["transferred"]
    copied = deltas(result.output)[LAYERS[2]]
    exact = added(family, config.lora, family.source_state, LAYERS[2])
    assert far(copied, exact) < 0.9  # at the rank of the file


def test_a_full_difference_is_transferred_like_the_update_that_it_is(family):
    B, A = family.factors[LAYERS[0]]
    diff = written(family, "diff", {f"{LAYERS[0]}.diff": B @ A, "blocks.0.norm3.diff": torch.ones(tiny.DIM)})
    plain = written(family, "plain", {f"{LAYERS[0]}.lora_B.weight": B, f"{LAYERS[0]}.lora_A.weight": A})
    results = {
        name: transfer(family.config(f"{name}-out.safetensors", lora=place, transfer_diffs=True, rank=FULL))
        for name, place in {"diff": diff, "plain": plain}.items()
    }
    got = {name: deltas(result.output)[LAYERS[0]] for name, result in results.items()}
    assert far(got["diff"], got["plain"]) < 1e-4 and far(got["plain"], B @ A) > 0.01
    assert results["diff"].layers[0].kind == "difference" and results["diff"].keys.counts["copied"] == 1
    with_lora = written(family, "both", load_without_prefix(plain) | {f"{LAYERS[1]}.diff": torch.ones(40, 24)})
    copy = transfer(family.config("copy.safetensors", lora=with_lora))
    assert torch.equal(load_file(copy.output)[f"diffusion_model.{LAYERS[1]}.diff"], torch.ones(40, 24))
    assert copy.keys.counts["copied"] == 1


def load_without_prefix(place):
    return {key.removeprefix("diffusion_model."): value for key, value in load_file(place).items()}


@pytest.mark.parametrize("strength", [1.0, 0.5])
@pytest.mark.parametrize("kind", MAKERS)
def test_merged_weights_are_the_adapters_own(family, kind, strength):
    place = MAKERS[kind](family)
    out = family.folder / f"merged-{kind}.safetensors"
    merge(family.source, [f"{place}*{strength}"], str(out))
    merged = load_file(out)
    for layer in LAYERS:
        wanted = strength * added(family, place, family.source_state, layer)
        assert far(merged[f"{layer}.weight"] - family.source_state[f"{layer}.weight"], wanted) < 1e-4


def test_two_doras_look_at_the_same_weight(family):
    """Each at its own strength beside the other, in either order."""
    place = dora(family)
    outs = [family.folder / f"{name}.safetensors" for name in ("ab", "ba")]
    for out, order in zip(outs, ([place, loha(family)], [loha(family), place]), strict=True):
        merge(family.source, order, str(out))
    for key, tensor in load_file(outs[0]).items():
        torch.testing.assert_close(load_file(outs[1])[key], tensor)


def test_an_accelerator_may_be_a_dora(family):
    place = dora(family)
    config = family.config("fast.safetensors", target=f"source+{place}*0.5", method="undo:1", as_diff=True)
    tensors = load_file(transfer(config).output)
    for layer in LAYERS:
        B, A = family.factors[layer]
        wanted = (B @ A).double() - 0.5 * added(family, place, family.source_state, layer)
        assert far(tensors[f"diffusion_model.{layer}.diff"], wanted) < 1e-4


@pytest.mark.parametrize("to", ["comfy", "diffusers", "peft", "kohya"])
@pytest.mark.parametrize("kind", MAKERS)
def test_conversion_gives_plain_loras(family, kind, to, tmp_path):
    place = MAKERS[kind](family)
    out = tmp_path / ("out" if to == "peft" else "out.safetensors")
    done = convert(place, to, str(out), source=family.source, rank="full", dtype="fp32")
    lora = read_lora(out)
    for layer in LAYERS:
        assert far(lora.updates[layer].dense(), added(family, place, family.source_state, layer)) < 1e-5
    assert not done.lost


def test_conversion_of_a_dora_wants_its_model_and_says_what_a_rank_loses(family, tmp_path):
    place, out = dora(family), str(tmp_path / "out.safetensors")
    with pytest.raises(SettingsError, match="name the model it was trained on: --source"):
        convert(place, "comfy", out)
    done = convert(place, "comfy", out, source=family.source)
    assert done.rank == 4 and "of its energy; a higher --rank" in done.notes[0]
    assert not convert(place, "comfy", out, source=family.source, rank="full").notes
    assert convert(family.lora, "comfy", out, rank="1").rank == 1


@pytest.mark.slow
@pytest.mark.parametrize("reading", ["effective", "magnitude"])
def test_kinds_go_through_one_pass_with_the_bytes_of_their_own_runs(family, reading):
    loras = [family.lora, *(make(family) for make in MAKERS.values())]
    several = one_or_many(family.config(reading, dora=reading, dtype="bf16"), loras, chosen_recipes(["casa", "direct"]))
    assert len(transfer_many(several).runs) == 8
    for config in several:
        alone = transfer(replace(config, output=str(family.folder / "alone.safetensors")))
        assert Path(alone.output).read_bytes() == Path(config.output).read_bytes(), config.output


@pytest.mark.parametrize("kind", MAKERS)
def test_any_kind_falls_into_two_parts(family, kind):
    template, lora = family.config(f"split-{kind}.safetensors", cache=None), MAKERS[kind](family)
    both = one_or_many(template, [lora], chosen_recipes(["casa"]), rank=FULL, split=True)
    adapter, taken = (deltas(run.output) for run in transfer_many(both).runs)
    whole = transfer(replace(both[0], part="whole", output=str(family.folder / "whole.safetensors")))
    for layer, expected in deltas(whole.output).items():
        assert far(adapter[layer] + taken[layer], expected) < 1e-4 < 0.02 < far(adapter[layer], expected)
    with pytest.raises(SettingsError, match="a DoRA with its magnitudes is not a sum of two parts"):
        replace(both[0], dora="magnitude")
