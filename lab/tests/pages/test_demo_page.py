"""The page: complete in itself, silent in a browser, and its sentences follow the numbers wherever they fall."""

import re
from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from loraport_lab.family.measure import METRICS
from loraport_lab.pages.demo_page import write_page
from loraport_lab.pages.pictures import write_contact_sheet
from loraport_lab.pages.verdict import estimate, verdict
from tests.reports.browser import browser_says, needs_chromium

CLIPS = 6
LAYER = {"name": "blocks.0.attn1.to_q", "status": "transferred", "reason": None, "shape": [128, 128], "rank_in": 8}
LAYER |= {"rank_out": 16, "drift": 0.25, "lora": 0.1, "update": 0.12, "kept_energy": 0.9, "kept_correction": None}


def column(role: str, label: str, psnr: float, style: float) -> SimpleNamespace:
    frames = torch.randint(0, 255, (CLIPS, 8, 24, 24, 3), generator=torch.Generator().manual_seed(len(label)))
    jitter = torch.linspace(-0.1, 0.1, CLIPS) if role == "transfer" else torch.zeros(CLIPS)
    values = {"effect": style + jitter, "shape": torch.full((CLIPS,), 80.0)}
    if role != "reference":
        values["psnr"] = psnr + jitter
    return SimpleNamespace(role=role, label=label, frames=frames.to(torch.uint8), values=values)


def demo(psnr: float = 18.0, style: float = 60.0) -> SimpleNamespace:
    columns = [
        column("reference", "Base + LoRA", 0, 95),
        column("student", "Student", 10, 1),
        column("direct", "Student + direct", 18, 60),
        column("transfer", "Student + <CASA>", psnr, style),
        column("oracle", "Student + own LoRA", 22, 93),
    ]
    prompts = tuple(f"red circle {i}" for i in range(CLIPS))
    return SimpleNamespace(style="neon", prompts=prompts, columns=columns, metrics=METRICS[:4], seed=3)


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "demo.html"
    layers = [LAYER, {**LAYER, "name": "blocks.1", "status": "skipped", "reason": "no such layer in the target"}]
    write_page(demo(), path, layers=layers, facts={"Method": "casa & more"}, shown=4)
    return path


def test_page_refers_to_nothing_outside_itself(page):
    html = page.read_text()
    addresses = re.findall(r'(?:src|href|url)\s*[=(]\s*["\']?([^"\'\s)>]+)', html)
    assert len(addresses) >= 4 * 5
    assert all(address.startswith("data:") for address in addresses)
    assert "http" not in html and "@import" not in html and "<script" not in html


def test_page_shows_every_column_prompt_layer_and_reason_and_escapes_them(page):
    html = page.read_text()
    for text in (
        "Student + &lt;CASA&gt;",
        "red circle 3",
        "blocks.0.attn1.to_q",
        "128 × 128",
        "90.0\N{NO-BREAK SPACE}%",
        "casa &amp; more",
    ):
        assert text in html
    assert "no such layer in the target" in html
    assert "red circle 4" not in html and "<CASA>" not in html
    assert html.count("data:image/png") == 4 * 5


@pytest.mark.parametrize(
    ("psnr", "style", "expected"),
    [
        (19, 70, "is ahead of"),
        (17, 50, "is below"),
        (17, 60, "is below"),
        (17, 70, "gains effect over Student + direct and pays with fidelity"),
        (19, 50, "gains fidelity over Student + direct and pays with effect"),
        (18, 60, "cannot be told apart"),
    ],
)
def test_the_first_sentence_is_the_truth_about_the_transfer(psnr, style, expected):
    assert expected in verdict(demo(psnr, style))[0]


def test_the_loss_of_direct_reuse_and_the_headroom_are_said():
    sentences = verdict(demo())
    assert "60 % of neon is left, where the base shows 95 %" in sentences[1]
    assert "+4.0 ± 0.0 dB" in sentences[2]


def test_of_one_clip_nothing_is_claimed():
    assert estimate(torch.tensor([5.0])).sign == 0
    assert estimate(torch.tensor([5.0, 5.1])).sign == 1


def test_contact_sheet_has_a_row_for_every_column(tmp_path):
    write_contact_sheet(demo(), tmp_path / "sheet.png", clips=3, zoom=2)
    sheet = Image.open(tmp_path / "sheet.png")
    assert sheet.size == (190 + 3 * (2 * 24 * 2 + 6), 5 * (24 * 2 + 6))


@pytest.mark.slow
@needs_chromium
def test_page_opens_in_a_browser_without_a_word(page, tmp_path):
    assert browser_says(page, tmp_path / "profile") == ""
    broken = tmp_path / "broken.html"
    broken.write_text("<!DOCTYPE html><html><body><script>nowhere()</script></body></html>")
    assert "nowhere" in browser_says(broken, tmp_path / "profile")
