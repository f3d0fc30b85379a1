"""The page and the tables of an evaluation show its numbers, and nothing that a name could smuggle in."""

import re
from dataclasses import replace

import pytest

from loraport.evaluation.catalogue import choose_metrics
from loraport.evaluation.run import EvaluationRequest, evaluate
from loraport.reports.evaluation.page import EVALUATION_FILES, write_evaluation_page
from loraport.reports.evaluation.tables import latex, markdown, means_table, paper_table, sweeps
from loraport.reports.evaluation.words import NO_CONTROLS, findings, interval_words, number
from loraport.sampling.statistics import Interval
from tests.evaluation.clips import NOISES, write_columns, write_manifest
from tests.reports.browser import browser_says, foreign_addresses, needs_chromium

pytestmark = pytest.mark.slow  # the result that all look at takes seconds

SWEEP = {
    "source+lora": 0.0,
    "source": 0.2,
    "target": 0.3,
    "direct": 0.15,
    "undo:0.1": 0.1,
    "undo:0.25": 0.06,
    "undo:0.5": 0.08,
}


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Two comparisons: one with columns that differ in a number, one with a name that is markup."""
    root = tmp_path_factory.mktemp("evaluation")
    named = {name.replace("undo:", "undo-"): noise for name, noise in SWEEP.items()}
    one, other = (
        write_manifest(root / name, noises, prompts=3, seeds=1) for name, noises in (("one", named), ("other", NOISES))
    )
    manifest = other / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"label": "casa"', '"label": "<b>casa</b> & |_x_| 100%"'))
    (root / "out").mkdir()
    choice = choose_metrics(["style", "psnr", "sharpness", "sharpness-kept"])
    request = EvaluationRequest((str(one), str(other)), root / "out", choice, cache=str(root / "cache"))
    return evaluate(request)


@pytest.fixture(scope="module")
def page(result, tmp_path_factory):
    return write_evaluation_page(result, tmp_path_factory.mktemp("page"))


def test_the_page_shows_the_numbers_and_refers_only_to_its_own_files(page, result):
    html = page.read_text(encoding="utf-8")
    assert set(foreign_addresses(html)) <= set(EVALUATION_FILES)
    for grid in result.grids:
        for metric in grid.metrics:
            for column in grid.grid.measured:
                assert number(grid.mean(metric.name, column.name).interval.value, metric.digits) in html
    assert "What a gain in style is worth" in html and "The LoRA's own effect" in html.replace("&#39;", "'")
    assert "<b>casa</b>" not in html and "&lt;b&gt;casa&lt;/b&gt; &amp; |_x_| 100%" in html
    assert html.count("<svg") == 2 and "By the number of undo" in html  # style and PSNR over the number


@needs_chromium
def test_the_page_opens_without_a_complaint(page, tmp_path):
    assert browser_says(page, tmp_path / "profile") == ""


def test_the_paper_table_has_a_row_a_column_and_a_group_a_comparison(result):
    table = paper_table(result)
    assert [span for _, span in table.groups] == [2, 2] and table.headings[:2] == ("Style, % ↑", "PSNR, dB ↑")
    rows = dict(table.rows)
    assert [cell.text for cell in rows["undo-0.25"][2:]] == ["–", "–"]  # not in the other comparison
    assert rows["undo-0.25"][1].best and not rows["undo-0.5"][1].best
    assert rows["direct"][1].text == number(result.grids[0].mean("psnr", "direct").interval.value, 2)


def test_columns_that_differ_in_a_number_are_a_sweep(result):
    (sweep,) = sweeps(result.grids[0])
    assert sweep.name == "undo" and sweep.values == (0.1, 0.25, 0.5)
    assert [interval.value for interval in sweep.means["psnr"]] == [
        result.grids[0].mean("psnr", f"undo-{value:g}").interval.value for value in sweep.values
    ]
    assert sweeps(result.grids[1]) == []


def test_markdown_and_latex_show_the_same_cells_with_names_that_are_no_markup(result):
    cells = [cell.text for _, row in means_table(result.grids[1]).rows for cell in row]
    text, source = markdown(result), latex(result)
    assert all(cell in text for cell in cells)
    assert all(cell.replace("−", "$-$").replace("–", "--") in source for cell in cells)
    assert r"\<b\>casa\</b\> & \|\_x\_\| 100%" in text
    assert r"<b>casa</b> \& |\_x\_| 100\%" in source
    for line in text.splitlines():
        if line.startswith("| ---"):
            assert set(re.sub(r"[|\-: ]", "", line)) == set()
    widths = {}
    for line in source.splitlines():
        if found := re.match(r"\\begin\{tabular\}\{(l r*|lr*)\}", line):
            widths["now"] = len(found[1])
        elif line.endswith(r"\\") and "multicolumn" not in line:
            assert len(re.findall(r"(?<!\\)&", line)) == widths["now"] - 1
    assert source.count(r"\begin{table}") == source.count(r"\end{table}") == 5


def test_findings_name_what_is_sure_and_warn_where_controls_are_missing(result, tmp_path):
    sentences = findings(result.grids[1])
    assert sentences[0].startswith("casa against direct, 3 clips of 3 prompts: surely better in")
    assert not any(sentence == NO_CONTROLS for sentence in sentences)
    folders = write_columns(tmp_path, {"real": 0.0, "mine": 0.1, "theirs": 0.05}, prompts=2, seeds=1)
    (tmp_path / "out").mkdir()
    request = EvaluationRequest(
        (str(folders["mine"]), str(folders["theirs"])),
        tmp_path / "out",
        choose_metrics(["style"]),
        str(folders["real"]),
    )
    assert NO_CONTROLS in findings(evaluate(request).grids[0])


@pytest.mark.parametrize(
    ("interval", "words"),
    [
        (Interval(1.234, 0.5, 2.0), "+1.23 [0.50, 2.00] dB"),
        (Interval(-0.001, -0.004, 0.002), "0.00 [0.00, 0.00] dB"),
        (Interval(-2.0, float("-inf"), float("inf")), "−2.00 dB, of one draw alone"),
    ],
)
def test_numbers_in_words(interval, words):
    assert interval_words(interval, 2, "dB", signed=True) == words


def test_a_style_that_the_lora_does_not_touch_is_said_to_be_no_judge(result):
    grid = result.grids[0]
    effects = {value: replace(grid.effects[0], column="source", interval=Interval(value, value - 5, value + 5))
               for value in (-33.0, 8.0)}  # fmt: skip
    unclear, clear = (findings(replace(grid, effects=(effects[value],))) for value in (-33.0, 8.0))
    assert "shows −33 [−38, −28] % of the LoRA's effect" in unclear[-1] and "not told apart" in unclear[-1]
    assert not any("not told apart" in sentence for sentence in clear)
