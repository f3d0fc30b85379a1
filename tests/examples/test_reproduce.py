"""The paper's experiments, rehearsed on tiny pipelines: only the names of models and LoRAs differ."""

import importlib.util
import json
import shlex
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("av")

from loraport.cli import main
from tests.compare.pipelines import write_pairs
from tests.compare.test_columns import FAMILIES, write_lora
from tests.sampling.pipelines import as_fastvideo

FILE = Path(__file__).parents[2] / "examples" / "reproduce" / "reproduce.py"
spec = importlib.util.spec_from_file_location("reproduce", FILE)
reproduce = importlib.util.module_from_spec(spec)
sys.modules["reproduce"] = reproduce
spec.loader.exec_module(reproduce)


@pytest.fixture(scope="module")
def names(tmp_path_factory):
    """What stands in the place of the real models: {name: path}."""
    folder = tmp_path_factory.mktemp("tiny")
    pairs = write_pairs(folder, ("wan",))
    wan, few = map(str, pairs["wan"])
    as_fastvideo(pairs["wan"][1], gates=False)
    weights = load_file(f"{few}/transformer/diffusion_pytorch_model.safetensors")
    torch.save({"generator_ema": weights}, folder / "r.pt")
    lora = str(write_lora(folder / "lora.safetensors", pairs["wan"][0], FAMILIES["wan"]))
    return {
        reproduce.WAN: wan, reproduce.WAN_PIPELINE: wan, reproduce.FASTWAN: few, reproduce.FASTWAN_PIPELINE: few,
        "rolling-forcing": str(folder / "r.pt"), reproduce.JINX: lora,
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fastwan-jinx", "tau", "probes", "rolling-jinx"])
def test_an_experiment_runs_from_its_first_command_to_its_last(name, names, tmp_path, monkeypatch, capsys):
    done = []

    def run(words, **_):
        monkeypatch.setattr(sys, "argv", list(words[2:]))
        with pytest.raises(SystemExit) as stop:
            main()
        code = stop.value.code or 0
        done.append((words[3], code))
        assert code == 0, capsys.readouterr().err[-800:]
        return type("Done", (), {"returncode": code})

    monkeypatch.setattr(reproduce.subprocess, "run", run)
    (tmp_path / "names.json").write_text(json.dumps(names))
    words = ["run", name, "-o", str(tmp_path / "out"), "--names", str(tmp_path / "names.json"), "--small"]
    reproduce.main([*words, "--metrics", "psnr,sharpness", "--compare-options", "--size 16x16 --first 1"])
    setup = reproduce.Setup(tmp_path / "out", names, small=True)
    commands = list(reproduce.commands(reproduce.find_experiment(name), setup))
    asked = [command[1] for command in commands if command[0] != "#"]
    assert [command for command, _ in done] == asked
    if name != "rolling-jinx":
        assert (tmp_path / "out" / f"{name}-report" / "index.html").is_file()
    if name == "tau":
        assert "By the number of tau" in (tmp_path / "out" / "tau-report" / "index.html").read_text()


def test_every_experiment_can_be_shown_and_names_a_command_of_the_program(capsys):
    for experiment in reproduce.EXPERIMENTS:
        reproduce.main(["show", experiment.name])
        lines = capsys.readouterr().out.splitlines()
        assert lines and all(line.startswith(("# ", "loraport ")) for line in lines)
        assert {shlex.split(line)[1] for line in lines if line[0] != "#"} <= {
            *("compare", "evaluate", "transfer", "merge", "probe"),
        }
    reproduce.main(["list"])
    assert len(capsys.readouterr().out.splitlines()) == len(reproduce.EXPERIMENTS)
    with pytest.raises(SystemExit, match="no experiment 'x'; known: fastwan-steamboat"):
        reproduce.main(["show", "x"])
