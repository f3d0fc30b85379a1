"""Settings: presets, flags that win over them, and refusals that say what to write."""

from dataclasses import replace
from pathlib import Path

import pytest

from loraport.analysis.inputs import AnalyzeConfig
from loraport.compute import find_device
from loraport.errors import SettingsError
from loraport.inputs.config import RankRule, TransferConfig, matches
from loraport.inputs.recipes import casa_settings, chosen_recipes
from loraport.methods.settings import (
    PAPER,
    PUBLISHED_CODE,
    CasaSettings,
    CoreSettings,
    DirectSettings,
    LoraxSettings,
    ProloraSettings,
)

GIVEN = {"lora": "l", "source": "s", "target": "t", "output": "o"}


@pytest.mark.parametrize(
    ("text", "rule"),
    [("auto", RankRule("auto")), ("source", RankRule("source")), ("full", RankRule("full")),
     ("32", RankRule("fixed", 32)), ("0.95", RankRule("energy", 0.95)), ("1", RankRule("fixed", 1))],
)  # fmt: skip
def test_rank_rules(text, rule):
    assert RankRule.parse(text) == rule and str(rule) == text


@pytest.mark.parametrize("text", ["0", "-3", "1.5", "32.0", "much", "", "nan", "inf", "0.0"])
def test_rank_rules_that_mean_nothing_are_refused(text):
    with pytest.raises(SettingsError, match="is none of: auto, source, full"):
        RankRule.parse(text)


def chosen(method, preset=None, **changes):
    return chosen_recipes([method], preset, changes)[0]


def rank_of(method, preset=None):
    return RankRule.of(chosen(method, preset))


def test_flags_win_over_the_preset():
    assert casa_settings("published-code") == PUBLISHED_CODE and casa_settings() == PAPER
    mixed = casa_settings("published-code", {"q_dom": 0.3, "energy": 0.8, "arbitrate": False})
    assert (mixed.q_dom, mixed.energy, mixed.energy_rectangular, mixed.arbitrate) == (0.3, 0.8, 0.8, False)
    assert (mixed.tau, mixed.densities) == (PUBLISHED_CODE.tau, "block")
    assert chosen("casa", "published-code", q_dom=0.3).settings == replace(PUBLISHED_CODE, q_dom=0.3)
    for method in ("casa", "undo-matched", "restore-only"):
        assert rank_of(method, "published-code") == RankRule("fixed", 32) and rank_of(method, "paper") == RankRule()
    for method in ("direct-matched", "direct-matched:restore-only"):
        assert rank_of(method, "published-code") == RankRule("auto")  # exact at the LoRA's own rank
    among = chosen_recipes(["core", "casa", "direct:1.1"], "published-code")
    assert [RankRule.of(recipe) for recipe in among] == [RankRule(), RankRule("fixed", 32), RankRule()]


def test_unknown_names_list_the_known_ones():
    with pytest.raises(SettingsError, match="unknown preset 'code'; known: paper, published-code"):
        casa_settings("code")
    with pytest.raises(SettingsError, match="unknown preset"):
        chosen("prolora", "code")
    with pytest.raises(SettingsError, match="unknown dtype 'int8'; known: fp32, bf16, fp16"):
        TransferConfig(**GIVEN, dtype="int8")
    with pytest.raises(SettingsError, match="unknown method"):
        TransferConfig(**GIVEN, method="magic")
    with pytest.raises(SettingsError, match="unknown device 'tpu'"):
        find_device("tpu")
    with pytest.raises(SettingsError, match=r"q_dom is 1.5, but it must lie in \[0, 1\]"):
        chosen("casa", q_dom=1.5)
    with pytest.raises(SettingsError, match="--tau is a setting of CASA and means nothing to 'direct'"):
        chosen("direct", tau=1.0)


def test_flags_go_to_the_method_that_has_them_and_are_refused_by_the_others():
    given = {"subspace": "rank:8", "phi_min": 0.5, "null_space": False}
    assert chosen("prolora", **given).settings == ProloraSettings("rank:8", False, False, 0.5)
    assert chosen("direct-matched:prolora", **given).settings == chosen("prolora", **given).settings
    assert chosen("lora-x", subspace="exact").settings == LoraxSettings("exact")
    assert chosen("core").settings == CoreSettings()
    for method, flag in {
        "lora-x": ("phi_min", 0.5, "--phi-min is a setting of ProLoRA"),
        "casa": ("subspace", "exact", "--subspace is a setting of ProLoRA"),
        "prolora": ("tau", 1.0, "--tau is a setting of CASA"),
        "core": ("null_space", False, "--null-space is a setting of ProLoRA"),
        "direct-matched:lora-x": ("cross_terms", True, "--cross-terms is a setting of ProLoRA"),
    }.items():
        with pytest.raises(SettingsError, match=f"{flag[2]} and means nothing to '{method}'"):
            chosen(method, **{flag[0]: flag[1]})


def test_a_flag_or_preset_that_no_method_of_the_run_looks_at_is_refused():
    for methods, preset, changes, message in (
        (("core",), "published-code", {}, "--preset is of CASA's settings and means nothing to 'core'"),
        (("direct", "prolora"), "paper", {}, "means nothing to 'direct' or 'prolora'"),
        (("restore-only",), None, {"q_act": 0.5}, "--q-act is a setting of CASA and means nothing to 'restore-only'"),
        (("direct-matched:undo-matched",), None, {"arbitrate": False}, "--arbitrate is a setting of CASA"),
        (("arbitrate-only",), None, {"restore": 0.5}, "--restore is a setting of CASA"),
        (("casa",), None, {"arbitrate": False, "q_act": 0.5}, "--q-act would do nothing beside --no-arbitrate"),
    ):
        with pytest.raises(SettingsError, match=message):
            chosen_recipes(methods, preset, changes)
    changes = {"restore": 0.5, "q_act": 0.5, "arbitrate": False}
    core, casa, arbitrate = chosen_recipes(("core", "casa", "arbitrate-only"), "published-code", changes)
    assert core.settings == CoreSettings() and casa.settings == replace(PUBLISHED_CODE, **changes)
    assert arbitrate.settings == replace(PUBLISHED_CODE, q_act=0.5)  # what it sets itself is not changed


def test_a_config_takes_the_settings_of_its_method_alone():
    config = TransferConfig(**GIVEN, method="direct-matched:prolora", settings=ProloraSettings("exact"))
    assert config.recipe.settings == ProloraSettings("exact")
    assert TransferConfig(**GIVEN, method="direct:1.15").recipe.settings == DirectSettings(1.15)
    assert TransferConfig(**GIVEN).recipe.settings == PAPER and replace(config, method="casa", settings=None)
    with pytest.raises(SettingsError, match="method 'casa' takes CasaSettings, not ProloraSettings"):
        replace(config, method="casa")


def test_a_config_takes_paths_and_a_rank_as_text_and_is_checked_when_it_is_made():
    config = TransferConfig(Path("l"), Path("s"), Path("t"), Path("~/o"), rank="32")
    assert (config.lora, config.source, config.target) == ("l", "s", "t") and config.rank == RankRule("fixed", 32)
    assert config.output == str(Path("~/o").expanduser())
    assert config.fingerprint() == TransferConfig("l", "s", "t", "o", rank=RankRule.parse("32")).fingerprint()
    numbers = [TransferConfig(**GIVEN, rank=rank).rank for rank in (32, 0.95, "full")]
    assert numbers == [RankRule("fixed", 32), RankRule("energy", 0.95), RankRule("full")]
    lists = TransferConfig(**GIVEN, include=["ffn", "attn"], cache=Path("c"))
    assert (lists.include, lists.cache) == (("ffn", "attn"), "c")
    toy = TransferConfig("toy:noir", "toy:base", "toy:one-step", "o")
    assert all(Path(place).is_dir() for place in (toy.lora, toy.source, toy.target))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"format": "coomfy"}, "unknown format 'coomfy'; known: same, comfy"),
     ({"rank": "much"}, "rank 'much' is none of: auto"), ({"rank": 32.5}, "rank '32.5' is none of: auto"),
     ({"rank": True}, "rank is True, but it must be of the class RankRule"),
     ({"rank": None}, "rank is None, but it must be of"),
     ({"include": "ffn"}, "include is 'ffn', but it must be a tuple, each of it a text"),
     ({"exclude": ("ffn", 3)}, r"exclude is \('ffn', 3\), but it must be a tuple"),
     ({"seed": "0"}, "seed is '0', but it must be a whole number"), ({"seed": -1}, "it must be 0 or more"),
     ({"as_diff": "no"}, "as_diff is 'no', but it must be True or False"),
     ({"method": None}, "method is None, but it must be a text"),
     ({"pairing": "by-name"}, "unknown pairing 'by-name'; known: auto, name, similarity"),
     ({"pair_min": 2}, r"the least similarity is 2, but an overlap lies in \[0, 1\]"),
     ({"pair_min": "0.8"}, "pair_min is '0.8', but it must be a number"),
     ({"part": "both"}, "unknown part 'both'; known: whole, adapter"), ({"device": "tpu"}, "unknown device 'tpu'"),
     ({"settings": {"tau": 1}}, "settings is {'tau': 1}, but it must be of the class AnySettings or None"),
     ({"source_part": 3}, "source_part is 3, but it must be a text or None"),
     ({"source": 3}, "source is 3, but it must be a text"), ({"cache": 3}, "cache is 3, but it must be a text or None"),
     ({"lora": {"x.lora_A.weight": 1}}, "lora holds tensors")],
)  # fmt: skip
def test_what_a_config_cannot_be_is_said_when_it_is_made(wrong, message):
    with pytest.raises(SettingsError, match=message):
        TransferConfig(**{**GIVEN, **wrong})


@pytest.mark.parametrize(
    ("make", "message"),
    [(lambda: RankRule("fixed"), "the rank is 0, but a fixed one"), (lambda: RankRule("half"), "unknown kind 'half'"),
     (lambda: RankRule("fixed", 2.5), "the rank is 2.5"), (lambda: RankRule("energy", 1), "the share of energy is 1"),
     (lambda: CasaSettings(tau=float("nan")), "tau is nan"),
     (lambda: AnalyzeConfig("l", "s", "t", "o", layers="ffn"), "layers is 'ffn'"),
     (lambda: AnalyzeConfig("l", "s", "t", "o", detail="3"), "detail is '3', but it must be a whole number")],
)  # fmt: skip
def test_so_are_ranks_settings_and_analyses(make, message):
    with pytest.raises(SettingsError, match=message):
        make()
    assert AnalyzeConfig(Path("l"), Path("s"), "t", Path("o"), layers=["ffn"]).layers == ("ffn",)


def test_the_settings_in_the_report_are_those_of_the_method():
    config = TransferConfig(**GIVEN, method="direct-matched:prolora", settings=ProloraSettings("exact"))
    assert config.recorded_settings()["subspace"] == "exact" and "tau" not in config.recorded_settings()
    assert "subspace" not in TransferConfig(**GIVEN).recorded_settings()
    assert set(TransferConfig(**GIVEN, method="core").recorded_settings()) == {"rank", "dtype", "seed"}
    assert TransferConfig(**GIVEN, method="drift-orthogonal:3").recorded_settings()["directions"] == 3


def test_patterns():
    assert matches("blocks.0.ffn.2", "ffn") and matches("blocks.0.ffn.2", "blocks.*.ffn.?")
    assert not matches("blocks.10.ffn.2", "blocks.?.ffn.2") and not matches("blocks.0.ffn.2", "ffn.*")


def test_the_same_work_has_the_same_fingerprint_wherever_it_goes():
    one = TransferConfig(**GIVEN)
    assert one.fingerprint() == TransferConfig(**{**GIVEN, "output": "elsewhere"}, cache="there").fingerprint()
    assert one.fingerprint() == TransferConfig(**GIVEN, settings=PAPER).fingerprint()
    assert one.fingerprint() != TransferConfig(**GIVEN, seed=1).fingerprint()
    assert one.fingerprint() != TransferConfig(**GIVEN, settings=PUBLISHED_CODE).fingerprint()
