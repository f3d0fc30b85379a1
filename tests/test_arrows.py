"""The shape of the house: which room may import which, where third-party packages live, how large things grow."""

import ast
import sys
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {"loraport": ROOT / "src" / "loraport", "loraport_lab": ROOT / "lab" / "src" / "loraport_lab"}
MODULES = sorted(path for package in PACKAGES.values() for path in package.rglob("*.py"))

SMALL = {
    "compute",
    "digests",
    "errors",
    "field_types",
    "_version",
    "layout",
    "lazy_property",
    "plain_json",
    "printable",
    "progress",
    "stopwatch",
}
"""Files of the package itself that import nothing of ours, but for `errors`: open to everyone."""

ALLOWED: dict[str, set[str]] = {
    # A room (a folder or a file of the package itself): the rooms that it may import besides itself and the small ones.
    # The lowest floor comes first: a room may only name rooms of the lines before its own, so there is no circle, and
    # no arrow from a lower floor to a higher one.
    "parallel": set(),
    "spectral": set(),
    "methods": {"spectral"},
    "files.disk": set(),
    "clips": {"files.disk"},
    "objects": {"files.disk"},
    "files.names.tables": set(),
    "files.names": {"files.names.tables"},
    "files.presets": set(),
    "files.formats": {"spectral", "files.disk", "files.names"},
    "files.adapters": {"spectral", "files.names", "files.formats"},
    "files.models": {"files.disk", "objects", "files.names", "files.presets", "files.formats", "files.adapters"},
    "files.lora": {
        "spectral",
        "files.disk",
        "objects",
        "files.names",
        "files.formats",
        "files.adapters",
        "files.models",
    },
    "files.loaders": {"files.names", "files.adapters", "files.lora"},
    "files": {
        *("spectral", "files.disk", "files.names", "files.names.tables", "files.formats", "files.adapters"),
        *("files.models", "files.lora", "files.loaders", "files.presets"),
    },
    "parametrizations": {
        *("spectral", "files.names", "files.names.tables", "files.formats", "files.adapters", "files.models"),
        "files.lora",
    },
    "store": {"parallel", "spectral", "methods", "files.disk", "files.formats"},
    "inputs": {
        "files.presets",
        *("spectral", "methods", "files", "files.disk", "files.names", "files.adapters", "files.models", "files.lora"),
        *("files.formats", "objects"),
        "parametrizations",
        "store",
    },
    "estimates": {"parallel", "spectral", "methods", "files.models", "store", "inputs"},
    "diagnosis.rule": set(),
    "transfers": {
        *(
            "parallel",
            "spectral",
            "methods",
            "files.disk",
            "files.names",
            "files.formats",
            "files.adapters",
            "files.models",
        ),
        *("files.lora", "store", "inputs", "estimates", "diagnosis.rule"),
    },
    "merging": {"files", "files.names", "files.formats", "files.models", "files.lora"},
    "conversion": {
        *("spectral", "files", "files.disk", "files.names", "files.formats", "files.adapters", "files.models"),
        *("files.lora", "parametrizations", "inputs", "transfers"),
    },
    "analysis.measures": {"spectral"},
    "analysis": {
        *(
            "parallel",
            "spectral",
            "methods",
            "files.names",
            "files.adapters",
            "files.models",
            "files.lora",
            "store",
            "inputs",
            "estimates",
            "transfers",
            "merging",
        ),
        "analysis.measures",
    },
    "sampling": {
        *("spectral", "files", "files.disk", "files.names", "files.formats", "files.adapters", "files.models"),
        *("files.lora", "store", "inputs"),
    },
    "sampling.calibration": {"spectral", "files.names", "sampling"},
    "sampling.choice": {
        *(
            "spectral",
            "methods",
            "files",
            "files.disk",
            "files.formats",
            "files.adapters",
            "files.models",
            "files.lora",
        ),
        *("inputs", "transfers", "sampling", "sampling.calibration"),
    },
    "evaluation.metrics": {"clips"},
    "evaluation.networks": {"files.formats", "clips", "evaluation.metrics"},
    "evaluation": {
        *("files.disk", "files.formats", "files.models", "store", "sampling", "clips", "evaluation.metrics"),
        "evaluation.networks",
    },
    "diagnosis": {
        *("parallel", "spectral", "methods", "files", "files.disk", "files.models", "files.lora", "inputs"),
        "transfers",
        *("analysis", "analysis.measures", "sampling", "estimates", "diagnosis.rule"),
    },
    "compare.grid": {"methods", "files", "files.disk", "files.models", "inputs", "clips"},
    "compare.pipelines": {
        *("spectral", "files.disk", "files.names", "files.models", "files.lora", "inputs", "clips", "sampling"),
        *("sampling.choice", "compare.grid"),
    },
    "compare": {
        *("files.disk", "files.lora", "inputs", "transfers", "clips", "sampling", "sampling.choice", "compare.grid"),
        "compare.pipelines",
    },
    "diffusers": {
        *("files.formats", "store", "inputs", "transfers", "diagnosis", "diagnosis.rule"),
    },
    "": {
        "spectral",
        "methods",
        "files.adapters",
        "files.models",
        "files.lora",
        "store",
        "inputs",
        "transfers",
        "merging",
        "conversion",
        "analysis",
        *("files", "sampling.choice", "diagnosis", "diffusers"),
    },
    "batches": {
        *("methods", "files", "files.disk", "files.adapters", "files.formats", "files.models", "files.lora", "inputs"),
        *("transfers", "diagnosis", "diagnosis.rule"),
    },
    "workers": {
        *("methods", "files.disk", "files.adapters", "files.formats", "files.models", "files.lora", "objects"),
        *("inputs", "estimates", "store", "transfers", "batches"),
    },
    "workers.on_ray": {"files.disk", "files.models", "estimates", "transfers", "batches", "objects", "workers"},
    "workers.local": {"transfers", "batches", "objects", "workers", "workers.on_ray"},
    "reports": {
        "files",
        "files.disk",
        "files.names",
        "transfers",
        "analysis",
        "diagnosis",
        "diagnosis.rule",
        "batches",
    },
    "reports.evaluation": {"files.disk", "sampling", "evaluation.metrics", "evaluation", "reports"},
    "reports.comparison": {"compare", "reports"},
    "publishing": {
        *("files.disk", "files.adapters", "files.loaders", "files.lora", "files.models", "files.presets", "compare"),
    },
    "console": {"files.models", "inputs", "transfers", "merging", "conversion", "analysis"},
    "app": {
        *("methods", "files.disk", "files", "files.models", "inputs", "batches", "sampling", "diagnosis"),
        "diagnosis.rule",
    },
    "cli.options": {
        "diagnosis",
        "diagnosis.rule",
        *("files", "files.presets"),
        "files.disk",
        "files.names",
        "files.formats",
        "files.models",
        "files.lora",
        "methods",
        "store",
        "inputs",
        "transfers",
        "sampling",
        "reports",
        "console",
    },
    "cli.commands": {
        "cli.options",
        "files.names",
        *(
            "",
            "files",
            "files.disk",
            "files.formats",
            "files.models",
            "methods",
            "store",
            "inputs",
            "transfers",
            "merging",
            "conversion",
        ),
        *(
            "analysis",
            "sampling",
            "sampling.choice",
            "diagnosis",
            "diagnosis.rule",
            "batches",
            "evaluation",
            "reports",
            "console",
        ),
        *("compare", "compare.grid", "app", "objects", "workers", "workers.local", "workers.on_ray"),
        "reports.evaluation",
        "reports.comparison",
        "publishing",
    },
    "cli": {"files.models", "sampling", "cli.options", "cli.commands"},
    "__main__": {"cli"},
}
LAB: dict[str, set[str]] = {
    # Rooms of the annex: all of loraport's are open to it, and none of loraport's knows the annex.
    "": set(),
    "workers": set(),
    "family": set(),
    "provider": {"family"},
    "training": {"workers", "family"},
    "bench": {"", "workers", "family", "training"},
    "regime": {"family", "training", "bench"},
    "demo": {"family", "training"},
    "pages": {"family", "bench", "demo"},
    "cli_demo": {"family", "demo", "pages"},
    "cli_lab": {"family", "bench", "pages"},
}

THIRD_PARTY = {
    # A room or single module: the packages that it may import; what is listed for a module is added to its room's.
    "spectral": {"torch", "scipy", "numpy", "jaxtyping"},
    "methods": {"torch", "jaxtyping"},
    "files.names.tables": {"torch"},
    "files.formats": {"torch", "safetensors", "jaxtyping"},
    "files.formats.gguf": {"gguf", "numpy"},
    "files.formats.raw_values": {"numpy"},
    "files.adapters": {"torch", "jaxtyping"},
    "files.models": {"torch", "jaxtyping"},
    "files.models.hub": {"huggingface_hub"},
    "publishing": {"huggingface_hub"},
    "files.lora": {"torch"},
    "files.loaders": set(),
    "files": {"torch"},
    "parametrizations": {"torch", "scipy", "jaxtyping"},
    "store": {"torch", "jaxtyping"},
    "clips": {"av", "numpy", "PIL"},
    "objects.open": {"fsspec"},
    "compare": {"numpy"},
    "compare.grid": {"torch"},
    "compare.pipelines": {"torch", "numpy"},
    "compare.pipelines.pipeline_model": {"diffusers", "safetensors"},
    "compare.pipelines.opened_networks": {"diffusers"},
    "compare.pipelines.texts": {"diffusers"},
    "compute": {"torch"},
    "parallel": {"torch"},
    "digests": {"blake3"},
    "stopwatch": {"torch"},
    "inputs": {"torch"},
    "estimates": {"torch"},
    "merging": {"torch"},
    "transfers": {"torch"},
    "conversion": {"torch"},
    "analysis": {"torch", "jaxtyping"},
    "analysis.measures": {"torch", "numpy", "scipy", "jaxtyping"},
    "diagnosis": {"torch", "jaxtyping"},
    "workers": {"torch"},
    "workers.local": {"torch"},
    "workers.on_ray": {"torch"},
    "workers.on_ray.cluster": {"ray"},
    "sampling": {"torch", "jaxtyping", "numpy", "scipy"},
    "evaluation.metrics": {"torch", "jaxtyping", "numpy"},
    "evaluation.networks": {"torch", "jaxtyping", "numpy", "PIL", "transformers", "tokenizers"},
    "evaluation": {"torch", "numpy"},
    "sampling.calibration": {"torch", "jaxtyping"},
    "sampling.choice": {"torch"},
    "sampling.network": {"accelerate", "diffusers", "transformers"},
    "sampling.schedules": {"diffusers"},
    "diffusers": {"torch", "peft"},
    "reports": {"torch", "jinja2"},
    "reports.figures": {"matplotlib"},
    "reports.plots": {"matplotlib", "numpy"},
    "reports.plots_layer": {"numpy"},
    "reports.plots_pairing": {"numpy"},
    "reports.plots_sweep": {"numpy"},
    "console": {"rich"},
    "app.looks": {"gradio"},
    "app.pages": {"gradio"},
    "app.server": {"gradio", "fastapi", "uvicorn"},
    "cli": {"typer"},
    "cli.options": {"typer", "rich"},
    "cli.commands": {"typer", "rich"},
}
OF_THE_LAB = {"torch", "numpy", "scipy", "PIL", "safetensors", "diffusers", "peft", "matplotlib", "typer", "rich"}


def split(path: Path) -> tuple[str, str]:
    """Return package and module: `inputs/plan.py` -> ("loraport", "inputs.plan"); an `__init__` is its folder."""
    package = next(name for name, folder in PACKAGES.items() if folder in path.parents)
    parts = path.relative_to(PACKAGES[package]).with_suffix("").parts
    return package, ".".join(part for part in parts if part != "__init__")


def is_folder(package: str, module: str) -> bool:
    return (PACKAGES[package] / Path(*module.split("."))).is_dir()


def room(package: str, module: str) -> str:
    """The folder that a module lies in; a file of the package itself is a room of its own."""
    if module == "" or is_folder(package, module) or "." not in module:
        return module
    return module.rpartition(".")[0]


def is_ours(name: str) -> bool:
    package, _, module = name.partition(".")
    if package not in PACKAGES:
        return False
    place = PACKAGES[package] / Path(*module.split(".")) if module else PACKAGES[package]
    return place.is_dir() or place.with_suffix(".py").is_file()


def imports(source: str) -> set[str]:
    """Every imported module by its full name, those inside functions and for type checkers only included.

    `from a import b` counts as `a.b` where that is a module of ours: `from loraport.spectral import basis` is seen.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                found.add(inner if is_ours(inner) else str(node.module))
    return found


def wrong_imports(source: str, package: str, module: str) -> list[str]:
    """What a module of the given name must not import."""
    own = room(package, module)
    where = f"{package}.{module}".rstrip(".")
    wrong = []
    for name in sorted(imports(source)):
        top, _, rest = name.partition(".")
        if top in PACKAGES:
            far = room(top, rest)
            if package == "loraport_lab":
                allowed = top == "loraport" or far == own or far in LAB[own]
            else:
                open_to_it = {"errors"} if own in SMALL else ALLOWED[own] | SMALL
                allowed = top == "loraport" and (far == own or far in open_to_it)
            if not allowed:
                wrong.append(f"{where} must not import {name}")
        elif top not in sys.stdlib_module_names:
            known = THIRD_PARTY.get(own, set()) | THIRD_PARTY.get(module, set())
            if top not in (known if package == "loraport" else OF_THE_LAB):
                wrong.append(f"{where} must not import {name}; its home is elsewhere")
    return wrong


def test_every_import_follows_an_arrow():
    wrong = [line for path in MODULES for line in wrong_imports(path.read_text(encoding="utf-8"), *split(path))]
    assert wrong == []


def test_no_arrow_points_upwards_and_so_there_is_no_circle():
    for table in (ALLOWED, LAB):
        order = list(table)
        assert [
            (one, other) for one, others in table.items() for other in others if order.index(other) >= order.index(one)
        ] == []


@pytest.mark.parametrize(
    ("module", "source"),
    {
        "spectral.low_rank": "from loraport.files.lora.read import Lora",
        "spectral.routing": "import loraport.methods",
        "methods.casa": "from loraport.inputs import config",
        "files.lora.read": "from loraport.methods.casa import casa",
        "files.names.lookup": "from loraport.spectral import routing",
        "files.models.locate": "from loraport.files.lora import read",
        "store.bases": "import huggingface_hub",
        "transfers.run": "def f():\n    from loraport.reports.transfer_page import write_page",
        "inputs.plan": "from loraport.cli import app",
        "transfers.layer": "import numpy",
        "sampling.calibration.readout": "from loraport_lab.family.pair import EmbeddedPair",
        "sampling.score": "import diffusers",
        "reports.analysis_page": "import matplotlib.pyplot as plt",
        "console": "if TYPE_CHECKING:\n    from loraport.cli import app",
        "errors": "import torch",
        "": "from loraport_lab.demo import run_demo",
    }.items(),
)
def test_a_forbidden_arrow_is_seen(module, source):
    assert len(wrong_imports(source, "loraport", module)) == 1


def test_allowed_arrows_are_not_seen():
    assert (
        wrong_imports("from loraport.spectral.low_rank import LowRank\nimport os, torch", "loraport", "files.lora.read")
        == []
    )
    assert wrong_imports("import huggingface_hub", "loraport", "files.models.hub") == []
    assert wrong_imports("from loraport.transfers.run import transfer", "loraport_lab", "demo") == []
    assert len(wrong_imports("from loraport_lab.demo import run_demo", "loraport_lab", "family.model")) == 1


def test_every_room_has_its_arrows_and_no_room_is_a_ghost():
    rooms = {package: {room(package, name) for p, name in map(split, MODULES) if p == package} for package in PACKAGES}
    assert rooms["loraport"] == set(ALLOWED) | SMALL
    assert rooms["loraport_lab"] == set(LAB)
    modules = {module for package, module in map(split, MODULES) if package == "loraport"}
    assert set(THIRD_PARTY) <= modules


def test_no_room_holds_more_than_fifteen_files():
    full = Counter(path.parent for path in MODULES if path.name != "__init__.py")
    assert {str(folder.relative_to(ROOT)): count for folder, count in full.items() if count > 15} == {}


def public_names(source: str) -> set[str]:
    """The functions, classes and values that a module defines at its top; what it imports is another's."""
    names: set[str] = set()
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if _is_annotated(node) else []
        names |= {name.id for target in targets for name in ast.walk(target) if isinstance(name, ast.Name)}
    return {name for name in names if not name.startswith("_")}


def _is_annotated(node: ast.stmt) -> bool:
    return isinstance(node, ast.AnnAssign)


def test_no_public_name_is_defined_twice_in_a_room():
    counts: dict[str, Counter[str]] = {}
    for path in MODULES:
        package, module = split(path)
        own = room(package, module) if path.parent != PACKAGES[package] else ""
        names = public_names(path.read_text(encoding="utf-8")) - {"app"}  # each module of commands has its Typer
        counts.setdefault(f"{package}.{own}".rstrip("."), Counter()).update(names)
    twice = {own: {name for name, times in names.items() if times > 1} for own, names in counts.items()}
    assert {own: names for own, names in twice.items() if names} == {}


def test_public_names_are_seen():
    source = "from a import b\nONE, TWO = 1, 2\nTHREE: int = 3\ndef four(): five = 5\nclass Six: ...\n_SEVEN = 7"
    assert public_names(source) == {"ONE", "TWO", "THREE", "four", "Six"}


def test_no_file_and_no_function_is_too_long():
    sources = {path: path.read_text(encoding="utf-8") for path in MODULES}
    assert [str(path) for path, source in sources.items() if source.count("\n") > 400] == []
    assert [f"{path}: {line}" for path, source in sources.items() for line in too_long(source)] == []


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
    names = {part for path in MODULES for part in split(path)[1].split(".")}
    assert names & vague == set()


OWN_FILES = {
    *("inputs.config", "analysis.inputs", "inputs.identity", "store.keyed", "training.stages"),
    *("files.formats.safetensors_write", "files.models.write", "files.disk.ownership", "sampling.wan_pipelines"),
    "workers.parts",
}
"""Modules whose JSON is a key, a file that only the program itself reads, or a header of integers and texts."""


def test_json_is_written_by_one_function():
    """`json.dumps` writes Infinity, which is no JSON."""
    writers = {split(path)[1] for path in MODULES if "dumps(" in path.read_text(encoding="utf-8")}
    assert writers - OWN_FILES == {"plain_json"}
