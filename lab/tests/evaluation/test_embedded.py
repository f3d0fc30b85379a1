"""The whole path on the embedded family: columns sampled, clips written, measured, compared, and shown."""

import json

import pytest
from lab.tests.evaluation.comparison import write_comparison

from loraport.cli import main

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def comparison(tmp_path_factory):
    return write_comparison(tmp_path_factory.mktemp("embedded") / "grid", clips=4)


def test_evaluate_sees_the_style_where_the_lora_is(comparison, monkeypatch, capsys):
    root = comparison.parent
    words = ["loraport", "evaluate", comparison, "-o", root / "out", "--cache", root / "cache", "--json"]
    monkeypatch.setattr("sys.argv", [str(word) for word in words])
    with pytest.raises(SystemExit) as stop:
        main()
    (grid,) = json.loads(capsys.readouterr().out)["grids"]
    means = {(row["metric"], row["column"]): row["value"] for row in grid["means"]}
    assert stop.value.code in (0, None) and grid["left_out"] == []
    for moved in ("direct", "casa"):
        assert means["style", moved] > max(means["style", "source"], means["style", "target"])
        assert means["psnr", moved] > max(means["psnr", "source"], means["psnr", "target"])
    effects = {row["column"]: row["value"] for row in grid["own_effects"]}
    assert effects["direct"] > 50 and abs(effects["source"]) < 20
