"""The folder of an analysis: a page that is complete in itself, figures, tables; sentences that follow the numbers."""

import csv
import json
import re
from dataclasses import replace

import pytest

from loraport.analysis.inputs import AnalyzeConfig
from loraport.analysis.run import analyze
from loraport.analysis.sweep import Grid
from loraport.errors import OutputError
from loraport.reports.analysis_page import as_csv, summary, write_analysis
from loraport.reports.analysis_words import analysis_findings
from loraport.reports.figures import as_svg
from loraport.reports.plots import norms
from tests.reports.browser import browser_says, foreign_addresses, needs_chromium
from tests.transfers.models import make_family

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def analysis(tmp_path_factory):
    family = make_family(tmp_path_factory.mktemp("family"))
    config = AnalyzeConfig(family.lora, family.source, family.target, str(family.folder / "out"), detail=1)
    return analyze(config, [Grid.parse("q_dom=0.3/0.7")])


@pytest.fixture(scope="module")
def folder(analysis, tmp_path_factory):
    place = tmp_path_factory.mktemp("analysis")
    assert write_analysis(analysis, place)[0] == place / "index.html"
    return place


@pytest.mark.slow
def test_the_page_refers_to_nothing_outside_itself_and_is_small(folder):
    html = (folder / "index.html").read_text()
    figures = sorted(path.stem for path in (folder / "figures").glob("*.svg"))
    assert html.count("data:image/svg+xml") == len(figures) == 11 + 6 + 1
    assert figures == sorted(path.stem for path in (folder / "figures").glob("*.png"))
    assert foreign_addresses(html) == [] and "<script" not in html and len(html) < 15e6
    assert html.count("<figcaption>") == len(figures) and "blocks.1.ffn.2" in html


@pytest.mark.slow
def test_the_table_is_tidy_and_agrees_with_the_json(folder):
    with (folder / "layers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    told = json.loads((folder / "analysis.json").read_text())
    assert len(rows) == 20 == len(told["layers"])
    assert float(rows[3]["rho2_drift"]) == told["layers"][3]["rho2_drift"]
    assert rows[0]["layer"] == "blocks.0.cross_attn.k" and rows[0]["depth"] == "0"
    with (folder / "sweep.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == 40
    assert len(told["survey"]["layers"]) == 27 and told["settings"]["tau"] == 1.0


def test_a_table_has_all_columns_and_nothing_for_what_is_not_known():
    assert as_csv([{"a": 1, "b": None}, {"a": 2, "c": "x,y"}]) == 'a,b,c\n1,,\n2,,"x,y"\n'


def with_numbers(analysis, **numbers) -> str:
    layers = tuple(replace(layer, numbers={**layer.numbers, **numbers}) for layer in analysis.layers)
    return " ".join(analysis_findings(replace(analysis, layers=layers)))


@pytest.mark.slow
def test_a_claim_that_holds_nowhere_is_not_said_to_hold(analysis):
    ends = [f"{key}_{side}" for key in ("gini", "head_tenth") for side in ("send", "receive")]
    less = {f"{end}_drift": 0.1 for end in ends} | {f"{end}_lora": 0.2 for end in ends}
    more = {f"{end}_drift": 0.3 for end in ends} | {f"{end}_lora": 0.2 for end in ends}
    claim = "“Distillation concentrates, LoRA spreads”: "
    assert claim + "does not hold here" in with_numbers(analysis, **less)
    assert claim + "holds in most layers" in with_numbers(analysis, **more)
    assert claim + "holds in part" in with_numbers(analysis, **{**less, "gini_send_drift": 0.3})


@pytest.mark.slow
def test_sentences_follow_the_numbers(analysis):
    text = " ".join(analysis_findings(analysis))
    assert "relative of this source" in text and "Layers with intruder dimensions: " in text
    weak = with_numbers(analysis, largest_cluster=0.9, restored=0.86, preserved=0.12)
    assert "CASA removes the drift from 86 % of the entries" in weak and "does little" not in weak
    idle = with_numbers(analysis, largest_cluster=0.9, restored=0.01, preserved=0.95)
    assert "In 20 of 20 layers CASA leaves more than nine tenths of the entries alone" in idle
    calm = with_numbers(analysis, largest_cluster=0.1)
    assert "one cluster" not in calm
    twins = tuple(replace(layer, identical=True, drift=0.0) for layer in analysis.survey.layers)
    same = analysis_findings(replace(analysis, survey=replace(analysis.survey, layers=twins)))
    assert "no drift" in same[0] and "100 % of the 27 layers are identical" in same[1]
    assert summary(analysis, "index.html", 2.0)["found"] == analysis_findings(analysis)


@pytest.mark.slow
def test_what_was_spent_on_figures_is_said(analysis, folder):
    assert "and 12.5 s for the figures" in summary(analysis, folder / "index.html", 12.5)["took"]
    assert " s for the figures, at most" in (folder / "index.html").read_text()


def test_the_contents_lead_to_the_sections(folder):
    html = (folder / "index.html").read_text()
    targets = re.findall(r'<a href="#([^"]+)"', html)
    assert {"kinds", "overview", "sweep", "layers"} < {*targets} and "blocks.1.ffn.2" in targets
    assert all(f'id="{target}"' in html for target in targets)


def test_the_same_numbers_give_the_same_figure():
    rows = [{"lora": 0.1, "norm_casa": 0.2}, {"lora": 0.3, "norm_casa": None}]
    one, other = (as_svg(norms(rows, {"norm_casa": "CASA"})) for _ in range(2))
    assert one == other and one != as_svg(norms(rows[1:], {"norm_casa": "CASA"}))


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_said_clearly(analysis, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        write_analysis(analysis, tmp_path / "file")


@needs_chromium
def test_it_opens_in_a_browser_without_a_word(folder, tmp_path):
    assert browser_says(folder / "index.html", tmp_path / "profile") == ""
