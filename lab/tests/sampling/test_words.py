"""What a user of the embedded family types and reads: toy: names, estimates and tables in words."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from loraport.cli import app
from loraport.cli.pairs import known_place
from loraport.errors import SettingsError
from loraport.files.lora.read import read_lora
from loraport_lab.family.family import ADAPTERS, STUDENTS

PAIR = ["--source", "toy:base", "--target"]


def said(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def test_every_name_of_the_family_is_a_place_and_others_are_not():
    assert known_place("style.safetensors") == "style.safetensors"
    for name in ("base", *STUDENTS, *ADAPTERS):
        assert known_place(f"toy:{name}").removeprefix("source+").startswith("/")
    with pytest.raises(SettingsError, match="known: base, one-step"):
        known_place("toy:two-step")


@pytest.mark.parametrize("student", ["one-step", "accelerator"])
def test_a_transfer_takes_the_names(student, tmp_path):
    out = tmp_path / "out.safetensors"
    words = ["transfer", "toy:retro", *PAIR, f"toy:{student}", "-o", str(out), "--method", "direct", "--json"]
    assert json.loads(said(*words))["output"] == str(out)
    assert len(read_lora(out).layers) == 40


@pytest.mark.slow
def test_an_estimate_is_in_words_and_nothing_is_written(tmp_path):
    out = tmp_path / "out.safetensors"
    words = ["calibrate", "toy:retro", *PAIR, "toy:one-step", "-o", str(out), "--clips", "4", "--dry-run"]
    text, facts = said(*words), json.loads(said(*words, "--json"))
    passes = facts["passes"]
    assert f"{sum(passes.values())} passes: {passes['source']} of the source" in text and "MB" in text
    assert "{" not in text and "nothing" in text and not out.exists()


@pytest.mark.slow
def test_a_score_says_on_how_many_clips_of_which_sampler(tmp_path):
    words = ["score", "none", "--lora", "toy:retro", *PAIR, "toy:one-step", "--clips", "2", "--no-cache"]
    lines = said(*words).splitlines()
    assert lines[0].split() == ["clips", "2,", "of", "2", "prompts"]
    assert lines[1].startswith("target  sampled by euler, 1 step at noise levels 1 (timesteps 1000)")
    assert [line.split()[0] for line in lines[2:]] == ["direct", "none"]
    assert "passes" in said(*words, "--dry-run")
