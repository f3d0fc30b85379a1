"""The folder that ComfyUI gets: licence, what the registry reads, examples that fit the nodes, and who imports whom."""

import ast
import json
import re
import sys
from pathlib import Path

import pytest

import loraport

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "comfyui"
MODULES = sorted(FOLDER.rglob("*.py"))
WORKFLOWS = sorted((FOLDER / "example_workflows").glob("*.json"))
OF_COMFYUI = {"comfy", "comfy_api", "folder_paths"}


def imported(path):
    """The first words of what a module imports; "." for its neighbours."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else str(node.module).partition(".")[0]


def test_what_the_registry_reads():
    facts = tomllib.loads((FOLDER / "pyproject.toml").read_text(encoding="utf-8"))
    project = facts["project"]
    assert re.fullmatch(r"[A-Za-z][A-Za-z0-9]*([-_.][A-Za-z0-9]+)*", project["name"]) and len(project["name"]) < 100
    assert "comfyui" not in project["name"].lower() and re.fullmatch(r"\d+\.\d+\.\d+", project["version"])
    assert f'VERSION = "{loraport.__version__}"' in (FOLDER / "needs.py").read_text()
    assert project["version"] == loraport.__version__ and project["license"] == {"file": "LICENSE"}
    assert project["dependencies"] == [f"loraport[hub,gguf]=={loraport.__version__}"]
    assert (FOLDER / "requirements.txt").read_text().split() == project["dependencies"], "what ComfyUI-Manager installs"
    assert set(facts["tool"]["comfy"]) >= {"PublisherId", "DisplayName", "requires-comfyui"}


def test_the_nodes_have_the_licence_of_comfyui_and_loraport_has_its_own():
    assert "GNU GENERAL PUBLIC LICENSE\n                       Version 3" in (FOLDER / "LICENSE").read_text()[:200]
    assert "Apache License" in (ROOT / "LICENSE").read_text()[:300]


def test_loraport_is_imported_one_way():
    sources = [*(ROOT / "src").rglob("*.py"), *(ROOT / "lab" / "src").rglob("*.py")]
    assert [path for path in sources if OF_COMFYUI & set(imported(path))] == []
    known = {"loraport", "torch", ".", *OF_COMFYUI, *sys.stdlib_module_names}
    assert {name for path in MODULES for name in imported(path)} <= known


def test_only_what_shows_nodes_knows_comfyui():
    knowing = {path.stem for path in MODULES if OF_COMFYUI & set(imported(path))}
    assert knowing == {"comfy_side", "inputs", "file_nodes", "model_node", "extension"}


def test_files_are_short():
    assert [path.name for path in MODULES if path.read_text(encoding="utf-8").count("\n") > 400] == []


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.stem for path in WORKFLOWS])
def test_the_examples_fit_the_nodes(comfy, path):
    assert path.with_suffix(".jpg").is_file(), "the picture that ComfyUI shows beside it"
    ours = [one for one in json.loads(path.read_text())["nodes"] if one["type"].startswith("Loraport")]
    prompt = json.loads((path.parent / "api" / path.name).read_text()).values()
    posted = [one for one in prompt if one["class_type"].startswith("Loraport")]
    assert ours and [one["type"] for one in ours] == [one["class_type"] for one in posted]
    for shown, sent in zip(ours, posted, strict=True):
        inputs = comfy.nodes[shown["type"]].GET_SCHEMA().inputs
        widgets = [one for one in inputs if one.id not in {socket["name"] for socket in shown["inputs"]}]
        assert [sent["inputs"][one.id] for one in widgets] == shown["widgets_values"]
        for one, value in zip(widgets, shown["widgets_values"], strict=True):
            options = one.options.get("options")
            assert options is None or value in options or value.endswith(".safetensors"), f"{one.id}: {value}"


def test_the_readme_names_every_node_and_every_input(comfy):
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/how-to/comfyui.md").read_text(encoding="utf-8")
    for node in comfy.nodes.values():
        assert f"**{node.GET_SCHEMA().display_name}**" in text and f"*{node.GET_SCHEMA().display_name}*" in page
    assert len(WORKFLOWS) == 2 and all(f"**{path.stem}**" in text for path in WORKFLOWS)
