"""What a user of the embedded family types and reads: toy: names, estimates and tables in words."""

import json

import pytest
from typer.testing import CliRunner

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from loraport.cli import app
from loraport.cli.options.pairs import known_place
from loraport.errors import SettingsError
from loraport.files.lora.read import read_lora
from loraport.sampling.choice.commands import score_table
from loraport.sampling.score import Score
from loraport.sampling.statistics import Interval
from loraport_lab.family.family import ADAPTERS, STUDENTS

PAIR = ["--source", "toy:base", "--target"]


def said(*words: str) -> str:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def score_row(label: str, error: float, **numbers) -> Score:
    share = Interval(error, error - 0.1, error + 0.1)
    facts = dict.fromkeys(("left", "against_direct", "of_direct"), share) | {"better": 3, "worse": 29, "p": 4.7e-10}
    return Score(label, Interval(error, 0.0, 1.0), **(facts | numbers))


def test_scores_stand_in_columns_that_fit_a_terminal():
    table = score_table((score_row("direct", 1.0), score_row("direct:1.15", 0.123456), score_row("none", 3.86)))
    lines = [f"{label:<20}  {text}" for label, text in table[:-1]]
    assert {len(line) for line in lines} == {len(lines[0])} and len(lines[0]) <= 80
    assert table[1][1].split() == ["1", "100", "%", "–", "–", "–", "–"], "direct is not compared with itself"
    assert table[2][1].split() == ["0.123", "12", "%", "12", "%", "2–22", "%", "3", "of", "32", "4.7e-10"]
    assert max(len(line) for line in table[-1][1].splitlines()) < 72


def test_a_candidate_is_shown_by_its_file_unless_two_have_one_name():
    long = "a/rather/long/folder/of/adapters"
    apart = score_table((score_row(f"{long}/a.safetensors", 1.0), score_row(f"{long}/b.safetensors", 1.0)))
    assert [label for label, _ in apart[1:3]] == ["a.safetensors", "b.safetensors"]
    alike = score_table((score_row(f"{long}/x/a.safetensors", 1.0), score_row(f"{long}/y/a.safetensors", 1.0)))
    assert [label for label, _ in alike[1:3]] == [f"{long}/x/a.safetensors", f"{long}/y/a.safetensors"]


def test_an_interval_of_one_clip_is_open():
    open_share = Interval(0.5, float("-inf"), float("inf"))
    table = score_table((score_row("none", 0.5, of_direct=open_share),))
    assert "open" in table[1][1] and "inf" not in table[1][1]


def test_every_name_of_the_family_is_a_place_and_others_are_not():
    assert known_place("style.safetensors") == "style.safetensors"
    for name in ("base", *STUDENTS, *ADAPTERS):
        assert known_place(f"toy:{name}").removeprefix("source+").startswith("/")
    with pytest.raises(SettingsError, match="known: base, few-step, matched"):
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
    name, text = lines[1].split(maxsplit=1)
    assert name == "target" and text.startswith("sampled by euler, 1 step at noise levels 1 (timesteps 1000)")
    assert [line.split()[0] for line in lines[2:6]] == ["candidate", "direct", "none", "columns"]
    assert lines[2].split()[1:] == ["end", "error", "missed", "of", "direct", "95", "%", "lower", "in", "p"]
    assert "passes" in said(*words, "--dry-run")


@pytest.mark.parametrize(
    "words",
    [
        ["inspect", "toy:noir"],
        ["convert", "toy:noir", "--to", "kohya", "-o", "OUT.safetensors"],
        ["merge", "toy:one-step", "toy:noir*0.5", "-o", "OUT"],
        [
            "probe",
            "keep-dominant",
            "--source",
            "toy:base",
            "--target",
            "toy:one-step",
            "--layers",
            "*.0.*",
            "-o",
            "OUT",
        ],
    ],
    ids=lambda words: words[0],
)
def test_every_command_knows_the_family_by_its_short_names(words, tmp_path):
    placed = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    cache = ["--no-cache"] if words[0] == "probe" else []
    done = CliRunner().invoke(app, [*placed, *cache])
    assert done.exit_code == 0, done.output
    nobody = [word.replace("toy:noir", "toy:nobody").replace("toy:base", "toy:nobody") for word in placed]
    refused = CliRunner().invoke(app, [*nobody, *cache, *(["--overwrite"] if words[0] != "inspect" else [])])
    assert isinstance(refused.exception, SettingsError) and "'nobody" in str(refused.exception)


def test_a_method_is_no_candidate_of_score_and_the_message_says_what_to_do():
    done = CliRunner().invoke(app, ["score", "undo:0.25", "--lora", "toy:noir", *PAIR, "toy:one-step", "--clips", "2"])
    assert isinstance(done.exception, SettingsError) and "`loraport choose undo:0.25`" in str(done.exception)
