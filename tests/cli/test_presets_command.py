"""`loraport presets`: a table, details by name, a family; and completion of names."""

import json

import pytest
from typer.testing import CliRunner

from loraport.cli import app
from loraport.cli.options.completion import complete_method, complete_model
from loraport.errors import SettingsError
from loraport.files.models.presets import PRESETS


def presets(*words):
    return CliRunner().invoke(app, ["presets", *words])


def test_a_table_with_a_row_each():
    lines = presets().stdout.splitlines()
    assert {line.split()[0] for line in lines if line} >= set(PRESETS) and max(map(len, lines)) <= 90
    assert len(lines) < len(PRESETS) + 20


def test_details_by_name_and_a_family_alone():
    shown = presets("self-forcing").stdout
    assert "not verified" in shown and PRESETS["self-forcing"].repo in shown and "causvid" not in shown
    rows = json.loads(presets("--family", "sdxl", "--json").stdout)["presets"]
    assert [row["name"] for row in rows] == ["sdxl", "ssd-1b"]
    for words, near in ((["self-forcin"], "self-forcing"), (["--family", "sdx"], "sdxl")):
        wrong = presets(*words)
        assert isinstance(wrong.exception, SettingsError) and f"did you mean {near!r}?" in str(wrong.exception)


def test_a_mistyped_preset_as_a_model():
    words = ["inspect", "wan2.1-t2v-13b"]
    wrong = CliRunner().invoke(app, words).exception
    assert isinstance(wrong, SettingsError) and "did you mean 'wan2.1-t2v-1.3b'?" in str(wrong)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (complete_model("fastwan2.2"), ["fastwan2.2-ti2v-5b", "fastwan2.2-ti2v-5b-fullattn"]),
        (complete_model(""), []),
        (complete_method("undo"), ["undo", "undo-matched"]),
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
