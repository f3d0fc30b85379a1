"""The methods' flags as users meet them: they reach the settings, and are refused where they mean nothing."""

import json

import pytest

from tests import tiny
from tests.cli.test_cli import arguments, family  # noqa: F401


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
    assert err.count("loraport: dropped 2 keys (") == 1 and "--phi-min 0 keeps every layer" in err
    assert "less than phi_min" in page.read_text() and "Overlap if unrelated" in page.read_text()
    assert "subspaces  of source and target share" in out and "subspaces" not in run(*arguments(family))[1]


@pytest.mark.slow
def test_several_methods_and_loras_go_into_a_folder(run, family):  # noqa: F811
    second = tiny.write_lora(family.folder / "second.safetensors", tiny.lora_factors(family.source_state, seed=5))
    words = ["transfer", family.lora, second, "--source", family.source, "--target", family.target,
             "--cache", family.folder / "cache", "--method", "casa,lora-x,direct:1.15", "--tau", "2",
             "--subspace", "rank:9", "-o", family.folder / "many", "--overwrite"]  # fmt: skip
    page = family.folder / "page.html"
    code, out, err = run(*words, "--report", page, "-v")
    files = sorted(path.name for path in (family.folder / "many").iterdir())
    assert code == 0 and files == sorted(
        f"{lora}-{method}.safetensors" for lora in ("lora", "second") for method in ("casa", "lora-x", "direct-1.15")
    )
    assert len(err.splitlines()) == 6 * 20 and "second-casa.safetensors: blocks.0.ffn.0: " in err
    table, numbers, advice = out.splitlines()[:7], *out.splitlines()[7:]
    assert all(name in "\n".join(table) for name in files) and "6 files took" in numbers and "samples" in advice
    html = page.read_text()
    assert html.count("<details") == 6 and all(html.count(name) >= 2 for name in files) and "6 transfers" in html
    several = json.loads(run(*words, "--json")[1])
    assert {"runs", "seconds", "peak_rss_bytes"} <= set(several) and several["seconds"]["total"] > 0
    assert [row["method"] for row in several["runs"]] == ["casa", "lora-x", "direct:1.15"] * 2
    assert {row["lora"] for row in several["runs"]} == {family.lora, str(second)} and several["not_written"] == []
    alone = json.loads(run(*arguments(family), "--tau", "2", "--json")[1])
    both = several["runs"][0]
    assert set(both) == {*alone, "lora"} and both["settings"] == alone["settings"] and both["keys"] == alone["keys"]
    assert (family.folder / "out.safetensors").read_bytes() == (
        family.folder / "many" / "lora-casa.safetensors"
    ).read_bytes()


def test_a_dry_run_of_several_names_the_outputs_and_writes_nothing(run, family):  # noqa: F811
    before = sorted(family.folder.rglob("*"))
    words = [*arguments(family, "many"), "--method", "casa,undo", "--split", "--dry-run"]
    assert len(run(*words)[1].splitlines()) <= 10
    code, out, _ = run(*words, "-v")
    names = [f"lora-{method}{part}.safetensors" for method in ("casa", "undo") for part in ("", "-counter-drift")]
    assert code == 0 and [line.rpartition("/")[2] for line in out.splitlines() if line.endswith(":")] == [
        f"{name}:" for name in names
    ]
    rows = json.loads(run(*words, "--json")[1])["runs"]
    assert [row["output"].rpartition("/")[2] for row in rows] == names and len(rows[0]["layers"]) == 20
    assert sorted(family.folder.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "casa,undo,casa"], "'casa' is given twice"),
        (["--method", "casa,"], "one of them is empty"),
        (["--method", "casa,magic"], "unknown method 'magic'"),
        (["--method", "direct,core", "--tau", "1"], "means nothing to 'direct' or 'core'"),
        (["--method", "casa,direct", "--split"], "'direct' takes nothing of the drift back"),
        (["--method", "casa,core", "-o", "x.safetensors"], "is the name of a file, but several"),
    ],
)
def test_several_that_mean_nothing_are_refused_in_one_line(run, family, words, message):  # noqa: F811
    code, out, err = run(*arguments(family, "many"), *words)
    assert code == 2 and out == "" and message in err and len(err.splitlines()) == 1
    assert not (family.folder / "many").exists()


def test_split_writes_two_files_and_one_broken_lora_is_named(run, family):  # noqa: F811
    code, out, _ = run(*arguments(family), "--split")
    assert code == 0 and "out.safetensors" in out and "out-counter-drift.safetensors" in out and "2 files" in out
    assert (family.folder / "out-counter-drift.safetensors").is_file()
    (family.folder / "bad.safetensors").write_text("no safetensors file")
    words = ["transfer", family.lora, family.folder / "bad.safetensors", "--source", family.source, "--target",
             family.target, "-o", family.folder / "many"]  # fmt: skip
    code, out, err = run(*words)
    assert code == 2 and out == "" and "bad.safetensors" in err and not (family.folder / "many").exists()


def test_what_one_of_several_could_not_write_is_said_and_exit_3(run, family):  # noqa: F811
    words = [*arguments(family, "many"), "--method", "casa,prolora", "--subspace", "rank:2", "--phi-min", "1"]
    code, out, err = run(*words)
    assert code == 3 and "lora-prolora.safetensors was not written: the method gives no layer an adapter" in err
    assert "1 file took" in out and (family.folder / "many" / "lora-casa.safetensors").is_file()
    assert len(json.loads(run(*words, "--json")[1])["not_written"]) == 1
