"""Options that would do nothing beside the others are refused or remarked on, never ignored in silence."""

from __future__ import annotations

import json

import pytest
from safetensors.torch import load_file
from typer.testing import CliRunner

from loraport.cli import app
from loraport.errors import LoraportError, SettingsError
from loraport.sampling.providers import known_place
from tests import tiny
from tests.transfers.models import make_family, make_rounded_family


@pytest.fixture
def family(tmp_path):
    return make_family(tmp_path)


def transfer(family, *words, output="out.safetensors", target=None):
    common = ["transfer", family.lora, "--source", family.source, "--target", target or family.target, "--no-cache"]
    return CliRunner().invoke(app, [*common, "-o", str(family.folder / output), *map(str, words)])


@pytest.mark.parametrize(
    "words",
    [
        ["--frames", "9"],
        ["--guard-clips", "32"],
        ["--calibrated"],
        ["--pairing", "name", "--pair-min", "0.8"],
        ["--dry-run", "--report", "page.html"],
        ["--as", "diff", "--rank", "8"],
        ["--as", "diff", "--format", "diffusers"],
        ["--preset", "paper", "--method", "core,direct"],
        ["--restore", "1", "--method", "arbitrate-only"],
    ],
    ids=" ".join,
)
def test_idle_options_of_transfer_are_refused(family, words):
    done = transfer(family, *words)
    assert isinstance(done.exception, SettingsError) and "leave it out" in str(done.exception)
    assert any(word in str(done.exception) for word in words if word.startswith("--"))
    assert not (family.folder / "out.safetensors").exists()


def test_options_that_agree_with_the_others_are_taken(family):
    for number, words in enumerate((["--as", "diff", "--rank", "full", "--format", "comfy"], ["--pair-min", "0.9"])):
        assert transfer(family, *words, output=f"{number}.safetensors").exit_code == 0
    target = f"source+{family.lora}"
    done = transfer(family, "--target-part", "generator", target=target)
    assert isinstance(done.exception, SettingsError) and "--source-part" in str(done.exception)


def test_a_preset_is_casas_alone(family):
    """Beside CASA another method keeps the bytes that it has without the preset."""
    done = transfer(family, "--method", "casa,core", "--preset", "published-code", "--json", output="both")
    ranks = {run["method"]: {row["rank_out"] for row in run["layers"]} for run in json.loads(done.stdout)["runs"]}
    assert ranks == {"casa": {24}, "core": {4}}  # 32, as far as layers of 24 go
    assert transfer(family, "--method", "core", output="alone.safetensors").exit_code == 0
    one, other = (load_file(family.folder / name) for name in ("both/lora-core.safetensors", "alone.safetensors"))
    assert all((one[key] == other[key]).all() for key in other)


def choose(family, *words):
    common = ["choose", *words, "--lora", "toy:noir", "--source", "toy:base", "--target", "toy:one-step", "--no-cache"]
    return CliRunner().invoke(app, [*common, "-o", str(family.folder / "out")])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["casa", "--frames", "9"], "--frames would do nothing here: the embedded family"),
        (["casa", "--pairing", "name", "--pair-min", "0.8"], "--pair-min would do nothing here"),
        (["casa", "--dry-run", "--report", "page.html"], "--report would do nothing here"),
        (["core", "--tau", "2"], "--tau is a setting of CASA and means nothing to 'direct' or 'core'"),
        (["direct"], "direct reuse has no rival"),
        (["none"], "'none' cannot be kept"),
        (["cassa"], "unknown method or file 'cassa'; known: casa, direct"),
        (["casa", "undo", "casa"], "candidate 'casa' is given twice"),
        ([f"{known_place('toy:noir')}*0.5"], "is chosen at strength 1"),
        (["undo:much"], "'much' is not a number"),
    ],
    ids=lambda one: one if isinstance(one, str) else None,
)
def test_what_cannot_be_chosen_from_is_refused(family, words, message):
    done = choose(family, *words)
    assert isinstance(done.exception, LoraportError) and message in str(done.exception)
    assert not list(family.folder.glob("out*"))


def test_a_dry_run_of_choose_says_how_many_passes(family):
    done = choose(family, "casa", "calibrated", "--dry-run", "--clips", "8")
    assert done.exit_code == 0 and "8 clips would be sampled" in done.stdout and not list(family.folder.glob("out*"))


@pytest.mark.parametrize(
    "words",
    [
        ["keep-dominant", "--clusters", "single", "--tau", "2"],
        ["keep-dominant", "--directions", "all", "--energy", "0.5"],
        ["over-activate", "--noise", "factors", "--tau", "2"],
        ["over-activate", "--noise", "factors", "--clusters", "drift"],
    ],
    ids=" ".join,
)
def test_idle_options_of_probes_are_refused(family, words):
    models = ["--source", family.source, "--target", family.target, "--no-cache"]
    done = CliRunner().invoke(app, ["probe", *words, *models, "-o", str(family.folder / "out.safetensors")])
    assert isinstance(done.exception, SettingsError) and f"{words[-2]} would do nothing" in str(done.exception)


def test_a_part_of_a_model_is_not_looked_for_in_a_lora(family):
    done = CliRunner().invoke(app, ["inspect", family.lora, "--part", "generator"])
    assert isinstance(done.exception, LoraportError) and "is a LoRA, where a model" in str(done.exception)


def test_settings_for_what_the_lora_does_not_hold_are_remarked_on(family):
    told = json.loads(transfer(family, "--dora", "magnitude", "--transfer-diffs", "--json").stdout)
    for word in ("--dora magnitude does nothing", "--transfer-diffs does nothing"):
        assert any(word in note for note in told["warnings"])


def test_what_an_earlier_split_left_beside_a_whole_result_is_remarked_on(family):
    assert transfer(family, "--split").exit_code == 0
    done = transfer(family, "--overwrite")
    assert done.exit_code == 0 and "out-counter-drift.safetensors is of an earlier --split" in done.stderr
    assert "earlier --split" not in transfer(family, output="other.safetensors").stderr


def test_the_summary_names_no_rank_where_no_layer_changed(tmp_path):
    done = transfer(make_rounded_family(tmp_path))
    assert "0 transferred, 20 copied" in done.stdout and "rank" not in done.stdout.splitlines()[1]


def test_rounding_under_a_source_in_codes_is_no_matter_beside_an_accelerator(family):
    """Its drift is the accelerator's own update; between two files the note is there."""
    tiny.write_fp8(family.folder / "fp8.safetensors", family.source_state, "comfy")
    family = type(family)(**{**vars(family), "source": str(family.folder / "fp8.safetensors")})
    beside = transfer(family, "--dry-run", target=f"source+{family.lora}")
    assert beside.exit_code == 0 and "such rounding alone" not in beside.stdout
    assert "such rounding alone" in transfer(family, "--dry-run", "-v").stdout


def test_a_dry_run_of_the_guard_refuses_what_the_guard_refuses(family):
    for words in (["--guard"], ["--method", "auto"]):
        real, dry = transfer(family, *words), transfer(family, *words, "--dry-run")
        assert isinstance(real.exception, LoraportError) and str(dry.exception) == str(real.exception)
    toy = ["transfer", "toy:noir", "--source", "toy:base", "--target", "toy:one-step", "--no-cache", "--dry-run"]
    done = CliRunner().invoke(app, [*toy, "--method", "auto", "-o", str(family.folder / "toy")])
    assert done.exit_code == 0 and "32 clips would be sampled" in done.stdout and "would move" in done.stdout
    done = CliRunner().invoke(app, [*toy, "--guard", "--frames", "9", "-o", str(family.folder / "t")])
    assert isinstance(done.exception, SettingsError) and "frames would do nothing here" in str(done.exception)
