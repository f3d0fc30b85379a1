"""The documentation shows the tables that are there and no others; only whole runs are taken over."""

import json

import pytest

from loraport.errors import InputError
from loraport_lab.family.family import CELLS
from loraport_lab.pages import lab_keep
from loraport_lab.pages.lab_editions import EDITIONS, editions_csv
from loraport_lab.pages.lab_keep import keep_calibration, keep_tables
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


def test_a_run_that_calibrated_nothing_leaves_the_tables_of_calibration(tmp_path):
    shown = tmp_path / "results"
    fill(shown, "calibration.csv", "agreement.csv", "harm.csv", EDITIONS, "ranks.csv")
    before = (shown / "agreement.csv").read_bytes()
    run = run_of(tmp_path / "run", CELLS, tables=("rows.csv", "agreement.csv"))
    (run / "tables" / "agreement.csv").write_text("measure\npsnr\n")
    assert keep_tables(run, shown) == (["rows.csv"], ["ranks.csv"])
    assert (shown / "agreement.csv").read_bytes() == before
    fill(run / "tables", "calibration.csv")
    assert keep_tables(run, shown) == (["agreement.csv", "calibration.csv", "rows.csv"], ["harm.csv"])
    assert (shown / EDITIONS).is_file() and (shown / "agreement.csv").read_bytes() != before


def measured(name, fidelity, ends, *, fitted):
    """A cell of a run's JSON: direct reuse, methods with these changes, and, where `fitted`, calibrated rows."""
    rows = [("direct", "frame", 0.0, 0.0), ("student", "frame", -9.0, 9.0), ("oracle", "frame", 2.0, -0.5)]
    rows += [(f"method {n}", "method", change, end) for n, (change, end) in enumerate(zip(fidelity, ends, strict=True))]
    if fitted:
        rows += [(row, "calibrated", 1.0, -0.3) for row in ("gains", "gains + readout")]
        rows += [(row, "calibrated", 1.0, -0.3) for row in ("calibrated, guarded", "auto", "auto, calibrated too")]
    made = []
    for row, group, change, end in rows:
        value = {"mean": 20 + change, "change": change, "change_low": change - 0.1, "change_high": change + 0.1}
        metrics = dict.fromkeys(("psnr", "effect", "content", "likeness"), value)
        metrics |= {"end": {"mean": 1 + end, "change": end}}
        chosen = "calibrated" if row in ("calibrated, guarded", "auto", "auto, calibrated too") else None
        share, gap = {"value": 1 + end}, {"psnr": {"value": change / 2}, "effect": None}
        facts = {"name": row, "group": group, "against": "direct", "chosen": chosen, "metrics": metrics}
        made.append(facts | {"end_share": share, "gap_closed": gap})
    return {"name": name, "discriminating": True, "rows": made}


def json_run(folder, *cells, clips=48):
    folder.mkdir()
    (folder / "lab.json").write_text(json.dumps({"cells": cells, "clips": clips, "agreement": []}))
    return folder


def test_tables_of_calibration_come_from_one_run_and_cells_of_the_score_from_others_too(tmp_path):
    shown = tmp_path / "results"
    fill(shown, "rows.csv", "controls.csv")
    first = measured("one-step/swing", (0.5, -0.05, -1.0), (-0.2, 0.1, 0.4), fitted=True)
    again = measured("one-step/swing", (0.5, -0.05, -1.0), (0.2, -0.1, -0.4), fitted=False)
    other = measured("few-step/noir", (0.5, -0.3, -1.0), (0.3, -0.2, -0.4), fitted=False)
    runs = [json_run(tmp_path / "a", first), json_run(tmp_path / "b", again, other)]
    kept, gone = keep_calibration(runs, shown)
    assert kept == ["calibration.csv", "harm.csv", "agreement-by-cell.csv"] and gone == ["controls.csv"]
    assert (shown / "rows.csv").is_file()
    lines = [line.split(",") for line in (shown / "agreement-by-cell.csv").read_text().splitlines()[1:]]
    assert [line[:4] for line in lines] == [
        ["few-step/noir", "4", "0", "-1.00"],  # the frame's bare student and oracle are not counted
        ["one-step/swing", "6", "2", "1.00"],  # of the first run, whose gains and readout are
        ["all 2", "–", "–", "0.00"],
    ]
    # 0.05 dB are not sure; chosen rows repeat others
    assert [line[6] for line in lines] == ["0 of 3", "4 of 4", "4 of 7"]
    assert len((shown / "calibration.csv").read_text().splitlines()) == 2


def test_a_run_that_calibrated_nothing_or_made_few_clips_gives_no_tables_of_calibration(tmp_path):
    plain = measured("few-step/noir", (0.5, -0.3, -1.0), (0.3, -0.2, -0.4), fitted=False)
    with pytest.raises(InputError, match="calibrated nothing"):
        keep_calibration([json_run(tmp_path / "a", plain)], tmp_path / "results")
    with pytest.raises(InputError, match="6 clips a row are too few"):
        keep_calibration([json_run(tmp_path / "b", plain, clips=6)], tmp_path / "results")
    assert not (tmp_path / "results").exists()


def write_edition(folder, calibration, admitted):
    """The four tables of which an edition is summed up; `calibration` is {cell: (oracle, gap closed, guard keeps)}."""
    folder.mkdir(parents=True, exist_ok=True)
    tables = {
        "cells": ["cell,discriminating"],
        "calibration": ["cell,oracle,end error of direct's,gap closed,guard keeps"],
        "harm": ["row,direct kept,cells,psnr,effect,content", '`gains + readout`,–,3,"2 / 1 (a -0.3 dB)",1 / 0,0 / 0'],
        "agreement": ["measure,cells,mean,lowest,same side"],
    }
    tables["cells"] += [f"{name},{'yes' if fair else 'no: why'}" for name, fair in admitted.items()]
    for name, (room, share, kept) in calibration.items():
        tables["calibration"].append(f"{name},{room} / +1 / (+0),80 % / 95 % / 90 %,{share} / –,{kept}")
    tables["harm"].append('"`calibrated, guarded`",1,3,1 / 0,1 / 0,0 / 0')
    tables["agreement"] += [f"{measure},3,0.90,-0.10 (a),7 of 9" for measure in ("psnr", "effect", "content")]
    for name, lines in tables.items():
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")


def test_both_editions_are_summed_up_from_their_tables(tmp_path):
    admitted = {"a": True, "b": True, "one-step/noir (tuned on)": True, "c": False}
    cells = {"a": ("+3.0", "50 %", "calibrated"), "b (cannot discriminate)": ("(+1.0)", "-30 %", "direct")}
    write_edition(tmp_path / FIRST, cells | {"one-step/noir": ("+9.0", "90 %", "calibrated")}, admitted)
    write_edition(tmp_path, cells | {"c": ("+9.0", "90 %", "calibrated")}, admitted | {"b": False})
    head, *lines = (line.rsplit(",", 2) for line in editions_csv(tmp_path).splitlines())
    table = {name.strip('"'): values for name, *values in lines}
    assert head[1:] == ["first edition", "present edition"]
    assert table["calibrated cells (discriminating)"] == ["3 (2)", "3 (1)"]
    assert table["gap in fidelity closed: gains and readout"] == ["30 %", "50 %"]  # (1.5 - 0.3) / 4: by cells.csv
    assert table["gap in fidelity closed: what the guard kept"] == ["38 %", "50 %"]  # direct reuse closes nothing
    assert table["fidelity better / worse: gains and readout"] == ["2 / 1", "2 / 1"]
    assert table["direct reuse kept by the guard"] == ["1 of 3", "1 of 3"]
    assert table["rank correlation with fidelity, mean (lowest)"] == ["0.90 (-0.10)"] * 2


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
