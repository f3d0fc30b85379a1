"""The documentation shows the tables that are there and no others; only whole runs are taken over."""

import json

import pytest

from loraport.errors import InputError
from loraport_lab.family.family import CELLS
from loraport_lab.pages import lab_keep
from loraport_lab.pages.lab_keep import keep_tables
from loraport_lab.pages.lab_page import pooled_cells
from loraport_lab.pages.lab_results import FIRST, SECOND, first_family_page, results_page
from loraport_lab.pages.lab_titles import TITLES


def fill(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text("row,a\ndirect,1\n")


def test_the_page_shows_what_is_there_in_order_and_says_where_nothing_is(tmp_path):
    empty = results_page(tmp_path)
    assert "csv-table" not in empty and "has not been measured" in empty
    fill(tmp_path, "regret.csv", "rows.csv", "dials.csv")
    page = results_page(tmp_path)
    assert "has not been measured" not in page and "Another training" not in page and "dials.svg" not in page
    files = [line.rpartition("/")[2] for line in page.splitlines() if line.startswith(":file:")]
    assert files == ["rows.csv", "regret.csv", "dials.csv"]
    fill(tmp_path, "dials.svg")
    fill(tmp_path / SECOND, "rows.csv")
    page = results_page(tmp_path)
    assert "(../../lab/results/dials.svg)" in page
    assert page.index("## Another training") < page.index(f"../../lab/results/{SECOND}/rows.csv")


def test_the_first_family_has_a_page_of_its_own(tmp_path):
    fill(tmp_path, "rows.csv")
    fill(tmp_path / FIRST, "cells.csv", "probes.csv", "second-family-rows.csv")
    page = first_family_page(tmp_path)
    shown = [line for line in page.splitlines() if line.startswith(":file:")]
    assert len(shown) == 3 and all(f"lab/results/{FIRST}/" in line for line in shown)
    assert FIRST not in results_page(tmp_path).replace("first-family.md", "")


def run_of(folder, cells, clips=48, tables=("rows.csv", "dials.svg")):
    fill(folder / "tables", *tables)
    named = [{"name": f"{student}/{adapter}"} for student, adapter in cells]
    (folder / "lab.json").write_text(json.dumps({"cells": named, "clips": clips}))
    return folder


def test_a_whole_run_takes_the_place_of_the_one_before(tmp_path):
    shown = tmp_path / "results"
    fill(shown, "rows.csv", "gone.csv", "notes.md")
    fill(shown / FIRST, "rows.csv")
    kept, gone = keep_tables(run_of(tmp_path / "run", CELLS), shown)
    assert (kept, gone) == (["dials.svg", "rows.csv"], ["gone.csv"])
    assert {path.name for path in shown.iterdir()} == {"rows.csv", "dials.svg", "notes.md", FIRST}
    assert (shown / FIRST / "rows.csv").is_file()


@pytest.mark.parametrize(("cells", "clips"), [(CELLS[:2], 48), (CELLS, 6)])
def test_a_part_of_a_run_is_refused_and_the_second_family_may_be_a_part(cells, clips, tmp_path):
    fill(tmp_path / "results", "rows.csv")
    before = (tmp_path / "results" / "rows.csv").read_bytes()
    run = run_of(tmp_path / "run", cells, clips, tables=("cells.csv",))
    with pytest.raises(InputError, match=f"{len(cells)} cells of {len(CELLS)} with {clips} clips"):
        keep_tables(run, tmp_path / "results")
    assert (tmp_path / "results" / "rows.csv").read_bytes() == before
    assert keep_tables(run, tmp_path / "results" / SECOND, whole=False)[0] == ["cells.csv"]


def test_a_folder_without_a_run_is_refused_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(lab_keep, "RESULTS", tmp_path / "results")
    monkeypatch.setattr("sys.argv", ["keep", str(tmp_path / "nothing")])
    assert lab_keep.main() == 2
    said = capsys.readouterr().err
    assert "holds no finished run" in said and said.count("\n") == 1 and not (tmp_path / "results").exists()


def test_every_title_says_what_its_table_shows():
    assert all(title.title and title.words for title in TITLES.values())


def test_a_change_that_rounds_to_zero_is_not_below_it_and_others_have_a_minus():
    change = {"change": -0.004, "worst": -2.5, "better": 1, "worse": 0, "surely_better": 0, "surely_worse": 0}
    row = {"name": "casa", "gap_psnr": None, "gap_effect": None, **dict.fromkeys(("psnr", "effect", "content"), change)}
    assert pooled_cells(row)[3:6] == ["+0.00", "−2.50", "1 / 0 (0 / 0)"]
