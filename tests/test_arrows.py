"""The shape of the house: which folder may import which, where third-party packages live, how large things grow."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "loraport"
MODULES = sorted(PACKAGE.rglob("*.py"))

SPECTRAL = {"spectral.svd", "spectral.halves", "spectral.products"}
INNER = {"errors", "once", "plain_json", "spectral", "methods", "weights", "runs"}
ALLOWED = {
    # a folder or file: the folders, files or single modules of ours that it may import besides itself
    "errors": set(),
    "once": set(),
    "plain_json": set(),
    "printable": set(),
    "spectral": {"errors", "once"},
    "methods": {"errors", "once", "spectral"},
    "weights": {"errors", "once", "plain_json"} | SPECTRAL,
    "runs": {
        "errors",
        "once",
        "plain_json",
        "spectral.svd",
        "spectral.halves",
        "spectral.products",
        "methods",
        "weights",
        "",
    },
    "effect": {"errors", "plain_json", "spectral.svd", "weights", "runs", ""},
    "toy": INNER | {"effect"},
    "lab": INNER | {"toy", "effect", ""},
    "reports": INNER,
    "console": INNER | {"printable"},
    "cli": INNER | {"effect", "toy", "lab", "reports", "console", "printable", ""},
    "__main__": {"cli"},
    "": INNER,  # the package itself: its public names
}

THIRD_PARTY = {
    # a folder or single module: the packages that it may import; what is listed for a module is added to its folder's
    "errors": set(),
    "once": set(),
    "plain_json": set(),
    "printable": set(),
    "spectral": {"torch", "scipy", "numpy", "jaxtyping"},
    "methods": {"torch", "jaxtyping"},
    "weights": {"torch", "safetensors", "jaxtyping"},
    "weights.hub": {"huggingface_hub"},
    "weights.gguf_files": {"gguf", "numpy"},
    "runs": {"torch"},
    "effect": {"torch", "jaxtyping", "numpy", "scipy"},
    "effect.network": {"accelerate", "diffusers", "transformers"},
    "effect.schedules": {"diffusers"},
    "toy": {"torch", "numpy", "PIL", "safetensors", "diffusers", "peft"},
    "lab": {"torch", "numpy", "scipy", "diffusers"},
    "reports": {"torch", "jinja2", "PIL"},
    "reports.lab_plots": {"matplotlib", "numpy"},
    "reports.plots": {"matplotlib", "numpy"},
    "reports.plots_layer": {"numpy"},
    "reports.plots_pairing": {"numpy"},
    "reports.plots_sweep": {"numpy"},
    "console": {"rich"},
    "cli": {"typer", "rich"},
    "__main__": set(),
    "": set(),
}


def module_name(path: Path) -> str:
    """`runs/plan.py` -> "runs.plan"; a folder's `__init__` has the folder's name; the package's own is empty."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def imports(source: str, module: str) -> set[str]:
    """Every imported module by its full name, those inside functions and for type checkers only included.

    `from a import b` counts as `a.b` where that is a module of ours: `from loraport.spectral import svd` is seen.
    """
    assert not module.startswith("loraport")
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module or 'loraport'}: imports are written out in full"
            ours = node.module == "loraport" or str(node.module).startswith("loraport.")
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if ours and is_ours(inner) else str(node.module))
    return found


def is_ours(name: str) -> bool:
    place = PACKAGE.parent / Path(*name.split("."))
    return place.is_dir() or place.with_suffix(".py").is_file()


def wrong_imports(source: str, module: str) -> list[str]:
    """What a module of the given name must not import."""
    folder = module.split(".")[0]
    wrong = []
    for name in sorted(imports(source, module)):
        top, _, rest = name.partition(".")
        if top == "loraport":
            near = rest.split(".")[0]
            if near != folder and near not in ALLOWED[folder] and rest not in ALLOWED[folder]:
                wrong.append(f"{module or 'loraport'} must not import {name}")
        elif top not in sys.stdlib_module_names and top not in THIRD_PARTY[folder] | THIRD_PARTY.get(module, set()):
            wrong.append(f"{module or 'loraport'} must not import {name}; its home is elsewhere")
    return wrong


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_every_import_follows_an_arrow(path):
    assert wrong_imports(path.read_text(encoding="utf-8"), module_name(path)) == []


@pytest.mark.parametrize(
    ("module", "source"),
    {
        "spectral.svd": "from loraport.files.lora.read import Lora",
        "spectral.routing": "import loraport.methods",
        "methods.casa": "from loraport.runs import config",
        "weights.lora": "from loraport.spectral.routing import observe",
        "weights.names": "from loraport.spectral import routing",
        "weights.cache": "import huggingface_hub",
        "runs.execute": "def f():\n    from loraport_lab.pages.demo_page import write_page",
        "runs.plan": "from loraport.cli import app",
        "runs.layer": "import numpy",
        "effect.readout": "from loraport_lab.family.pair import EmbeddedPair",
        "effect.score": "import diffusers",
        "reports.demo_page": "import matplotlib.pyplot as plt",
        "reports.verdict": "from loraport_lab.demo import run_demo",
        "toy.demo": "from loraport_lab.pages.demo_page import write_page",
        "console": "if TYPE_CHECKING:\n    from loraport.cli import app",
        "errors": "import torch",
        "": "from loraport_lab.demo import run_demo",
    }.items(),
)
def test_a_forbidden_arrow_is_seen(module, source):
    assert len(wrong_imports(source, module)) == 1


def test_allowed_arrows_are_not_seen():
    assert wrong_imports("from loraport.spectral.svd import LowRank\nimport os, torch", "weights.lora") == []
    assert wrong_imports("import huggingface_hub", "weights.hub") == []


def test_every_folder_and_file_has_its_arrows():
    present = {module_name(path).split(".")[0] for path in MODULES}
    assert present <= set(ALLOWED) and present <= set(THIRD_PARTY)


@pytest.mark.parametrize("path", MODULES, ids=module_name)
def test_no_file_and_no_function_is_too_long(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= 400, "a file has at most 400 lines"
    assert too_long(source) == []


def too_long(source: str, most: int = 60) -> list[str]:
    """Functions of more lines than that, their docstrings left out."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= (node.body[0].end_lineno or 0) - node.body[0].lineno + 1
            if lines > most:
                found.append(f"{node.name}: {lines} lines")
    return found


def test_a_long_function_is_seen_and_its_docstring_does_not_count():
    body = "\n".join("    x = 1" for _ in range(60))
    assert too_long(f"def f():\n{body}") == ["f: 61 lines"]
    docstring = '    """' + "\n" * 70 + '    """'
    assert too_long(f"def f():\n{docstring}\n    return 1") == []


def test_modules_are_named_for_what_they_hold():
    vague = {"utils", "util", "helpers", "helper", "common", "core", "base", "manager", "misc"}
    names = {part.removesuffix(".py") for path in MODULES for part in path.relative_to(PACKAGE).parts}
    assert names & vague == set()


OWN_FILES = {
    *("runs.config", "runs.bench", "runs.prepare", "runs.journal", "lab.store", "toy.stages"),
    *("weights.saving", "weights.model_write", "weights.ownership"),
}
"""Modules whose JSON is a key, a file that only the program itself reads, or a header of integers and texts."""


def test_json_is_written_by_one_function():
    """`json.dumps` writes Infinity, which is no JSON."""
    writers = {module_name(path) for path in MODULES if "dumps(" in path.read_text(encoding="utf-8")}
    assert writers - OWN_FILES - {"effect.pipelines"} == {"plain_json"}
