"""The wheels: what they hold, and that they work in an environment that has nothing of this checkout.

The environment is a fresh virtual one without access to any other, into which pip installs the built wheel. What the
wheel says it needs is not downloaded: the packages of the running environment that its metadata names, and what those
name in turn, are linked into it one by one. So a dependency that the metadata forget is missing there, and loraport
itself can come from nowhere but the wheel.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from functools import cache
from importlib.metadata import distribution
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
from packaging.requirements import Requirement
from safetensors.torch import load_file, save_file

import loraport
from loraport.sampling.providers import LAB

ROOT = Path(__file__).parents[1]
BUILD = "import sys; from hatchling.build import build_wheel; print(build_wheel(sys.argv[1]))"
SIZE, RANK, LAYERS = 32, 2, tuple(f"blocks.0.self_attn.{part}" for part in "qkvo")


def built(project: Path, folder: Path) -> Path:
    """The wheel of a project, by its own build backend."""
    call = [sys.executable, "-c", BUILD, str(folder)]
    done = subprocess.run(call, cwd=project, capture_output=True, text=True, check=True)
    return folder / done.stdout.split()[-1]


@pytest.fixture(scope="module")
def core(tmp_path_factory):
    return built(ROOT, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    return built(ROOT / "lab", tmp_path_factory.mktemp("wheels"))


def contents(wheel: Path) -> set[str]:
    return set(ZipFile(wheel).namelist())


def metadata(wheel: Path) -> str:
    name = next(name for name in contents(wheel) if name.endswith(".dist-info/METADATA"))
    return ZipFile(wheel).read(name).decode()


def sources(package: Path) -> set[str]:
    """The files of a package in this checkout, as a wheel names them."""
    files = [path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {path.relative_to(package.parent).as_posix() for path in files}


ENDINGS = (".py", ".typed", ".jinja", ".css", ".js", ".json", ".txt", ".LICENSE")
"""Of the program's files: code, pages, and the small data that it needs; no weights."""


def test_the_wheel_of_loraport_is_small_and_holds_the_program_alone(core):
    assert core.stat().st_size < 1_000_000
    program = {name for name in contents(core) if ".dist-info/" not in name}
    assert program == sources(ROOT / "src" / "loraport")
    assert not [name for name in program if not name.endswith(ENDINGS)]
    assert not [name for name in contents(core) if "comfyui" in name.split("/")], "the nodes have another licence"
    assert (
        f"Version: {loraport.__version__}\n" in metadata(core) and "loraport-lab" not in metadata(core).split("\n\n")[0]
    )


@pytest.mark.slow
def test_both_wheels_hold_the_licence(core, lab):
    for wheel in (core, lab):
        licence = next(name for name in contents(wheel) if name.endswith("/licenses/LICENSE"))
        assert ZipFile(wheel).read(licence) == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
def test_the_wheel_of_the_lab_holds_weights_and_templates_and_needs_loraport_of_its_own_version(lab):
    own = {name for name in contents(lab) if ".dist-info/" not in name}
    assert own == sources(ROOT / "lab" / "src" / "loraport_lab")
    assert any(name.endswith(".safetensors") for name in own) and any(name.endswith(".jinja") for name in own)
    assert f"Version: {loraport.__version__}\n" in metadata(lab)
    assert f"Requires-Dist: loraport[evaluate,report,sample]=={loraport.__version__}\n" in metadata(lab)


def needed(wheels: Sequence[Path]) -> set[str]:
    """The names of the packages that the wheels say they need, and of those that these need; extras where asked for."""
    lines = {distribution_name(wheel): required(metadata(wheel)) for wheel in wheels}
    todo, seen = [Requirement(name) for name in lines], set()
    while todo:
        requirement = todo.pop()
        for extra in ("", *requirement.extras):
            if (requirement.name, extra) not in seen:
                seen.add((requirement.name, extra))
                inner = lines.get(requirement.name) or distribution(requirement.name).requires or []
                todo += [
                    one for one in map(Requirement, inner) if not one.marker or one.marker.evaluate({"extra": extra})
                ]
    return {name for name, _ in seen} - set(lines)


def distribution_name(wheel: Path) -> str:
    return wheel.name.partition("-")[0].replace("_", "-")


def required(text: str) -> list[str]:
    return [line.removeprefix("Requires-Dist: ") for line in text.splitlines() if line.startswith("Requires-Dist: ")]


class Environment:
    """A virtual environment with these wheels and what they say they need."""

    def __init__(self, folder: Path, *wheels: Path) -> None:
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
        self.bin = folder / ("Scripts" if os.name == "nt" else "bin")
        self.packages = next(folder.glob("**/site-packages"))
        pip = [sys.executable, "-m", "pip", "--python", str(self.bin / "python"), "--disable-pip-version-check"]
        install = [*pip, "install", "--quiet", "--no-compile", "--no-index", "--no-deps"]
        subprocess.run([*install, *map(str, wheels)], check=True)
        for installed in map(distribution, needed(wheels)):
            for top in {file.parts[0] for file in installed.files or ()} - {"..", "__pycache__"}:
                if not (self.packages / top).exists():
                    (self.packages / top).symlink_to(Path(str(installed.locate_file(top))))

    def run(self, *words: str, folder: Path) -> subprocess.CompletedProcess[str]:
        """The program, with nothing of this checkout in its reach."""
        given = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        given |= {"LORAPORT_CACHE": str(folder / "cache")}
        call = [str(self.bin / "loraport"), *words]
        return subprocess.run(call, cwd=folder, env=given, capture_output=True, text=True, check=False)


@cache
def three_files() -> dict[str, dict[str, torch.Tensor]]:
    """A model, its distilled variant, and a LoRA on it."""
    rng = torch.Generator().manual_seed(0)
    base = {f"{name}.weight": torch.randn(SIZE, SIZE, generator=rng) for name in LAYERS}
    distilled = {name: W + 0.1 * torch.randn(SIZE, SIZE, generator=rng) for name, W in base.items()}
    shapes = {"lora_A": (RANK, SIZE), "lora_B": (SIZE, RANK)}
    keys = {f"diffusion_model.{n}.{factor}.weight": shape for n in LAYERS for factor, shape in shapes.items()}
    return {"base": base, "distilled": distilled, "lora": {k: torch.randn(v, generator=rng) for k, v in keys.items()}}


@pytest.mark.slow
def test_loraport_alone_transfers_in_a_clean_environment_and_says_where_the_rest_is(core, tmp_path):
    environment = Environment(tmp_path / "environment", core)
    for name, tensors in three_files().items():
        save_file(tensors, tmp_path / f"{name}.safetensors")
    models = ["--source", "base.safetensors", "--target", "distilled.safetensors"]
    done = environment.run(
        "transfer", "lora.safetensors", *models, "-o", "moved.safetensors", "--json", folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert [layer["status"] for layer in json.loads(done.stdout)["layers"]] == ["transferred"] * len(LAYERS)
    assert len(load_file(tmp_path / "moved.safetensors")) >= 2 * len(LAYERS)
    for words in (["demo"], ["lab", "run", "--jobs", "1"]):
        refused = environment.run(*words, folder=tmp_path)
        assert (refused.returncode, refused.stdout) == (2, "")
        assert refused.stderr == f"loraport: `loraport {words[0]}` is in {LAB}\n"
    refused = environment.run("transfer", "toy:noir", *models, "-o", "x.safetensors", folder=tmp_path)
    assert (refused.returncode, refused.stderr) == (2, f"loraport: toy:noir is in {LAB}\n")


@pytest.mark.slow
def test_the_demo_runs_from_the_wheels_in_a_clean_environment(core, lab, tmp_path):
    environment = Environment(tmp_path / "environment", core, lab)
    done = environment.run(
        *("demo", "-o", "demo", "--clips", "2", "--method", "direct", "--beside", "none", "--json"), folder=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "demo").iterdir()} >= {"index.html", "demo.json", "hero.png"}
    assert json.loads(done.stdout)["transfer"]["output"].startswith("demo/")
