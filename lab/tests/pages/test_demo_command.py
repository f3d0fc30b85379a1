"""`loraport demo`: what it writes and prints, whichever LoRA, student and methods it is given."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from loraport.cli import app
from loraport_lab.cli_demo import BESIDE, METHOD, STUDENT, STYLE
from loraport_lab.demo import Column, run_demo, surest
from loraport_lab.family.clips import draw_prompts, render_effect, visible
from loraport_lab.family.family import CELLS, adapter_path
from loraport_lab.family.judge import open_judge
from loraport_lab.pages.demo_page import DEMO_FILES


def demo(*words):
    return CliRunner().invoke(app, ["demo", "--clips", "2", "-q", *map(str, words)])


def test_the_demo_of_the_defaults_has_a_lora_trained_on_the_student():
    assert (STUDENT, STYLE) in CELLS


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_words_for_the_pictures_name_their_columns(page):
    words = " ".join((Path(__file__).parents[3] / page).read_text(encoding="utf-8").replace("&quot;", '"').split())
    assert f'the base with a "{STYLE}" LoRA; its student' in words
    assert f"transferred by {METHOD}, by {BESIDE}, and with a LoRA trained on the student" in words


@pytest.mark.parametrize(("effect", "attribute"), [("noir", 0), ("plain", 2)])
def test_clips_that_show_what_was_asked_for_come_first_and_what_an_effect_hides_is_not_asked(effect, attribute):
    prompts = draw_prompts(16, torch.Generator().manual_seed(2))
    clips, asked = render_effect(prompts, torch.Generator().manual_seed(3), effect), prompts.clone()
    asked[:8, attribute] = (asked[:8, attribute] + 1) % 4
    assert set(surest(open_judge(), clips, asked, effect)[:8]) == set(range(8, 16))
    hidden = prompts.clone()
    hidden[:8, 4] = (hidden[:8, 4] + 1) % 6
    same = surest(open_judge(), clips, hidden, effect) == surest(open_judge(), clips, prompts, effect)
    assert same == ("ball" not in visible(effect))


@pytest.mark.slow
def test_the_number_of_cores_does_not_change_a_clip():
    """Twenty clips are two portions, which several threads take in any order."""
    columns = [Column(name, "reference", name, adapter_path("swing")) for name in ("one-step", "matched")]
    before, made = torch.get_num_threads(), []
    for cores in (1, 3):
        torch.set_num_threads(cores)
        made.append(run_demo(columns, adapter="swing", clips=20))
        assert torch.get_num_threads() == cores
    torch.set_num_threads(before)
    for one, other in zip(made[0].columns, made[1].columns, strict=True):
        assert torch.equal(one.frames, other.frames) and torch.equal(one.values["effect"], other.values["effect"])


@pytest.mark.slow
def test_a_demo_writes_its_files_and_every_number(tmp_path):
    done = demo("-o", tmp_path, "--json", "--bare")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts == json.loads((tmp_path / "demo.json").read_text())
    assert [column["role"] for column in facts["columns"]] == [
        "reference", "student", "direct", "transfer", "beside", "oracle",
    ]  # fmt: skip
    assert (facts["transfer"]["method"], facts["beside"]["method"]) == (METHOD, BESIDE)
    change = facts["columns"][3]["psnr"]["change"]
    assert change["low"] <= change["value"] <= change["high"]
    assert all((tmp_path / name).stat().st_size > 0 for name in ("index.html", *DEMO_FILES))
    assert (tmp_path / "index.html").stat().st_size < 3e6 and (tmp_path / "hero.webp").stat().st_size < 1.5e6


@pytest.mark.slow
@pytest.mark.parametrize("beside", ["none", "direct"])
def test_there_may_be_nothing_beside_the_method(tmp_path, beside):
    """Nothing, or the method itself: here the one that takes no time, others stand in the demo above."""
    done = demo("-o", tmp_path, "--method", "direct", "--beside", beside)
    assert done.exit_code == 0 and done.stderr == "", done.output
    facts = json.loads((tmp_path / "demo.json").read_text())
    assert [column["role"] for column in facts["columns"]] == ["reference", "direct", "transfer", "oracle"]
    assert facts["transfer"]["method"] == "direct"
    assert facts["beside"] is None and done.stdout.splitlines()[-1] == facts["found"][0]


@pytest.mark.parametrize("words", [["--style", "sepia"], ["--student", "slow"], ["--beside", "magic"]])
def test_an_unknown_name_is_refused_before_any_work(tmp_path, words):
    done = demo("-o", tmp_path / "out", *words)
    assert done.exit_code != 0 and words[1] in str(done.exception or done.output)
    assert list((tmp_path / "out").iterdir()) == []
