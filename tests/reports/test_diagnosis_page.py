"""The page of a diagnosis: whole in itself, readable in a browser, and only about what was seen."""

import pytest

from loraport.diagnosis.diagnose import diagnose
from loraport.diagnosis.rule.measured_map import measured_map
from loraport.reports.diagnosis_page import picture, write_diagnosis_page
from tests import tiny
from tests.diagnosis.planted_pairs import moved, write_lora, write_model
from tests.reports.browser import browser_says, foreign_addresses, needs_chromium

STATE = tiny.tiny_state(blocks=1)


@pytest.fixture
def told(tmp_path):
    lora = write_lora(tmp_path / "style<b>.safetensors", STATE)
    source = write_model(tmp_path / "wan.safetensors", STATE)
    return diagnose(lora, source, write_model(tmp_path / "fast.safetensors", moved(STATE, head=0.42)))


def test_it_has_the_verdict_the_command_and_every_layer_and_fetches_nothing(told, tmp_path):
    write_diagnosis_page(told, tmp_path / "page.html")
    html = tmp_path.joinpath("page.html").read_text()
    assert foreign_addresses(html) == [] and "style&lt;b&gt;" in html and "style<b>" not in html
    assert "undo:0.25, a quarter of the drift undone" in html and "--method undo:0.25" in html
    assert all(look.name in html for look in told.looks) and "this advice" in html and "<svg" in html


def test_the_picture_holds_every_measured_pair_and_this_one_at_its_place(told):
    drawn = picture(told, measured_map())
    plain = [cell for cell in measured_map().cells if not cell.accelerated]
    assert len(drawn["dots"]) == 2 * len(plain)
    assert all(
        drawn["left"] <= x <= drawn["right"] and drawn["top"] <= y <= drawn["bottom"] for _, x, y, _ in drawn["dots"]
    )
    (low, width, _), (middle, *_), _ = drawn["zones"]
    assert low < drawn["here"] < low + width == pytest.approx(middle)


def test_a_pair_that_does_not_fit_has_no_map(tmp_path):
    lora = write_lora(tmp_path / "style.safetensors", tiny.tiny_state(blocks=1, dim=48, ffn=80))
    source = write_model(tmp_path / "wan.safetensors", STATE)
    write_diagnosis_page(diagnose(lora, source, source), tmp_path / "page.html")
    html = tmp_path.joinpath("page.html").read_text()
    assert "not this pair" in html and "<svg" not in html and "this advice" not in html


@needs_chromium
@pytest.mark.slow
def test_a_browser_has_nothing_to_say(told, tmp_path):
    write_diagnosis_page(told, tmp_path / "page.html")
    assert browser_says(tmp_path / "page.html", tmp_path / "profile") == ""
