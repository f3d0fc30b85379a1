"""The methods' flags as users meet them: they reach the settings, and are refused where they mean nothing."""

import json

import pytest

from tests.test_cli import arguments, family, run  # noqa: F401


def test_flags_of_the_projections_reach_the_settings(run, family):  # noqa: F811
    words = ["--method", "prolora", "--subspace", "rank:8", "--no-null-space", "--phi-min", "0.1", "--json"]
    code, out, _ = run(*arguments(family), *words)
    settings = json.loads(out)["settings"]
    assert code == 0 and (settings["subspace"], settings["null_space"], settings["phi_min"]) == ("rank:8", False, 0.1)
    code, out, _ = run(*arguments(family), "--method", "lora-x", "--subspace", "energy:0.5", "--json")
    assert code == 0 and json.loads(out)["settings"]["subspace"] == "energy:0.5"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--subspace", "exact"], "--subspace is a setting of ProLoRA and means nothing to 'casa'"),
        (
            ["--method", "lora-x", "--no-null-space"],
            "--null-space is a setting of ProLoRA and means nothing to 'lora-x'",
        ),
        (["--method", "core", "--tau", "1"], "--tau is a setting of CASA and means nothing to 'core'"),
        (["--method", "prolora", "--subspace", "most"], "subspace 'most' is none of: energy:x"),
        (["--method", "prolora", "--no-null-space", "--cross-terms"], "leave out --cross-terms or --no-null-space"),
        (["--method", "prolora", "--subspace", "rank:2", "--phi-min", "1"], "gives no layer an adapter"),
        (["--method", "direct-matched:direct-matched"], "matches itself"),
    ],
)
def test_what_means_nothing_is_refused_in_one_line(run, family, words, message):  # noqa: F811
    code, out, err = run(*arguments(family), *words)
    assert code == 2 and out == "" and message in err and not (family.folder / "out.safetensors").exists()


def test_what_the_filter_drops_is_listed_and_exit_3(run, family):  # noqa: F811
    common = [*arguments(family), "--method", "prolora", "--subspace", "rank:9"]
    rows = json.loads(run(*common, "--phi-min", "0", "--json")[1])["layers"]
    overlaps = sorted(row["overlap"] for row in rows)
    page = family.folder / "page.html"
    code, out, err = run(*common, "--phi-min", sum(overlaps[:2]) / 2, "--report", page)
    assert code == 3 and "19 transferred, 0 copied, 1 skipped" in out and "40 in: 38 transferred" in out
    assert err.count("loraport: dropped ") == 2 and "--phi-min 0 keeps every layer" in err
    assert "less than phi_min" in page.read_text() and "Overlap if unrelated" in page.read_text()
    assert "subspaces  of source and target share" in out and "subspaces" not in run(*arguments(family))[1]
