"""`loraport evaluate` as users and scripts meet it."""

import json

import pytest

from loraport.evaluation.catalogue import METRICS
from tests.evaluation.clips import NOISES, clip, write_columns, write_folder, write_manifest

FEW = ("--metrics", "psnr,sharpness")


@pytest.fixture
def comparison(tmp_path):
    return write_manifest(tmp_path / "grid", NOISES, prompts=2)


def arguments(comparison, *more):
    root = comparison.parent
    return ["evaluate", comparison, "-o", root / "out", "--cache", root / "cache", *more]


def test_it_says_what_it_found_and_writes_page_and_tables(run, comparison):
    code, out, err = run(*arguments(comparison, *FEW))
    assert (code, err) == (0, "")
    assert "casa against direct, 4 clips of 2 prompts: surely better in PSNR (+" in out
    assert out.splitlines()[-1] == f"page  {comparison.parent / 'out' / 'index.html'}"
    names = {"metrics.jsonl", "metrics.csv", "evaluation.json", "table.md", "table.tex", "index.html"}
    assert {file.name for file in (comparison.parent / "out").iterdir()} == names
    again = run(*arguments(comparison, *FEW))  # into the same folder: results are ours to replace
    assert again == (code, out, err)


def test_json_is_one_object_and_the_exit_code_says_that_a_clip_was_left_out(run, comparison):
    (comparison / "clips/casa/00-0.mkv").unlink()
    code, out, err = run(*arguments(comparison, *FEW, "--json"))
    result = json.loads(out)
    assert code == 3 and err.startswith("loraport: ") and "00-0.mkv cannot be read" in err
    assert result["grids"][0]["baseline"] == "direct" and len(result["left_out"]) == 1 and result["page"]


def test_something_to_fetch_is_exit_code_4_and_the_rest_is_measured(run, comparison):
    code, _, err = run(*arguments(comparison, "--metrics", "psnr,imaging-quality"))
    assert code == 4 and "hf download chaofengc/IQA-PyTorch-Weights musiq_spaq_ckpt-358bb6af.pth" in err
    assert "PSNR" in (comparison.parent / "out" / "table.md").read_text()
    code, out, err = run(*arguments(comparison, "--metrics", "imaging-quality", "--overwrite"))
    assert (code, out) == (4, "") and err.count("\n") == 1


def test_the_list_has_every_metric_and_needs_no_torch(run):
    code, out, _ = run("evaluate", "--list", "--json")
    rows = json.loads(out)["metrics"]
    assert code == 0 and [row["name"] for row in rows] == list(METRICS)
    (csd,) = (row for row in rows if row["name"] == "csd")
    assert csd["weights"][0]["command"] == "hf download tomg-group-umd/CSD-ViT-L pytorch_model.bin"
    assert csd["needs"] == ["reference"] and csd["papers"] == ["CASA"] and csd["version"] >= 1
    words = run("evaluate", "--list")[1]
    assert "style" in words and "needs reference" in words and "2.44 GB" in words and "CC-BY-4.0" in words


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--metrics", "sharp"), "unknown metric 'sharp'"),
        (("--download",), "add --metrics"),
        (("--against", "nobody"), "no column 'nobody' to compare with"),
        (("--reference", "nowhere"), "neither a folder nor a column"),
        (("--prompts", "nowhere.json"), "cannot be read"),
        (("--weights", "nowhere"), "is no folder"),
    ],
)
def test_wrong_usage_is_one_sentence_and_nothing_is_written(run, comparison, more, message):
    code, out, err = run(*arguments(comparison, *more))
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    assert list((comparison.parent / "out").glob("*")) == []


def test_without_folders_or_a_place_it_says_what_to_name(run, tmp_path):
    assert run("evaluate")[0] == run("evaluate", tmp_path)[0] == 2
    assert "name folders of clips and, with -o" in run("evaluate")[2]


def test_the_report_goes_neither_over_clips_nor_over_foreign_files(run, tmp_path):
    folder = write_folder(tmp_path / "x", {"a-0": clip(1)})
    assert "name another one for the report" in run("evaluate", folder, "-o", folder)[2]
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "index.html").write_text("mine")
    code, _, err = run("evaluate", folder, "-o", tmp_path / "mine")
    assert code == 2 and "not from an earlier run" in err and (tmp_path / "mine" / "index.html").read_text() == "mine"


def test_plain_folders_are_compared_with_the_first_or_the_named_one(run, tmp_path):
    folders = write_columns(tmp_path, {"real": 0.0, "mine": 0.05, "theirs": 0.1}, prompts=2)
    at = ["-o", tmp_path / "out", "--cache", tmp_path / "cache", "--metrics", "psnr,sharpness"]
    code, out, err = run("evaluate", folders["mine"], folders["theirs"], "--reference", folders["real"], *at)
    assert code == 0 and "theirs against mine, 4 clips of 2 prompts: surely worse in PSNR" in out and err == ""
    out = run("evaluate", *folders.values(), "--against", "theirs", *at)[1]
    assert "mine against theirs" in out and "real against theirs" in out
