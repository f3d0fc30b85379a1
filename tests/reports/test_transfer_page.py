"""The page of one transfer: complete in itself, and its sentences follow the numbers."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loraport._version import __version__
from loraport.errors import OutputError
from loraport.files.inspect import describe
from loraport.files.lora.key_account import KeyAccount
from loraport.reports import transfer_page
from loraport.reports.rendering import cell, layer_table
from loraport.reports.transfer_page import transfer_findings, write_transfer_page
from loraport.transfers.results import LayerResult, TransferResult
from loraport.transfers.run import transfer
from tests.reports.browser import browser_says, browser_shows, foreign_addresses, needs_chromium
from tests.transfers.models import make_family

LAYER = LayerResult(
    "blocks.0.self_attn.q", "transferred", None, (128, 64), 8, 16, drift=0.25, lora=0.1, update=0.12, correction=0.05,
    kept_energy=0.9, kept_correction=0.4, k=30, clusters=12, largest_cluster=0.3, restored=0.5,
    arbitrated=77, weight_norm=2.0,
)  # fmt: skip
SKIPPED = LayerResult("blocks.9.<b>", "skipped", "the target has no such layer", (128, 64), 8, None)
KEYS = KeyAccount(3, {"transferred": 2, "copied": 0}, (("blocks.9.<b>.lora_A.weight", "no such layer"),))
RESULT = TransferResult(
    "out.safetensors", "casa", {"tau": 1.0}, (LAYER, SKIPPED), KEYS, ("extra layers left alone",), {"total": 1.5}, 10**9
)


@pytest.fixture
def page(tmp_path):
    write_transfer_page(RESULT, tmp_path / "page.html")
    return tmp_path / "page.html"


def test_everything_is_there_and_escaped_and_nothing_is_fetched(page):
    html = page.read_text()
    for text in (
        "128 × 64",
        "90.0\N{NO-BREAK SPACE}%",
        "40.0\N{NO-BREAK SPACE}%",
        "blocks.9.&lt;b&gt;",
        "no such layer",
        "extra layers left alone",
        "77",
    ):
        assert text in html
    assert "<b>" not in html and not foreign_addresses(html) and "http" not in html
    assert foreign_addresses('<img src="https://elsewhere/x.png"><a href="#here">') == ["https://elsewhere/x.png"]


def test_the_page_names_its_inputs_and_the_version(tmp_path):
    named = replace(RESULT, lora="style.safetensors", source="wan/", target="source+fast.safetensors*0.8")
    write_transfer_page(named, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    for fact, value in (("LoRA", named.lora), ("Source", "wan/"), ("Target", named.target)):
        assert f"<dt>{fact}</dt><dd>{value}</dd>" in html
    assert f"<dt>Made by</dt><dd>loraport {__version__}, with PyTorch {torch.__version__}</dd>" in html


def test_the_page_says_whose_lora_it_is_its_hashes_and_how_it_is_loaded(tmp_path):
    """Three months later nobody remembers."""
    family = make_family(tmp_path)
    tensors = load_file(family.lora)
    save_file(tensors, family.lora, {"modelspec.title": "Ink & <water>", "modelspec.trigger_phrase": "inkwash"})
    result = transfer(family.config(method="direct", target=f"source+{family.lora}*0.8", format="diffusers"))
    write_transfer_page(result, tmp_path / "page.html")
    html = (tmp_path / "page.html").read_text()
    facts = describe(result.output)
    for label, text in (
        ("Title", "Ink &amp; &lt;water&gt;"),
        ("Trigger words", "inkwash"),
        ("LoRA, SHA-256", facts["made"]["lora_sha256"]),
        ("Source, hash", facts["made"]["source_hash"]),
        ("Target, hash", facts["made"]["target_hash"]),
        ("Output, SHA-256", facts["sha256"]),
    ):
        assert f"<dt>{label}</dt><dd>{text}</dd>" in html
    assert "beside lora.safetensors at strength 0.8" in html
    assert "<dt>diffusers</dt><dd><code>pipe.load_lora_weights(" in html
    Path(result.output).unlink()
    write_transfer_page(result, tmp_path / "page.html")
    assert "How to load it" not in (tmp_path / "page.html").read_text()


def test_sentences_follow_the_numbers():
    assert transfer_findings(RESULT)[0] == "1 of 2 layers were transferred by casa."
    assert any("keeps 90.0 % of the update's energy, but 40.0 %" in sentence for sentence in transfer_findings(RESULT))
    assert any("removes a part" in sentence for sentence in transfer_findings(RESULT))
    plain = replace(LAYER, correction=None, kept_correction=None)
    assert not any("removes" in sentence for sentence in transfer_findings(replace(RESULT, layers=(plain,))))
    assert any(
        "removed from 50 % of the routing entries, and 48 %" in sentence for sentence in transfer_findings(RESULT)
    )
    undo = replace(LAYER, restored=None, arbitrated=None)
    assert not any("routing entries" in sentence for sentence in transfer_findings(replace(RESULT, layers=(undo,))))


def test_the_method_is_said_to_do_little_where_its_own_shares_say_so_and_nowhere_else():
    """A giant cluster says nothing by itself: weak as a whole, it is restored as a whole."""

    def told(**shares) -> bool:
        layers = (replace(LAYER, **shares),)
        return any("does little there" in sentence for sentence in transfer_findings(replace(RESULT, layers=layers)))

    assert told(largest_cluster=1.0, restored=0.05) and told(largest_cluster=0.1, restored=0.05)
    assert not told(largest_cluster=0.9, restored=0.86) and not told(largest_cluster=0.9, restored=0.3)


def test_medians_of_an_even_number_of_layers_lie_between_the_two_in_the_middle():
    layers = tuple(replace(LAYER, drift=value, lora=value, update=value) for value in (0.1, 0.3, 0.5, 0.9))
    assert any(
        "the LoRA moves it by 40.0 %" in sentence for sentence in transfer_findings(replace(RESULT, layers=layers))
    )


def test_a_page_that_cannot_be_written_is_said_clearly(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match="cannot be written: Not a directory"):
        write_transfer_page(RESULT, tmp_path / "file" / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_columns_that_say_nothing_are_left_out():
    """A status that all layers share, and values that a method does not have; a status that differs is there."""
    plain = replace(LAYER, k=None, clusters=None, largest_cluster=None, restored=None, arbitrated=None)
    table = layer_table([layer.as_json() for layer in (plain, replace(plain, name="blocks.1.self_attn.q"))])
    assert {"Layer", "Drift", "Kept energy"} <= {*table["headings"]}
    assert not {"Status", "k", "Clusters", "Overlap"} & {*table["headings"]}
    assert all(len(row) == len(table["headings"]) for row in table["layers"])
    assert "Status" in layer_table([plain.as_json(), SKIPPED.as_json()])["headings"]


def test_what_all_layers_share_is_said_once():
    rows = [replace(LAYER, name=f"blocks.{number}.self_attn.q", drift=0.1 * number).as_json() for number in range(1, 4)]
    table = layer_table(rows)
    assert table["headings"][:2] == ["Layer", "Drift"] and "rank in" in table["same"] and "status" in table["same"]
    assert [row[0] for row in table["layers"]] == [row["name"] for row in rows]
    assert "Rank in" in layer_table(rows[:2])["headings"], "of two layers a reader compares the columns"


def test_numbers_below_zero_have_a_minus():
    assert cell(-0.5, "{:+.2f}") == "−0.50" and cell("-x", "{}") == "-x" and cell(2.1e-4, "{:.1e}") == "2.1e-04"


@needs_chromium
def test_figures_can_be_enlarged_and_are_dark_at_night(page, tmp_path):
    html = page.read_text(encoding="utf-8")
    assert html.count('<label class="zoom">') == html.count("<figcaption>") > 0
    script = "<script>document.querySelectorAll('.zoom input')[0].checked = true;"
    script += "document.title = JSON.stringify([getComputedStyle(document.querySelector('.zoom span')).position,"
    script += "getComputedStyle(document.querySelectorAll('.zoom span')[1]).position])</script></body>"
    zoomed = tmp_path / "zoomed.html"
    zoomed.write_text(html.replace("</body>", script), encoding="utf-8")
    assert '<title>["fixed","static"]</title>' in browser_shows(zoomed, tmp_path / "profile", 1)
    assert "prefers-color-scheme: dark" in html and "invert(" in html


def test_a_page_without_figures_says_why(tmp_path, monkeypatch):
    page = tmp_path / "page.html"
    assert write_transfer_page(RESULT, page) == () and "matplotlib" not in page.read_text()
    monkeypatch.setattr(transfer_page, "find_spec", lambda name: None)
    (sentence,) = write_transfer_page(RESULT, page)
    assert "matplotlib is not installed; pip install 'loraport[report]'" in sentence
    assert "The page is without figures: matplotlib is not installed" in page.read_text()


@needs_chromium
def test_it_opens_in_a_browser_without_a_word(page, tmp_path):
    assert browser_says(page, tmp_path / "profile") == ""
