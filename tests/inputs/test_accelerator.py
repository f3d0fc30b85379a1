"""Targets that are a model with an accelerator LoRA: the drift is exact, and as if the accelerator were merged."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from loraport.errors import InputError, LoraportError, MismatchError, OutputError, SettingsError
from loraport.files.accelerator_names import fitted
from loraport.files.loaders.how_to_load import ToLoad, how_to_load
from loraport.files.lora.provenance import accelerator_hub_ids, accelerators_of, loading_hint
from loraport.files.lora.read import read_lora
from loraport.files.models.checkpoint import open_checkpoint
from loraport.files.models.hub import looks_like_hub_id
from loraport.files.models.weight import Weight
from loraport.files.presets.pairs import published_pair, published_pairs
from loraport.files.presets.table import ACCELERATORS, PRESETS
from loraport.inputs.accelerator import AcceleratedModel, open_target, split_target
from loraport.inputs.config import RankRule
from loraport.inputs.open import prepare
from loraport.merging import merge
from loraport.transfers.layer_source import StoredLayer
from loraport.transfers.run import transfer
from tests import tiny
from tests.transfers.models import deltas, make_family

ALONE = "blocks.1.ffn.2"


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


@pytest.fixture
def factors(family):
    """An accelerator that leaves one layer alone."""
    return {name: pair for name, pair in tiny.lora_factors(family.source_state, 7, 3).items() if name != ALONE}


@pytest.fixture
def accelerator(family, factors):
    return str(tiny.write_lora(family.folder / "fast.safetensors", factors))


def apart(one, other) -> float:
    return max(float((one[name] - other[name]).norm() / other[name].norm()) for name in other)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["casa", "undo:0.5", "direct", "core", "prolora", "lora-x"])
@pytest.mark.parametrize("strength", [0.6])
def test_it_is_as_if_the_accelerator_were_merged(family, accelerator, method, strength):
    merged = str(family.folder / "merged.safetensors")
    merge(family.source, [f"{accelerator}*{strength}"], merged)
    settings = {"method": method, "rank": RankRule("full")}
    transfer(family.config("a.safetensors", target=merged, **settings))
    expected = deltas(family.folder / "a.safetensors")
    for model in ("source", family.source):
        target = f"{model}+{accelerator}*{strength}"
        result = transfer(family.config("b.safetensors", target=target, **settings))
        assert apart(deltas(family.folder / "b.safetensors"), expected) < 1e-4
        assert result.keys.counts["transferred"] == 40 and not result.lost


@pytest.mark.slow
def test_another_strength_and_no_accelerator_give_other_results(family, accelerator):
    found = {}
    for target in (f"source+{accelerator}", f"source+{accelerator}*0.5", family.source):
        transfer(family.config(target=target, rank=RankRule("full")))
        found[target] = deltas(family.folder / "out.safetensors")
    one, half, none = found.values()
    assert apart(one, half) > 0.01 < apart(one, none) and apart(half, none) > 0.01


@pytest.mark.slow
def test_on_another_model_its_own_drift_counts_too(family, accelerator):
    merged = str(family.folder / "merged")
    merge(family.target, [accelerator], merged)
    settings = {"method": "undo:0.5", "rank": RankRule("full")}
    transfer(family.config("a.safetensors", target=merged, **settings))
    transfer(family.config("b.safetensors", target=f"{family.target}+{accelerator}", **settings))
    assert apart(deltas(family.folder / "b.safetensors"), deltas(family.folder / "a.safetensors")) < 1e-4


def test_the_drift_is_the_accelerators_update_to_the_last_bit(family, factors, accelerator):
    ready = prepare(family.config(target=f"source+{accelerator}*-0.5"))
    for job in ready.plan.jobs:
        weights = StoredLayer.load(job.name, ready.source, ready.target).on(keep_target=True)
        if job.name == ALONE:
            assert not weights.drift.any() and weights.facts.target_hash == weights.facts.source_hash
            continue
        B, A = factors[job.name]
        assert torch.equal(weights.drift, torch.zeros(job.shape).addmm_(B, A, alpha=-0.5))
        assert (
            torch.equal(weights.W_t, weights.W_s + weights.drift)
            and weights.facts.target_hash != weights.facts.source_hash
        )


def test_a_layer_that_it_leaves_alone_is_reused_as_it_is(family, accelerator):
    result = transfer(family.config(target=f"source+{accelerator}", rank=RankRule("full")))
    B, A = family.factors[ALONE]
    written = deltas(family.folder / "out.safetensors")[ALONE]
    assert float((written - B.double() @ A.double()).norm() / written.norm()) < 1e-6
    assert next(row.drift for row in result.layers if row.name == ALONE) == 0
    assert any("leaves 1 of the LoRA's 20 layers alone" in note for note in result.warnings)


def test_the_file_and_the_notes_say_to_load_it_beside(family, accelerator):
    result = transfer(family.config(target=f"source+{accelerator}*0.5"))
    assert any("load the result beside fast.safetensors at strength 0.5" in note for note in result.warnings)
    with safe_open(family.folder / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["loraport.target"] == "source.safetensors+fast.safetensors"
    assert metadata["loraport.accelerator_strength"] == "0.5" and "beside" in metadata["loraport.load"]
    transfer(family.config("plain.safetensors"))
    with safe_open(family.folder / "plain.safetensors", "pt") as file:
        assert not {key for key in file.metadata() if "accelerator" in key}


def test_differences_and_what_has_no_place(family, factors, accelerator):
    head = "diffusion_model."
    extras = {f"{head}{ALONE}.diff": torch.full((24, 40), 0.25), f"{head}blocks.7.ffn.0.diff": torch.ones(40, 24)}
    save_file(load_file(accelerator) | extras, accelerator)
    target = open_target(f"source+{accelerator}*2", open_checkpoint(family.source))
    assert isinstance(target, AcceleratedModel)
    source = Weight(torch.zeros(24, 40), "hash", torch.float32)
    found = target.drift(ALONE, source, target.load(ALONE))
    assert torch.equal(found.matrix, torch.full((24, 40), 0.5))
    notes = target.notes(family.factors, 20)
    assert len(notes) == 2 and "1 keys of fast.safetensors have no place" in notes[1]


def test_which_plus_sign_divides(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("a+b", "c", "c+d", "e+f", "g"):
        Path(name).touch()
    cases = {
        "a+b": None,
        "missing": None,
        "a+b+c*0.5": ("a+b", "c*0.5"),
        "source+e+f": ("source", "e+f"),
        "source+c*1e+0": ("source", "c*1e+0"),
        "c+e+f*1e+0": ("c", "e+f*1e+0"),
        "source+gone.safetensors*1e+0": ("source", "gone.safetensors*1e+0"),
        "Wan-AI/Wan2.1-T2V-1.3B+c": ("Wan-AI/Wan2.1-T2V-1.3B", "c"),
        "source+c*0.5+g": ("source", "c*0.5", "g"),
        "source+c*1e+0+e+f*2+g*-1": ("source", "c*1e+0", "e+f*2", "g*-1"),
        "a+b+g+org/few-step*0.5": ("a+b", "g", "org/few-step*0.5"),
        "source+c+gone+g": ("source", "c", "gone+g"),
    }
    assert {text: split_target(text) for text in cases} == cases


def test_a_changed_accelerator_starts_over(family, factors, accelerator, monkeypatch):
    from loraport.transfers import run as running

    def stop(*_):
        raise OutputError("stopped")

    with monkeypatch.context() as patch:
        patch.setattr(running, "output_contents", stop)
        with pytest.raises(OutputError):
            transfer(family.config(target=f"source+{accelerator}", method="undo:1"))
    tiny.write_lora(Path(accelerator), {name: (2 * B, A) for name, (B, A) in factors.items()})
    settings = {"target": f"source+{accelerator}", "method": "undo:1"}
    transfer(family.config(**settings))
    again = (family.folder / "out.safetensors").read_bytes()
    transfer(family.config("fresh.safetensors", **settings))
    assert again == (family.folder / "fresh.safetensors").read_bytes()


def test_wrong_targets_are_one_message(family, accelerator):
    big = str(tiny.write_lora(family.folder / "big.safetensors", tiny.lora_factors(tiny.tiny_state(0, dim=48))))
    before = sorted(family.folder.rglob("*"))
    for target, error, message in (
        (f"source+{accelerator}*fast", SettingsError, "'fast' is not a valid strength"),
        (f"source+{accelerator}.gone", InputError, "gone does not exist"),
        (f"source+{big}", MismatchError, "made for another model"),
        (f"+{accelerator}", SettingsError, "is missing the model or the accelerator"),
        ("source+", SettingsError, "is missing the model or the accelerator"),
        (f"{family.folder}/no-model+{accelerator}", InputError, "no-model does not exist"),
        (f"source+{family.source}", InputError, "model checkpoint, not a LoRA"),
    ):
        with pytest.raises(LoraportError, match=message) as refusal:
            transfer(family.config(target=target))
        assert isinstance(refusal.value, error), target
    assert sorted(family.folder.rglob("*")) == before


def test_the_accelerator_is_not_overwritten(family, accelerator):
    with pytest.raises(OutputError, match="is an input of this run"):
        transfer(family.config("fast.safetensors", target=f"source+{accelerator}"))


@pytest.fixture
def second(family, factors):
    """Another accelerator, on one layer alone."""
    name = next(iter(factors))
    B, A = factors[name]
    return str(tiny.write_lora(family.folder / "guide.safetensors", {name: (B.flip(0), A.flip(1))}))


def test_the_drift_of_several_accelerators_is_their_sum(family, factors, accelerator, second):
    ready = prepare(family.config(target=f"source+{accelerator}*0.5+{second}*-2"))
    alone = prepare(family.config(target=f"source+{accelerator}*0.5"))
    name = next(iter(factors))
    for layer in (name, next(layer for layer in factors if layer != name)):
        both, one = (StoredLayer.load(layer, run.source, run.target).on(keep_target=True) for run in (ready, alone))
        B, A = factors[layer]
        added = -2 * B.flip(0) @ A.flip(1) if layer == name else torch.zeros_like(both.drift)
        assert torch.allclose(both.drift, one.drift + added, atol=1e-6)
        assert both.facts.target_hash != one.facts.target_hash  # which of them touch a layer is no part of its hash
    assert ready.target.paths[1:] == (Path(accelerator), Path(second))


@pytest.mark.slow
def test_several_accelerators_are_what_their_merge_is(family, accelerator, second):
    merged = str(family.folder / "merged.safetensors")
    merge(family.source, [f"{accelerator}*0.5", second], merged)
    settings = {"method": "undo:0.5", "rank": RankRule("full")}
    transfer(family.config("a.safetensors", target=merged, **settings))
    transfer(family.config("b.safetensors", target=f"source+{accelerator}*0.5+{second}", **settings))
    assert apart(deltas(family.folder / "b.safetensors"), deltas(family.folder / "a.safetensors")) < 1e-4


def test_the_file_names_all_accelerators_and_inspect_says_so(family, accelerator, second):
    result = transfer(family.config(target=f"source+{accelerator}*0.5+{second}"))
    beside = "beside fast.safetensors at strength 0.5 and guide.safetensors at strength 1"
    assert any(f"load the result {beside}: the accelerators are not in it" in note for note in result.warnings)
    with safe_open(family.folder / "out.safetensors", "pt") as file:
        metadata = file.metadata()
    assert metadata["loraport.target"] == "source.safetensors+fast.safetensors+guide.safetensors"
    assert [row["strength"] for row in json.loads(metadata["loraport.accelerators"])] == [0.5, 1.0]
    words = f"on source.safetensors at strength 1, {beside}: the accelerators are not in this file"
    assert loading_hint(metadata) == words
    ways = how_to_load("musubi-tuner", ToLoad("x.safetensors", "wan", accelerators_of(metadata)))
    assert ways == ("--lora_weight fast.safetensors guide.safetensors x.safetensors --lora_multiplier 0.5 1 1.0")


@pytest.mark.parametrize("text", ["[1]", "{}", "nonsense", '[{"name": 1}]', '[{"name": "a", "strength": "x"}]'])
def test_a_list_of_accelerators_that_is_none_is_left_out(text):
    assert accelerators_of({"loraport.accelerators": text}) == ()


def test_a_name_stands_for_its_files_at_their_strengths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    few, cfg = (place for place, _ in ACCELERATORS["longlive-plug-wan2.1-t2v-14b"].files)
    file = ACCELERATORS["lightx2v-lora-wan2.1-t2v-14b"].files[0][0]
    high = ACCELERATORS["lightning-lora-wan2.2-t2v-a14b-high"].files[0][0]
    causvid = ACCELERATORS["causvid-lora-wan2.1-t2v-14b"].files[0][0]
    cases = {
        "wan2.1-t2v-14b+longlive-plug-wan2.1-t2v-14b": ("wan2.1-t2v-14b", f"{few}*1", f"{cfg}*0.5"),
        "wan2.1-t2v-14b+longlive-plug": ("wan2.1-t2v-14b", f"{few}*1", f"{cfg}*0.5"),
        "source+lightx2v-lora-wan2.1-t2v-14b*0.8": ("source", f"{file}*0.8"),
        "wan2.1-t2v-14b+lightx2v+mine.safetensors*0.3": ("wan2.1-t2v-14b", f"{file}*1", "mine.safetensors*0.3"),
        "source+causvid-lora-wan2.1-t2v-14b": ("source", f"{causvid}*0.3"),
        "wan2.2-t2v-a14b-high+lightning": ("wan2.2-t2v-a14b-high", f"{high}*1"),
        "wan2.2-t2v-a14b+lightning-lora-wan2.2-t2v-a14b": ("wan2.2-t2v-a14b", f"{high}*1"),
    }
    for text, wanted in cases.items():
        assert split_target(text) == wanted, text
        assert split_target("+".join(wanted)) == wanted, "what it stands for is a target, too"
    assert fitted("source+lightx2v*0.7", "wan2.1-t2v-14b") == "source+lightx2v-lora-wan2.1-t2v-14b*0.7"
    assert fitted("source+fast.safetensors", "wan2.1-t2v-14b") == "source+fast.safetensors"
    Path("lightx2v").touch()
    assert fitted("source+lightx2v", "wan2.1-t2v-14b") == "source+lightx2v", "a file of that name is meant"
    with pytest.raises(SettingsError, match=r"also lies here; write \./lightx2v"):
        split_target("wan2.1-t2v-14b+lightx2v")


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("wan2.1-t2v-14b+longlive-plug*0.7", "several LoRAs, at strengths 1 and 0.5, and 0.7 is one number"),
        ("wan2.1-t2v-1.3b+lightx2v", "no lightx2v for wan2.1-t2v-1.3b"),
        ("source+lightx2v", "a kind of accelerators, one for each model"),
        ("source+dmd2-lora-sdx", "is no preset; did you mean 'dmd2-lora-sdxl'"),
    ],
)
def test_a_name_that_does_not_say_which_is_one_message(target, said):
    with pytest.raises(SettingsError, match=said):
        split_target(target)


def test_the_file_says_where_on_the_hub_an_accelerator_is(family, accelerator, second, monkeypatch):
    here = {"org/fast:fast.safetensors": accelerator, "org/cfg@main": second}
    monkeypatch.setattr(
        "loraport.inputs.accelerator.read_lora", lambda place, **more: read_lora(here.get(place, place), **more)
    )
    source = open_checkpoint(family.source)
    beside = "+".join(f"{place}*0.5" for place in here)
    for target, wanted in ((f"source+{beside}", tuple(here)), (f"source+{accelerator}", ("",))):
        fields = open_target(target, source).provenance()
        assert accelerator_hub_ids({f"loraport.{name}": value for name, value in fields.items()}) == wanted
    one = open_target("source+org/cfg@main", source).provenance()
    assert one["accelerator_hub"] == "org/cfg@main"


def test_pairs_by_name():
    assert published_pair("fastwan") == ("wan2.1-t2v-1.3b", "fastwan2.1-t2v-1.3b")
    assert published_pair("krea-realtime") == ("wan2.1-t2v-14b", "krea-realtime-14b")
    assert published_pair("ssd") == ("sdxl", "ssd-1b"), "the start of one"
    name = "lightx2v-lora-wan2.1-t2v-14b"
    assert published_pair(name) == ("wan2.1-t2v-14b", f"source+{name}")
    assert published_pair("lightx2v-wan2.2-i2v-a14b") == ("wan2.2-i2v-a14b", "lightx2v-wan2.2-i2v-a14b"), "both experts"
    both = published_pair("lightning-lora-wan2.2-t2v-a14b")
    assert both == ("wan2.2-t2v-a14b", "source+lightning-lora-wan2.2-t2v-a14b")
    for name, (source, target) in published_pairs().items():
        assert source in PRESETS or f"{source}-high" in PRESETS, name
        assert split_target(target) or target in PRESETS or f"{target}-high" in PRESETS, name
    for wrong, said in (("fastwan2", "several pairs"), ("sdxl", "a base"), ("fastwann", "did you mean 'fastwan'")):
        with pytest.raises(SettingsError, match=said):
            published_pair(wrong)


def test_the_accelerators_are_sound():
    assert (
        list(ACCELERATORS) == [one.name for one in ACCELERATORS.values()] and not ACCELERATORS.keys() & PRESETS.keys()
    )
    for one in ACCELERATORS.values():
        assert one.files and one.models and (one.unverified or one.seen), one.name
        assert all(looks_like_hub_id(place) and "+" not in place and "*" not in place for place, _ in one.files)
        assert {PRESETS[model].family for model in one.models} == {one.family}
        assert one.name == one.name.lower() and "+" not in one.name and "*" not in one.name
        json.dumps(one.as_json())
    kinds = [(one.kind, model) for one in ACCELERATORS.values() if one.kind for model in one.models]
    assert len(set(kinds)) == len(kinds), "a kind names one for a model"
