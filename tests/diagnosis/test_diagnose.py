"""Pairs planted for every verdict, each with its negation: what the weights say, and what they cannot."""

import json
import shlex

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from loraport.cli.commands.passes import lineage_notes
from loraport.diagnosis import look
from loraport.diagnosis.commands import next_command
from loraport.diagnosis.diagnose import diagnose
from loraport.diagnosis.relation import by_names
from loraport.diagnosis.rule.advice import advise
from loraport.diagnosis.rule.measured_map import measured_map
from loraport.diagnosis.rule.traits import Traits
from loraport.errors import InputError
from loraport.inputs import layer_sample
from loraport.inputs.config import TransferConfig
from loraport.merging import merge
from tests import tiny
from tests.diagnosis.planted_pairs import moved, write_lora, write_model

STATE = tiny.tiny_state(blocks=2)
BETWEEN = (measured_map().thresholds["unsure"] + measured_map().thresholds["casa"]) / 2
"""The head share at which the map is divided."""


@pytest.fixture
def pair(tmp_path):
    """A function that writes a source, a target and a LoRA, and diagnoses them."""

    def told(target, *, source=STATE, lora=STATE, exact=False, lora_size=0.1, **header):
        places = [
            write_lora(tmp_path / "style.safetensors", lora, size=lora_size, **header),
            write_model(tmp_path / "wan-big.safetensors", source),
            write_model(tmp_path / "wan-fast.safetensors", target),
        ]
        return diagnose(*places, exact=exact)

    return told


@pytest.mark.parametrize(
    ("head", "size", "verdict", "on_map"),
    [
        (0.58, 0.05, "casa", True),
        (BETWEEN, 0.05, "choose", True),
        (0.42, 0.05, "undo:0.25", True),
        (0.42, 0.62, "choose", False),  # no measured pair has drifted as far
        (0.42, 0.003, "choose", False),  # nor as little, and above rounding
        (0.10, 0.05, "choose", False),  # nor is any drift as even as noise
    ],
)
def test_the_verdict_follows_where_the_drift_sits_and_the_map_ends_somewhere(pair, head, size, verdict, on_map):
    told = pair(moved(STATE, head=head, size=size))
    assert told.verdict == verdict and told.advice.on_map is on_map
    assert told.relation.is_base and not told.relation.swapped
    assert told.traits.drift == pytest.approx(size, rel=0.02) and told.traits.head_drift == pytest.approx(
        head, abs=0.01
    )
    assert told.keys.matched == told.keys.total == 40 and told.keys.matched_layers == 20
    assert (told.sure > 0) is on_map and told.sure < 1
    assert len(told.advice.nearest) == 3


def test_the_lora_counts_too_beside_the_drift(pair):
    near, far = (pair(moved(STATE, head=0.42), lora_size=size) for size in (0.1, 4.0))
    assert near.verdict == "undo:0.25" and far.verdict == "choose" and "LoRA over the drift" in far.why


def test_where_nothing_moved_or_rounding_alone_did_the_lora_stays_as_it_is(pair):
    same = pair(STATE)
    assert (same.verdict, same.sure, same.advice.regime) == ("direct", 1.0, "same")
    rounded = pair({name: tensor.bfloat16() for name, tensor in STATE.items()})
    assert (rounded.verdict, rounded.sure, rounded.advice.regime) == ("direct", 1.0, "rounding")
    assert rounded.traits.drift == 0 and rounded.traits.rounded and "rounding" in rounded.why
    drifted = pair({name: tensor.bfloat16() for name, tensor in moved(STATE, head=0.42).items()})
    assert drifted.verdict == "undo:0.25" and drifted.traits.floor > 0


def test_a_quantised_target_that_hides_its_drift_is_said_to(tmp_path):
    lora = write_lora(tmp_path / "style.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    for size, verdict in ((0.02, "direct"), (0.2, "undo:0.25")):
        target = tiny.write_fp8(tmp_path / f"{size}.safetensors", moved(STATE, head=0.42, size=size), "comfy, older")
        told = diagnose(lora, source, target)
        assert told.verdict == verdict and told.traits.quantized
        assert told.as_json()["floor"] > 0.01
    hidden = diagnose(lora, source, tmp_path / "0.02.safetensors")
    assert "16 bits" in hidden.why and hidden.sure < 0.5


def test_a_stranger_is_no_base_and_a_relative_is(pair):
    other = pair(tiny.tiny_state(7, blocks=2))
    assert other.verdict == "not-this-pair" and not other.relation.is_base and not other.relation.swapped
    assert "not the target's base" in other.why and other.method is None
    assert other.mean("same") == pytest.approx(0, abs=0.05)
    assert other.mean("overlap") < 3 * other.mean("overlap_chance")
    own = pair(moved(STATE, head=0.42))
    assert own.relation.is_base and own.mean("same") > 0.99
    assert own.mean("overlap") > 3 * own.mean("overlap_chance")


def uneven(state, seed=3):
    """Drifts of different sizes, 3 to 20 % of the weights."""
    sizes = torch.linspace(0.03, 0.2, 6)
    parts = [moved(state, head=0.42, size=float(size), seed=seed) for size in sizes]
    return {name: parts[place % 6][name] for place, name in enumerate(state)}


def test_the_weights_may_tell_that_source_and_target_were_exchanged(pair):
    after = uneven(tiny.tiny_state(blocks=2, dim=48, ffn=80))
    before = tiny.tiny_state(blocks=2, dim=48, ffn=80)
    right, swapped = pair(after, source=before, lora=before), pair(before, source=after, lora=before)
    assert right.relation.is_base and not right.relation.swapped and right.verdict != "not-this-pair"
    assert swapped.relation.swapped and swapped.verdict == "not-this-pair" and swapped.sure < 1
    words = shlex.split(swapped.command)
    assert words[words.index("--source") + 1].endswith("wan-fast.safetensors")
    decayed = {name: tensor * 0.98 for name, tensor in before.items()}
    assert not pair(decayed, source=before, lora=before).relation.swapped  # weight decay is not taken for it


def test_the_lora_itself_may_name_the_model_that_it_was_trained_on(pair):
    target = moved(STATE, head=0.42)
    swapped = pair(target, base_model_name_or_path="some-org/wan-fast")
    assert swapped.relation.swapped and swapped.verdict == "not-this-pair" and "some-org/wan-fast" in swapped.why
    right = pair(target, base_model_name_or_path="some-org/wan-big")
    assert not right.relation.swapped and right.verdict == "undo:0.25" and "wan-big" in right.relation.words
    silent = pair(target, base_model_name_or_path="some-org/another")
    assert silent.verdict == "undo:0.25"


def test_a_choice_is_made_where_clips_can_be_made():
    unsure = advise(Traits(drift=0.05, floor=0.0, lora=0.1, head_drift=BETWEEN, raw_drift=0.05))
    for pair, words in (
        (("toy:base", "toy:few-step"), "choose direct casa undo:0.25 --lora style.safetensors"),
        (("wan2.1-t2v-1.3b", "fastwan2.1-t2v-1.3b"), "compare style.safetensors"),
        (("wan2.1-t2v-1.3b", "source+fast.safetensors"), "compare style.safetensors"),
        (("wan.safetensors", "fast.safetensors"), "transfer style.safetensors"),
    ):
        assert next_command("style.safetensors", *pair, unsure).startswith(f"loraport {words}")


def test_a_transfer_between_exchanged_presets_says_so():
    pair = ("fastwan2.1-t2v-1.3b", "wan2.1-t2v-1.3b")
    config = TransferConfig("style.safetensors", *pair, "out.safetensors")
    right = TransferConfig("style.safetensors", *reversed(pair), "out.safetensors")
    assert "exchanged" in lineage_notes([config])[0] and lineage_notes([right]) == []


def test_presets_know_their_lineage():
    base, student, other = "wan2.1-t2v-1.3b", "fastwan2.1-t2v-1.3b", "wan2.1-t2v-14b"
    assert by_names(base, student, {}).is_base
    assert by_names(student, base, {}).swapped
    wrong = by_names(other, student, {})
    assert not wrong.is_base and not wrong.swapped and wrong.base == base
    where = "FastVideo/FastWan2.1-T2V-1.3B-Diffusers:transformer"
    assert by_names(where, base, {}).swapped  # by its address, too
    assert by_names(base, "source+accelerator.safetensors", {}) is None
    assert by_names("a.safetensors", "b.safetensors", {}) is None


def test_an_accelerator_given_as_the_target_is_one_command_away(tmp_path):
    lora = write_lora(tmp_path / "style.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    accelerator = tiny.write_lora(tmp_path / "fast.safetensors", tiny.lora_factors(STATE, seed=5, rank=2))
    told = diagnose(lora, source, accelerator)
    assert told.verdict == "not-this-pair" and f"source+{accelerator}*1" in told.why and told.keys.matched == 0
    words = shlex.split(told.command)
    beside = diagnose(*(words[2], words[4], words[6]))
    assert words[:2] == ["loraport", "diagnose"] and beside.verdict == "direct" and beside.traits.accelerated
    merged = tmp_path / "merged.safetensors"
    merge(source, [str(accelerator)], merged)
    assert diagnose(lora, source, merged).traits.accelerated
    assert "is a LoRA, not a model" in diagnose(lora, accelerator, source).why


def test_a_lora_of_another_size_or_family_is_a_verdict(pair, tmp_path):
    size = pair(moved(STATE, head=0.42), lora=tiny.tiny_state(blocks=2, dim=48, ffn=80))
    assert size.verdict == "not-this-pair" and "another model (size)" in size.why and size.keys.matched == 0
    assert size.sure == 1 and size.command.startswith("loraport inspect")
    part = pair(moved(STATE, head=0.42), lora=tiny.tiny_state(blocks=3))
    assert part.verdict == "undo:0.25" and part.keys.matched_layers == 20 < part.keys.layers == 30
    assert any("10 of the LoRA's 30 layers" in note for note in part.notes)


def test_damaged_weights_are_an_error_and_no_verdict(pair):
    broken = moved(STATE, head=0.42)
    broken["blocks.0.ffn.0.weight"] = torch.full_like(broken["blocks.0.ffn.0.weight"], torch.nan)
    with pytest.raises(InputError, match=r"blocks\.0\.ffn\.0 .*NaN"):
        pair(broken)


def test_a_sample_says_where_it_cannot_tell_and_all_layers_can(pair, monkeypatch):
    half = moved(STATE, head=0.42)
    other = moved(STATE, head=2 * BETWEEN - 0.42)
    mixed = {name: (half if ".1." in name else other)[name] for name in STATE}
    monkeypatch.setattr(layer_sample, "WORK", 1.0)
    monkeypatch.setattr(layer_sample, "LEAST_LAYERS", 10)
    sampled, whole = pair(mixed), pair(mixed, exact=True)
    assert len(sampled.looks) == 10 < len(whole.looks) == 20
    assert sampled.verdict == "choose" and "only all layers can tell" in sampled.why
    assert sampled.command.endswith("--all") and sampled.traits.head_error > 0 == whole.traits.head_error
    assert whole.command.endswith("--all") is False


def test_the_quick_look_agrees_with_the_exact_one(pair, monkeypatch):
    target = moved(STATE, head=0.42)
    exact = pair(target, exact=True)
    monkeypatch.setattr(look, "SMALL", 0)
    quick = pair(target)
    for name in ("drift", "lora", "cosine", "raw_drift"):
        assert getattr(quick.traits, name) == pytest.approx(getattr(exact.traits, name), rel=1e-4)
    assert quick.traits.head_drift == pytest.approx(exact.traits.head_drift, abs=0.01)
    assert quick.traits.rho2 == pytest.approx(exact.traits.rho2, rel=0.3)  # of four layers, not of all
    assert quick.kept["undo:0.25"] == pytest.approx(exact.kept["undo:0.25"], abs=0.1)
    assert quick.kept["casa"] == pytest.approx(exact.kept["casa"], abs=0.2)


KEYS = {
    *("keys", "is_base", "swapped", "drift", "rho2", "lora", "regime", "verdict", "why", "sure", "command", "estimate"),
    *("floor", "head_drift", "kept", "method", "on_map", "nearest", "exact"),
}


@pytest.mark.slow
def test_the_command_prints_the_line_the_json_and_the_page(run, tmp_path):
    lora = write_lora(tmp_path / "style.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    target = write_model(tmp_path / "fast.safetensors", moved(STATE, head=0.42))
    words = ("diagnose", lora, "--source", source, "--target", target)
    code, out, _ = run(*words, "--report", tmp_path / "page.html")
    *_, line, command = out.splitlines()
    assert code == 0 and line.startswith("undo:0.25, a quarter of the drift undone (")
    assert command == (
        f"next: loraport transfer {lora} --source {source} --target {target} --method undo:0.25 "
        "-o style-undo-0.25.safetensors"
    )
    assert "20 of 20 layers" in out and "nearest" in out and (tmp_path / "page.html").exists()
    assert run(*words, "--report", tmp_path / "page.html")[0] == 2  # it is there already
    code, out, _ = run(*words, "--json", "-q")
    facts = json.loads(out)
    assert code == 0 and set(facts) >= KEYS and facts["keys"]["in"] == facts["keys"]["matched"] == 40
    assert facts["verdict"] == "undo:0.25" and 0 < facts["sure"] < 1 and len(facts["layers"]) == 20
    code, out, _ = run("diagnose", lora, "--source", source, "--target", lora, "--json")
    facts = json.loads(out)
    assert code == 0 and facts["verdict"] == "not-this-pair" and set(facts) >= KEYS and facts["drift"] is None
    code, _, err = run("diagnose", tmp_path / "none.safetensors", "--source", source, "--target", target)
    assert code == 2 and "does not exist" in err and "Traceback" not in err


@pytest.mark.slow
def test_the_next_command_is_one_that_runs(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lora = write_lora(tmp_path / "style.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    for head, method in ((0.58, "casa"), (BETWEEN, "direct,casa,undo:0.25"), (0.42, "undo:0.25")):
        target = write_model(tmp_path / f"fast-{head}.safetensors", moved(STATE, head=head))
        words = shlex.split(diagnose(lora, source, target).command)
        assert words[words.index("--method") + 1] == method
        assert run(*words[1:], "-q")[0] == 0 and (tmp_path / words[words.index("-o") + 1]).exists()
    assert run("convert", lora, "--to", "peft", "-o", tmp_path / "style-peft", "-q")[0] == 0
    words = shlex.split(diagnose(tmp_path / "style-peft", source, target).command)
    assert run(*words[1:], "-q")[0] == 0  # of a folder a folder


@pytest.mark.slow
def test_a_transfer_ends_with_the_line_that_a_diagnosis_has(run, tmp_path):
    lora = write_lora(tmp_path / "style.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    target = write_model(tmp_path / "fast.safetensors", moved(STATE, head=0.42))
    told = diagnose(lora, source, target)
    for method in ("casa", "undo:0.25", "direct", "prolora"):
        output = tmp_path / f"{method.replace(':', '-')}.safetensors"
        code, out, _ = run(
            "transfer", lora, "--source", source, "--target", target, "--method", method, "-o", output, "--no-cache"
        )
        assert code == 0 and out.splitlines()[-1].split(maxsplit=1) == ["advice", told.line()]
    accelerator = tiny.write_lora(tmp_path / "fast-lora.safetensors", tiny.lora_factors(STATE, seed=5, rank=2))
    merge(source, [str(accelerator)], tmp_path / "merged.safetensors")
    for place in (f"source+{accelerator}", tmp_path / "merged.safetensors"):
        words = ("transfer", lora, "--source", source, "--target", place, "-o", tmp_path / "out.safetensors")
        assert run(*words)[1].splitlines()[-1].split(maxsplit=1)[1].startswith("direct, the LoRA as it is")
    facts = json.loads(run(*words, "--json", "--overwrite")[1])
    assert facts["advice"]["verdict"] == "direct" and facts["layers"][0]["few_directions"] is True


def test_little_of_the_correction_is_said_with_the_price_of_more(run, tmp_path):
    dim, ffn = 96, 160
    state = tiny.tiny_state(blocks=1, dim=dim, ffn=ffn)
    lora = write_lora(tmp_path / "style.safetensors", state, rank=1)
    source = write_model(tmp_path / "wan.safetensors", state)
    target = write_model(tmp_path / "fast.safetensors", tiny.drifted(state, size=0.05))
    words = ("transfer", lora, "--source", source, "--target", target, "-o", tmp_path / "out.safetensors")
    code, _, err = run(*words)
    assert code == 0 and "of what casa changed is kept at rank 2" in err and "--rank 8 keeps more" in err
    kept = json.loads(run(*words, "--json", "--overwrite")[1])["kept_correction"]
    assert kept < 0.3
    _, _, err = run(*words, "--rank", "80", "--overwrite")
    assert "keeps more" not in err


def test_orthogonal_undo_warns_of_a_lora_far_larger_than_the_drift(run, tmp_path):
    source = write_model(tmp_path / "wan.safetensors", STATE)
    target = write_model(tmp_path / "fast.safetensors", moved(STATE, head=0.42, size=0.05))
    for size, method, warned in ((0.5, "undo-orthogonal", True), (0.1, "undo-orthogonal", False), (0.5, "undo", False)):
        lora = write_lora(tmp_path / "style.safetensors", STATE, size=size)
        words = ("--source", source, "--target", target, "--method", method, "-o", tmp_path / "out.safetensors")
        code, _, err = run("transfer", lora, *words, "--overwrite")
        assert code == 0 and ("the LoRA is 10 times as large as the drift" in err) is warned


@pytest.mark.slow
def test_the_advice_is_taken_and_recorded(run, tmp_path):
    lora = write_lora(tmp_path / "style.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    target = write_model(tmp_path / "fast.safetensors", moved(STATE, head=0.42))
    by_hand, by_advice = tmp_path / "hand.safetensors", tmp_path / "advice.safetensors"
    words = ("transfer", lora, "--source", source, "--target", target, "--method")
    code, out, err = run(*words, "recommend", "-o", by_advice, "--json", "--report", tmp_path / "page.html")
    facts = json.loads(out)
    assert (
        code == 0 and facts["method"] == "undo:0.25" and facts["settings"]["advised"].startswith("undo:0.25, a quarter")
    )
    assert "undo:0.25" in err and "advised" in (tmp_path / "page.html").read_text()
    assert run(*words, "undo:0.25", "-o", by_hand, "-q")[0] == 0
    ours, theirs = load_file(by_advice), load_file(by_hand)
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs) and ours.keys() == theirs.keys()
    with safe_open(by_advice, "pt") as file:
        assert "undo:0.25, a quarter" in json.loads(file.metadata()["loraport.settings"])["advised"]
    again, alien = write_lora(tmp_path / "other.safetensors", STATE), tmp_path / "alien.safetensors"
    write_lora(alien, tiny.tiny_state(blocks=2, dim=48, ffn=80))
    many = ("transfer", lora, again, alien, *words[2:], "recommend", "-o", tmp_path / "both", "--keep-going")
    code, out, err = run(*many, "--table", tmp_path / "all.csv")
    assert (
        code == 3
        and "another model (size)" in err
        and f"advice for all: {diagnose(lora, source, target).line()}" in out
    )
    assert (tmp_path / "both" / "other-undo-0.25.safetensors").exists() and "a quarter" in (
        tmp_path / "all.csv"
    ).read_text()


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        (("--method", "recommend,casa"), "give it alone"),
        (("--method", "recommend", "--dry-run"), "has to look at weights"),
        (("--method", "recommend", "--tau", "2"), "leave them out"),
        (("--method", "recommend"), "not the target's base"),
    ],
)
def test_advice_that_cannot_be_taken_is_one_sentence(run, tmp_path, more, reason):
    lora = write_lora(tmp_path / "style.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    target = write_model(tmp_path / "other.safetensors", tiny.tiny_state(7, blocks=2))
    output = tmp_path / "out.safetensors"
    code, _, err = run("transfer", lora, "--source", source, "--target", target, "-o", output, *more)
    assert code == 2 and reason in err and "Traceback" not in err and not output.exists()
