"""The docs tell the truth: generated pages are fresh, equations lead to functions, commands and links exist."""

import csv
import importlib.util
import re
import runpy
import shlex
import sys
from importlib import import_module
from inspect import getmembers, isfunction
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from loraport._version import __version__
from loraport.cli import app
from loraport.methods.recipes import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "lab" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]

spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
generate = importlib.util.module_from_spec(spec)
spec.loader.exec_module(generate)
COMMANDS = dict(generate.all_commands())


@pytest.mark.parametrize("path", generate.PAGES, ids=lambda path: path.name)
def test_generated_pages_are_fresh(path):
    assert path.read_text(encoding="utf-8") == generate.PAGES[path](), "stale: run `make docs`"


def test_a_stale_page_is_seen(tmp_path, monkeypatch, capsys):
    stale = tmp_path / "cli.md"
    stale.write_text("old")
    monkeypatch.setattr(generate, "PAGES", {stale: generate.cli_page})
    monkeypatch.setattr(sys, "argv", ["generate.py", "--check"])
    assert generate.main() == 1 and "make docs" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", ["generate.py"])
    assert generate.main() == 0 and stale.read_text(encoding="utf-8") == generate.cli_page()


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_each_help_shows_an_example(words):
    """The examples stand in reference/cli.md too, and `test_docs_commands` runs them."""
    help = CliRunner().invoke(app, [*words[1:], "--help"], env={"COLUMNS": "400"}, catch_exceptions=False).stdout
    shown = next(line for line in help.splitlines() if "Example: " in line)
    assert tuple(shlex.split(shown.partition("Example: ")[2])[: len(words)]) == words


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_in_the_docs_lead_somewhere(path):
    text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text) + re.findall(r'src(?:set)?="([^"]+)"', text)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_modules_that_the_docs_name_exist(path):
    """Paths from the root, and those that pages write from the package on (`inputs/drift.py`)."""
    named = set(re.findall(r"`(?:from )?((?:[a-z_]+/)+[a-z_0-9]+\.py)`", path.read_text(encoding="utf-8")))
    roots = (ROOT, ROOT / "src" / "loraport", ROOT / "lab" / "src" / "loraport_lab")
    ours = [name for name in sorted(named) if any((root / name.partition("/")[0]).is_dir() for root in roots)]
    gone = [name for name in ours if not any((root / name).is_file() for root in roots)]
    assert gone == [] or path.name in ("lab-log.md", "CHANGELOG.md")  # dated: modules as they were then


def test_a_module_that_is_gone_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("see `inputs/drafts.py` and `fastvideo/pipelines/stages.py`")
    with pytest.raises(AssertionError, match=r"inputs/drafts\.py"):
        test_modules_that_the_docs_name_exist(page)


def test_the_page_of_methods_has_every_method():
    text = (ROOT / "docs" / "reference" / "methods.md").read_text(encoding="utf-8")
    table = text.partition("## What they compute")[2].partition("\n## ")[0]
    named = {name for row in re.findall(r"^\| (.*?) \|", table, re.M) for name in re.findall(r"`([a-z-]+)", row)}
    assert named == set(METHODS)


def test_the_readme_is_short_and_fits_a_terminal():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_every_table_of_the_lab_is_shown_and_is_a_table():
    files = sorted((ROOT / "lab" / "results").rglob("*.csv"))
    names = ("lab/results.md", "lab/first-family.md", "explanation/calibration.md", "explanation/does-it-help.md")
    pages = [ROOT / "docs" / name for name in names]
    shown = [name for page in pages for name in re.findall(r":file: \.\./\.\./(.+\.csv)", page.read_text("utf-8"))]
    whole_map = "lab/results/map/map.csv"  # hundreds of lines: the page names it and shows two tables made from it
    assert whole_map in pages[-1].read_text("utf-8")
    assert sorted([*shown, whole_map]) == [path.relative_to(ROOT).as_posix() for path in files] != []
    for path in files:
        with path.open(encoding="utf-8", newline="") as file:
            assert len({len(line) for line in csv.reader(file)}) == 1, path.name


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the site's generator needs it")
@pytest.mark.parametrize(("disabled", "shown"), [(None, True), ([], False)])
def test_a_line_that_begins_with_a_percent_sign_is_no_comment(disabled, shown):
    config = pytest.importorskip("myst_parser.config.main")
    parser = pytest.importorskip("myst_parser.parsers.mdit")
    renderer = pytest.importorskip("markdown_it.renderer")
    settings = runpy.run_path(str(ROOT / "docs" / "conf.py"))["myst_disable_syntax"] if disabled is None else disabled
    md = parser.create_md_parser(config.MdParserConfig(disable_syntax=settings), renderer.RendererHTML)
    assert ("% of the gap" in md.render("It closes 8\n% of the gap.\n")) is shown


WRAPPED = [path for path in PAGES if path.name not in ("CONTRIBUTING.md", "CHANGELOG.md", "lab-log.md")]


@pytest.mark.parametrize("path", WRAPPED, ids=lambda path: path.name)
def test_prose_is_wrapped(path):
    text = re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    wide = [line for line in text.splitlines() if len(line) > 120 and not line.startswith("|")]
    assert [line for line in wide if " " in re.sub(r"\[[^]]*\]\([^)]*\)|`[^`]*`", "x", line)[100:]] == []


def test_what_one_cites_is_the_version_that_one_has():
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert cited["version"] == __version__ and cited["license"] == "Apache-2.0" and cited["authors"]
    assert f"version = {{{__version__}}}" in (ROOT / "docs" / "citing.md").read_text(encoding="utf-8")
    papers = " ".join(reference["url"] for reference in cited["references"])
    assert "2605.01929" in papers and "2506.04244" in papers


def equations(text: str) -> set[int]:
    """`5–6` and `9, 13` as numbers."""
    found = set()
    for first, last in re.findall(r"(\d+)(?:[–-](\d+))?", text):
        found |= set(range(int(first), int(last or first) + 1))
    return found


def mentioned(docstring: str | None) -> set[int]:
    """The equations that a docstring names."""
    spans = re.findall(r"Eq\. (\d+(?:[–-]\d+)?(?:, \d+(?:[–-]\d+)?)*)", docstring or "")
    return {number for span in spans for number in equations(span)}


def equation_rows() -> list[tuple[set[int], str]]:
    text = (ROOT / "docs" / "explanation" / "method.md").read_text(encoding="utf-8")
    return [(equations(first), name) for first, name in re.findall(r"^\| ([\d–, ]+) \| `([\w.]+)` \|", text, re.M)]


def test_the_table_of_equations_is_whole():
    assert set().union(*(numbers for numbers, _ in equation_rows())) == {*range(1, 15), *range(17, 23)}


@pytest.mark.parametrize(
    ("numbers", "name"), equation_rows(), ids=lambda value: value if isinstance(value, str) else ""
)
def test_each_function_of_the_table_names_its_equation(numbers, name):
    module, _, function = name.rpartition(".")
    assert numbers <= mentioned(getattr(import_module(f"loraport.{module}"), function).__doc__)


def test_each_function_that_names_an_equation_is_in_the_table():
    named = set()
    for path in (ROOT / "src" / "loraport" / "spectral").glob("[a-z]*.py"):
        module = import_module(f"loraport.spectral.{path.stem}")
        for name, function in getmembers(module, isfunction):
            if function.__module__ == module.__name__ and not name.startswith("_") and mentioned(function.__doc__):
                named.add(f"spectral.{path.stem}.{name}")
    assert named <= {name for _, name in equation_rows()} and len(named) > 8
