"""The public names: listed, importable, documented, and loaded only when they are used."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import loraport
from conftest import CHECKED

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "numpy", "scipy", "diffusers", "transformers", "peft", "matplotlib", "jinja2", "huggingface_hub"}
CALL = """
import sys
from loraport.cli import main
sys.argv = {words!r}
try:
    main()
except SystemExit:
    pass
"""


def test_the_list_is_sorted_and_agrees_with_the_homes():
    assert loraport.__all__ == sorted(loraport.__all__)
    assert loraport.__all__ == sorted(name for names in loraport._HOMES.values() for name in names)


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(loraport.__file__).read_text(encoding="utf-8"))
    block = next(node for node in tree.body if isinstance(node, ast.If))
    seen = {(node.module, alias.name) for node in block.body for alias in node.names}
    assert seen == {(f"loraport.{home}", name) for home, names in loraport._HOMES.items() for name in names}


@pytest.mark.parametrize("name", loraport.__all__)
def test_each_name_is_there_and_says_what_it_is(name):
    value = getattr(loraport, name)
    assert callable(value) and value.__name__ == name
    assert len(value.__doc__) > 10 and not value.__doc__.startswith(f"{name}("), "a docstring of its own"
    assert name in dir(loraport)


def hidden_modules(folder: Path, package: ModuleType) -> list[str]:
    """Return the modules of a room that `import ROOM.NAME` does not give, since the room has something else there."""
    names = [path.stem for path in folder.glob("*.py") if path.stem != "__init__"]
    found = {name: import_module(f"{package.__name__}.{name}") for name in names}
    return [name for name, module in found.items() if getattr(package, name) is not module]


def test_no_name_of_a_room_hides_a_module(tmp_path, monkeypatch):
    rooms = [path.parent for path in (ROOT / "src" / "loraport").rglob("*/__init__.py")]
    for room in rooms:
        name = ".".join(room.relative_to(ROOT / "src").parts)
        assert hidden_modules(room, import_module(name)) == [], name
    import loraport.methods.casa as module

    assert isinstance(module, ModuleType) and module.casa is loraport.casa and callable(loraport.casa)
    (tmp_path / "a_room").mkdir()
    (tmp_path / "a_room" / "__init__.py").write_text("from a_room.walls import walls")
    (tmp_path / "a_room" / "walls.py").write_text("def walls(): ...")
    monkeypatch.syspath_prepend(tmp_path)
    assert hidden_modules(tmp_path / "a_room", import_module("a_room")) == ["walls"]


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'trasnfer'"):
        loraport.trasnfer  # noqa: B018


def test_the_docs_list_the_names():
    text = (ROOT / "docs" / "reference" / "library.md").read_text(encoding="utf-8")
    listed = [line.removeprefix("### ") for line in text.splitlines() if line.startswith("### ")]
    of_pipelines = [name.removeprefix("diffusers.") for name in listed if name.startswith("diffusers.")]
    assert of_pipelines == ["load", "unload", "LoadedLora"] and all(map(loraport.diffusers.__dict__.get, of_pipelines))
    assert sorted(name for name in listed if not name.startswith("diffusers.")) == loraport.__all__


def loaded_after(code: str) -> set[str]:
    """Heavy packages in memory after some code, in a process of its own."""
    end = f"\nimport sys\nprint('loaded:', *({HEAVY!r} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code + end], capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].removeprefix("loaded:").split())


@pytest.mark.parametrize("words", [[], ["--help"], ["transfer", "--help"], ["inspect", "-h"], ["--version"]], ids=str)
def test_help_answers_without_torch(words):
    assert loaded_after(CALL.format(words=["loraport", *words])) == set()


def test_importing_loads_nothing_heavy_and_using_does():
    assert loaded_after("import loraport") == set()
    assert loaded_after("import loraport\nloraport.LoraportError") == set()
    assert "torch" in loaded_after("import loraport\nloraport.LowRank")


def test_every_module_with_shapes_in_its_signatures_is_checked_while_tests_run():
    source = ROOT / "src"
    typed = [path for path in source.rglob("*.py") if "from jaxtyping import" in path.read_text(encoding="utf-8")]
    names = [".".join(path.relative_to(source).with_suffix("").parts) for path in typed]
    unchecked = [name for name in names if not any(f"{name}.".startswith(f"{room}.") for room in CHECKED)]
    assert len(names) > 20 and unchecked == []
