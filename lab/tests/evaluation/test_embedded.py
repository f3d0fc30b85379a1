"""The whole path on the embedded family: `compare` samples the columns, `evaluate` measures and compares them."""

import json

import pytest

from loraport.cli import main

pytestmark = pytest.mark.slow


def call(monkeypatch, *words):
    monkeypatch.setattr("sys.argv", ["loraport", *map(str, words)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def test_a_style_is_seen_where_the_lora_is_and_the_controls_stand_beside_it(tmp_path, monkeypatch, capsys):
    grid, report, cache = tmp_path / "grid", tmp_path / "report", tmp_path / "cache"
    models = ("--source", "toy:base", "--target", "toy:one-step")
    made = call(monkeypatch, "compare", "toy:noir", *models, "--with", "undo:0.25", "--first", 3, "-o", grid, "--cache",
                cache)  # fmt: skip
    assert made == 0
    capsys.readouterr()
    assert call(monkeypatch, "evaluate", grid, "-o", report, "--cache", cache, "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["grids"]
    means = {(row["metric"], row["column"]): row["value"] for row in found["means"]}
    for moved in ("direct", "undo:0.25"):
        for metric in ("style", "psnr"):
            assert means[metric, moved] > max(means[metric, "source"], means[metric, "target"])
    assert (found["reference"], found["baseline"], found["left_out"]) == ("source+lora", "direct", [])
    assert {row["column"] for row in found["style_controls"]} == {"undo:0.25"}
    effects = {row["column"]: row["value"] for row in found["own_effects"]}
    assert effects["direct"] > 50 and abs(effects["source"]) < 20
    assert (report / "index.html").is_file()
