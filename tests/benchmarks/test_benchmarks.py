"""The benchmark itself, at small sizes: its models are what they claim, its tables choose and fall back rightly."""

import contextlib
import io
import itertools
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from benchmarks.suite import published_bytes
from safetensors.torch import load_file

from benchmarks import accuracy, card, drivers, floor, synthetic, tables, whole
from loraport.cli import main
from loraport.spectral.basis import energy_rank


@pytest.mark.parametrize("n", [96, 1536, 5120])
def test_spectra_are_hard_where_they_should_be(n):
    S = synthetic.spectrum(n)
    assert (S.diff() <= 0).all() and float(S.square().sum()) == pytest.approx(n)
    assert 0.3 <= energy_rank(S, 0.9) / n <= 0.6
    gaps = -S.diff()[n // 2 :] / S[n // 2 : -1]
    assert float(gaps.median()) < 5 / n, "neighbours in the tail are nearly equal"
    assert S[0] > 3 and S[-1] < 0.15


@pytest.mark.parametrize("shape", [(64, 64), (140, 64), (64, 140)], ids=str)
def test_weights_have_that_spectrum_and_no_axis(shape):
    W = synthetic.weight("blocks.0.a", shape)
    assert torch.allclose(torch.linalg.svdvals(W).double(), synthetic.spectrum(64), atol=1e-5)
    assert torch.equal(W, synthetic.weight("blocks.0.a", shape))
    assert not torch.allclose(W, synthetic.weight("blocks.0.b", shape), atol=1e-2)
    rows = W.norm(dim=1)
    assert float(rows.max() / rows.min()) < 5, "the factors are no permutation of the axes"


def test_models_and_loras_are_made_once(tmp_path):
    table = synthetic.prepared(tmp_path, "64", 1, loras=2)
    assert len(synthetic.layers_of(table)) == 10
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(before) == 5
    synthetic.prepared(tmp_path, "64", 1, loras=2)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}


def test_the_floor_counts_what_it_says():
    assert floor.flops(10, 4, 1, stored=False) - floor.flops(10, 4, 1, stored=True) == 2 * 2 * 10 * 4 * 4
    assert floor.extra_bytes(10, 4, stored=True) - floor.extra_bytes(10, 4, stored=False) == 2 * 4 * 4
    assert published_bytes([(10, 4)]) == 2 * (100 + 16 + 40 + 4)


def test_every_driver_is_tried_checked_and_ranked():
    found = drivers.table("48", "cpu", repeats=1)
    assert set(found) == {"48 x 48", "280 x 48"}
    for shape in found.values():
        assert all("failed" in row or row["residual"] < 1e-4 for row in shape["drivers"].values())
        seconds = [shape["drivers"][name]["seconds"] for name in shape["chosen"]]
        assert len(seconds) >= 3 and seconds == sorted(seconds)


def test_a_driver_that_fails_or_is_wrong_is_passed_over():
    W, S = drivers.made(40, 30, "cpu"), synthetic.spectrum(30)

    def fails(W):
        raise torch.linalg.LinAlgError("did not converge\nmore")

    def single(W):
        values, V = torch.linalg.eigh(W.mT @ W)  # what squaring in single precision costs
        S, V = values.flip(0).clamp(min=0).sqrt(), V.flip(1)
        return W @ V / S, S, V.mT

    all_of_them = {"fails": fails, "wrong": lambda W: drivers.gram(W * 1.001), "library": drivers.direct(None)}
    rows = {name: drivers.tried(one, W, S, 1) for name, one in all_of_them.items()}
    assert rows["fails"] == {"failed": "did not converge"}
    assert drivers.chosen(rows) == ["library"]
    steep = W @ torch.diag(torch.logspace(0, -4, 30))
    truth = torch.linalg.svdvals(steep.double())
    assert not drivers.accurate(drivers.tried(single, steep, truth, 1))
    assert drivers.accurate(drivers.tried(drivers.gram, steep, truth, 1))
    text = drivers.markdown({"machine": {"cores": 2}, "shapes": {"40 x 30": {"drivers": rows, "chosen": ["library"]}}})
    assert "did not converge" in text


def rounds() -> list[dict]:
    """Two rounds with made-up seconds; the second machine is twice as busy."""

    def row(factor: float) -> dict:
        walls = {
            "start": 1,
            "published start": 1,
            "cold": 11,
            "published svd": 31,
            "published cfft": 11,
            "published transfer": 21,
            "warm": 3,
            "no cache": 11,
            "warm, 5 LoRAs": 5,
            "warm, one thread": 4.6,
        }
        made = {
            name: {"wall_s": factor * wall, "cpu_s": wall, "peak_anonymous_bytes": 10**9, "peak_rss_bytes": 10**9,
                   "bytes_read": 1, "bytes_written": 1}
            for name, wall in walls.items()
        }  # fmt: skip
        bare = {kind: {"wall_s": factor, "cpu_s": 1, "gemm_s": factor} for kind in ("products", "stored")}
        return {**made, "floor": bare, "floor, one thread": bare}

    return [row(1), row(2)]


def test_targets_are_ratios_within_a_round_without_the_start(tmp_path):
    result = {
        "machine": {"cores": 2},
        "settings": {},
        "rounds": rounds(),
        "disk": {"ours": 1, "published_by_shapes": 6},
    }
    tables.write_results(tmp_path, "made-up", result)
    found = {
        name: row["values"] for name, row in json.loads((tmp_path / "made-up.json").read_text())["targets"].items()
    }
    assert found["cold against the published pipeline, times faster (wall)"] == [6.0, 6.0]
    assert found["warm against its transfer step, times faster (wall)"] == [10.0, 10.0]
    assert found["warm against the floor, products (wall)"] == [2.0, 2.0]
    assert found["two threads against one, warm (wall)"] == [1.8, 1.8]
    assert found["a further LoRA, share of a warm run (wall)"] == [0.25, 0.25]
    assert (tmp_path / "made-up.png").stat().st_size > 1000
    assert "| cold |" in (tmp_path / "made-up.md").read_text()


@pytest.mark.parametrize("shape", [(256, 256), (400, 256)], ids=str)
def test_arithmetic_and_storage_are_exact_with_and_without_thresholds(shape):
    """The stored basis is as exact as decisions need: no entry falls on the other side of its threshold."""
    found = accuracy.errors(*shape)
    for row in found.values():
        assert row["same basis"] < 1e-5 and row["own basis"] < 1e-5
        assert all(-1e-3 < value < 1e-5 for name, value in row.items() if "kept" in name)


def test_a_card_is_measured_by_the_same_script_on_a_processor():
    found = card.measured("48", torch.device("cpu"), blocks=3, sample=2)
    stages = {"basis", "routing", "LoRA", "a further LoRA"}
    assert set(found["seconds"]) == set(found["share of the roofline"]) == stages
    assert all(value > 0 for value in (*found["seconds"].values(), *found["roofline"].values()))
    assert found["whole"] == pytest.approx(sum(found["seconds"][name] for name in ("basis", "routing", "LoRA")))
    assert found["peak GB"] is None
    assert card.block("14b") == [(5120, 5120)] * 8 + [(13824, 5120), (5120, 13824)]
    # twice as wide is eight times the work of a basis
    small, large = (card.least(n, n)["basis"]["float64"] for n in (64, 128))
    assert large == 8 * small


def in_this_process(command, *, threads, env=None):
    """What `processes.measured` gives, of a command line of ours that is run here."""
    out, started = io.StringIO(), time.perf_counter()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["loraport", *command[command.index("loraport") + 1 :]])
        main()
    seconds = time.perf_counter() - started
    return {"wall_s": seconds, "cpu_s": seconds, "stdout": out.getvalue()}


@pytest.mark.slow
def test_the_whole_program_is_measured_and_its_bytes_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "measured", in_this_process)
    table, threads = whole.Table(time.monotonic() + 300), torch.get_num_threads()
    found = whole.files_to_files(table, tmp_path, "48", "cpu", None)
    rows = {row[0]: row for row in table.rows}
    assert rows["48, bytes of cold, warm, again, no cache"][1:] == ("1 different", "1", "met")
    assert {"48, cold", "48, warm", "48, further", "48, reading"} <= set(rows)
    for count in whole.TOGETHER:
        assert {f"48, layers at a time {count}, cold", f"48, layers at a time {count}, further"} <= set(rows)
    assert rows["48, bytes of all of them"][1:] == ("1 different", "1", "met")
    assert set(found["layers at a time"]) == set(whole.TOGETHER) and torch.get_num_threads() == threads
    assert found["runs"]["warm"]["stages"]["basis"] < found["runs"]["cold"]["stages"]["basis"]
    files = load_file(tmp_path / "source" / "diffusion_pytorch_model.safetensors")
    assert len(files) == 10 and len({float(W.flatten()[0]) for W in files.values()}) == 10, "no two layers are alike"


@pytest.mark.slow
def test_agreement_sees_a_device_that_disagrees(tmp_path, monkeypatch):
    monkeypatch.setattr(whole, "METHODS", ["undo", "casa"])
    table = whole.Table(time.monotonic() + 300)
    assert whole.agreement(table, tmp_path, "48", "cpu")["casa"] == {"relative": 0, "energy": 0}
    assert [row[3] for row in table.rows] == ["met", "met"]
    factors = itertools.cycle([1.0, 1.01])

    def every_second_larger(path):
        factor = next(factors)
        return {name: X * factor for name, X in load_file(path).items()}

    monkeypatch.setattr(whole, "load_file", every_second_larger)
    whole.agreement(table, tmp_path, "48", "cpu")
    assert table.rows[2][3] == "missed"


def test_what_does_not_fit_in_the_time_is_said():
    table = whole.Table(time.monotonic() + 5)
    assert table.has(1, "quick") and not table.has(60, "slow")
    assert "| slow | left out: no time | – | – |" in table.markdown()


def test_the_script_passes_on_what_it_is_given():
    script = Path(whole.__file__).with_name("card.sh")
    given = {**os.environ, "PYTHON": "echo", "FOLDER": "there", "DEVICE": "cpu", "SIZES": "64", "PUBLISHED": "CASA"}
    said = subprocess.run(["bash", str(script)], env=given, capture_output=True, text=True, check=True).stdout.split()
    assert (
        said == "-m benchmarks.whole there --device cpu --sizes 64 --agreement 256 --minutes 5 --published CASA".split()
    )
