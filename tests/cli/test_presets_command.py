"""`loraport presets`: a table, details by name, a family; and completion of names."""

import json

import pytest
from typer.testing import CliRunner

from loraport.cli import app
from loraport.cli.commands.transfer import TransferModels
from loraport.cli.options import ModelOptions
from loraport.cli.options.completion import complete_method, complete_model, complete_pair
from loraport.cli.options.pairs import SampledModels
from loraport.errors import SettingsError
from loraport.files.presets.table import ACCELERATORS, PRESETS


def presets(*words):
    return CliRunner().invoke(app, ["presets", *words])


def test_a_table_with_a_row_each():
    lines = presets().stdout.splitlines()
    assert {line.split()[0] for line in lines if line} >= set(PRESETS) and max(map(len, lines)) <= 90
    assert len(lines) < len(PRESETS) + len(ACCELERATORS) + 6 * len({one.family for one in PRESETS.values()})


def test_details_by_name_and_a_family_alone():
    shown = presets("self-forcing").stdout
    assert "not verified" in shown and PRESETS["self-forcing"].repo in shown and "causvid" not in shown
    rows = json.loads(presets("--family", "sdxl", "--json").stdout)["presets"]
    assert [row["name"] for row in rows] == ["sdxl", "ssd-1b"]
    rows = json.loads(presets("lightning", "causvid", "--json").stdout)
    assert [row["name"] for row in rows["presets"]] == ["causvid"]
    assert {row["kind"] for row in rows["accelerators"]} == {"lightning", "causvid"}
    nothing = str(presets("zzz").exception)
    assert len(nothing) < 100 and "`loraport presets` lists them" in nothing
    for words, near in ((["self-forcin"], "self-forcing"), (["--family", "sdx"], "sdxl")):
        wrong = presets(*words)
        assert isinstance(wrong.exception, SettingsError) and f"did you mean {near!r}?" in str(wrong.exception)


def test_accelerators_stand_beside_the_models_of_their_family():
    facts = json.loads(presets("--family", "sdxl", "--json").stdout)
    assert {row["name"] for row in facts["accelerators"]} >= {"dmd2-lora-sdxl", "lcm-lora-ssd-1b"}
    assert all(row["files"][0]["strength"] for row in facts["accelerators"])
    lines = presets().stdout.splitlines()
    longlive = next(line for line in lines if line.startswith("longlive-plug-wan2.1-t2v-14b "))
    assert "1 and 0.5" in longlive
    shown = presets("longlive-plug-wan2.1-t2v-14b").stdout
    assert "at strength 0.5" in shown and "not verified" in shown and "read in: the model cards" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--source", "a.safetensors"], "--target is missing"),
        ([], "--source and --target are missing"),
        (["--for", "fastwan2"], "the start of several pairs"),
    ],
)
def test_a_pair_that_is_missing_is_one_message(words, said):
    for command in (["diagnose", "x.safetensors"], ["compare", "x.safetensors", "-o", "grid"]):
        wrong = CliRunner().invoke(app, [*command, *words]).exception
        assert isinstance(wrong, SettingsError) and said in str(wrong)


def test_a_pair_says_what_both_models_are(tmp_path, monkeypatch):
    """And a model that is named besides takes the place of the pair's."""
    models = ModelOptions(pair="fastwan")
    assert (models.source, models.target) == ("wan2.1-t2v-1.3b", "fastwan2.1-t2v-1.3b")
    mine = SampledModels(source="./mine", pair="fastwan")
    assert (mine.source, mine.target) == ("./mine", "fastwan2.1-t2v-1.3b")
    assert TransferModels().source == "", "a manifest may have it"
    named = ModelOptions("wan2.1-t2v-14b", "source+lightx2v*0.9")
    assert named.target == "source+lightx2v-lora-wan2.1-t2v-14b*0.9"


def test_a_mistyped_preset_as_a_model():
    words = ["inspect", "wan2.1-t2v-13b"]
    wrong = CliRunner().invoke(app, words).exception
    assert isinstance(wrong, SettingsError) and "did you mean 'wan2.1-t2v-1.3b'?" in str(wrong)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (complete_model("fastwan2.2"), ["fastwan2.2-ti2v-5b", "fastwan2.2-ti2v-5b-fullattn"]),
        (complete_model(""), []),
        (complete_model("source+dmd"), ["source+dmd2-lora-sdxl"]),
        (complete_pair("ssd"), ["ssd-1b"]),
        (complete_method("undo"), ["undo", "undo-orthogonal", "undo-matched"]),
        (complete_method("casa,core"), ["casa,core"]),
    ],
)
def test_shells_complete_names(found, wanted):
    assert found == wanted


def test_the_program_alone_shows_its_help_and_an_unknown_option_no_wild_guess():
    alone = CliRunner().invoke(app, [])
    assert alone.exit_code == 0 and "Start here" in alone.stdout
    assert "--verbose" not in CliRunner().invoke(app, ["transfer", "--bogus"]).output
    assert "--method" in CliRunner().invoke(app, ["transfer", "--methd"]).output
