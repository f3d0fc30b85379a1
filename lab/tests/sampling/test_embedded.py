"""Score and calibration on the embedded family's models, untrained ones: what has to hold whatever they have learnt."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from lab.tests.sampling.conftest import PAIRED

from loraport.errors import MismatchError, SettingsError
from loraport.files.names.blocks import layer_type
from loraport.sampling.calibration.residual_writers import patched, recorded_pass, to_output, writing_layers
from loraport.sampling.calibration.run import CalibrationSettings, calibrate, calibration_passes
from loraport.sampling.end_error import EndEffect
from loraport.sampling.hooks import adapted, fingerprint, scale_updates
from loraport.sampling.pair import Clips, wanted_velocity
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.sampling.score import judged_clips, score
from loraport.spectral.low_rank import LowRank
from loraport_lab.family.family import STUDENTS
from loraport_lab.family.pair import EmbeddedPair, is_embedded, open_embedded


def opened(pair, adapter, clips=2, store=None, role="fit"):
    return EndEffect(pair, adapter, Clips(role, 0, clips), store or SampleStore(None), PassCounter(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", PAIRED)
def test_without_an_effect_nothing_is_missed_and_with_one_direct_is(name, family, adapter):
    pair = EmbeddedPair(name, family)
    assert opened(pair, {}).errors({}).tolist() == pytest.approx([0, 0], abs=1e-10)
    effect = opened(pair, adapter)
    assert float(effect.errors(adapter).min()) > 0 and float(effect.errors({}).min()) > 0


@pytest.mark.parametrize("name", PAIRED)
def test_evaluations_follow_the_students_own_way(name, family):
    """Each evaluation on a state of the student's own run leads to the next state; on other states it does not."""
    pair = EmbeddedPair(name, family)
    clips = Clips("fit", 0, 2)
    chain = pair.source(clips, {})
    other = replace(chain, states=chain.states.clone())
    for evaluation in pair.evaluations:
        v, wanted = pair.velocity(evaluation, clips, chain), wanted_velocity(evaluation, chain)
        assert v.shape == wanted.shape
        assert not torch.allclose(v, wanted, atol=1e-3)  # student and base differ
        if evaluation.step == 0 and evaluation.frame in (None, 0):
            state = chain.states[:, 0] if evaluation.frame is None else chain.states[:, 0, :, :1]
            torch.testing.assert_close(
                state - evaluation.level * wanted, state - evaluation.level * wanted_velocity(evaluation, other)
            )
    own = pair.target(clips, {})
    if len(pair.evaluations) == 1:
        torch.testing.assert_close(own, chain.states[:, 0] - pair.velocity(pair.evaluations[0], clips, chain))


@pytest.mark.slow
@pytest.mark.parametrize(("name", "gains"), [("one-step", "type"), *((name, "none") for name in PAIRED[1:])])
def test_calibration_lowers_the_error_it_was_accepted_on(name, gains, family, adapter):
    """Gains know nothing of the sampler, readout does."""
    pair, settings = EmbeddedPair(name, family), CalibrationSettings(clips=2, gains=gains, last_blocks=1)
    counter = PassCounter(1)
    done = calibrate(pair, adapter, settings=settings, counter=counter)
    check = opened(pair, adapter, role="check")
    assert float(check.errors(done.updates).mean()) < float(check.errors(adapter).mean())
    planned = calibration_passes(pair, adapter, settings)
    assert counter.source == planned["source"] and counter.target <= planned["target"]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_another_one_does_not(family, adapter):
    pair, settings = EmbeddedPair("one-step", family), CalibrationSettings(clips=2, gains="type", last_blocks=1)
    done = calibrate(pair, adapter, settings=settings)
    assert fingerprint(calibrate(pair, adapter, settings=settings).updates) == fingerprint(done.updates)
    other = calibrate(pair, adapter, settings=replace(settings, seed=1, readout=False))
    assert other.gains.factors != done.gains.factors


@pytest.mark.slow
def test_ranks_grow_or_are_cut_back(family, adapter):
    pair = EmbeddedPair("one-step", family)
    grown = calibrate(pair, adapter, settings=CalibrationSettings(clips=4, gains="none", last_blocks=1, guarded=False))
    assert {grown.updates[layer].rank for layer in writing_layers(pair.network(), 1)} == {2 + 8}
    settings = CalibrationSettings(clips=4, gains="none", last_blocks=1, guarded=False, rank="source")
    assert {update.rank for update in calibrate(pair, adapter, settings=settings).updates.values()} == {2}


@pytest.mark.parametrize("layer", ["blocks.3.ffn.2", "blocks.3.cross_attn.o", "blocks.3.self_attn.o"])
@pytest.mark.parametrize("name", ["few-step", "causal"])
def test_the_map_to_the_output_predicts_what_a_late_change_does(name, layer, family):
    """M·E·ã against the network's own answer: close in the last block for the right gate, not without it."""
    pair, clips = EmbeddedPair(name, family), Clips("fit", 0, 2)
    chain, evaluation = pair.source(clips, {}), pair.evaluations[-1]
    with torch.no_grad(), recorded_pass(pair.network(), layer) as record:
        before = pair.velocity(evaluation, clips, chain)
    tokens = patched(before, (1, 2, 2)).shape[1]
    first = 0 if evaluation.frame is None else evaluation.frame * tokens
    M = evaluation.head * to_output(pair.network(), layer, record, first)
    E = 1e-3 * torch.randn(M.shape[1], record.inputs.shape[-1], generator=torch.Generator().manual_seed(3))
    with adapted(pair.network(), {layer: LowRank(E, torch.eye(E.shape[1]))}):
        moved = patched(pair.velocity(evaluation, clips, chain) - before, (1, 2, 2)).double()
    predicted = ((record.inputs / record.deviation)[:, first : first + tokens].double() @ E.double().mT) @ M.mT
    assert float(torch.cosine_similarity(moved.flatten(), predicted.flatten(), dim=0)) > 0.6
    if layer.endswith("ffn.2"):
        assert float(moved.norm() / predicted.norm()) == pytest.approx(1, abs=0.15)


@pytest.mark.slow
def test_the_store_goes_on_where_it_was_and_mends_what_is_torn(tmp_path, family, adapter):
    pair, store = EmbeddedPair("one-step", family), SampleStore(tmp_path / "cache")
    first = score(opened(pair, adapter, store=store), adapter, {"direct": adapter, "half": scale_updates(adapter, 0.5)})
    made = store.made
    again = SampleStore(tmp_path / "cache")
    effect = opened(pair, adapter, store=again)
    assert score(effect, adapter, {"direct": adapter, "half": scale_updates(adapter, 0.5)}) == first
    assert again.made == 0 and again.found >= made and effect.counter.as_json() == {"source": 0, "target": 0}
    for path in (tmp_path / "cache" / "samples").rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-7])
    torn = SampleStore(tmp_path / "cache")
    assert (
        score(opened(pair, adapter, store=torn), adapter, {"direct": adapter, "half": scale_updates(adapter, 0.5)})
        == first
    )
    assert torn.made == made
    assert score(opened(pair, scale_updates(adapter, 0.5), store=torn), adapter, {"direct": adapter}) != first[:1]


def test_batches_do_not_change_what_is_drawn(family, adapter):
    pair = EmbeddedPair("one-step", family)
    whole = pair.target(Clips("judge", 0, 3), adapter)
    parts = [pair.target(batch, adapter) for batch in judged_clips(3).batches(2)]
    torch.testing.assert_close(torch.cat(parts), whole)
    assert not torch.allclose(pair.target(Clips("fit", 0, 3), adapter), whole)


def test_hooks_leave_the_network_as_it_was(family, adapter):
    pair, clips = EmbeddedPair("one-step", family), Clips("fit", 0, 2)
    before = pair.target(clips, {})
    assert not torch.equal(pair.target(clips, adapter), before)
    assert torch.equal(pair.target(clips, {}), before)
    with pytest.raises(MismatchError, match="no linear layer"):
        pair.target(clips, {"blocks.9.ffn.0": next(iter(adapter.values()))})
    with pytest.raises(MismatchError, match="its update"):
        pair.target(clips, {"blocks.0.ffn.0": adapter["blocks.0.ffn.2"]})
    assert torch.equal(pair.target(clips, {}), before)


def test_a_budget_that_is_too_small_is_refused():
    PassCounter(100, most=100)
    with pytest.raises(SettingsError, match="--budget"):
        PassCounter(101, most=100)


def test_places_of_the_family_are_known(tmp_path, family):
    assert is_embedded(family / "base") and not is_embedded(tmp_path)
    assert open_embedded(family / "base", family / "students" / "few-step").student is STUDENTS["few-step"]
    with pytest.raises(MismatchError, match="its place in its family"):
        open_embedded(family / "base", family / "base")


def test_module_types_are_the_ten_of_the_notes(adapter):
    assert len({layer_type(name) for name in adapter}) == 10
