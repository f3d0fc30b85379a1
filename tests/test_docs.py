"""The docs tell the truth: generated pages are fresh, equations lead to functions, commands and links exist."""

import importlib.util
import re
import shlex
import sys
from importlib import import_module
from inspect import getmembers, isfunction
from pathlib import Path

import pytest
from typer.testing import CliRunner

from loraport.cli import app
from loraport.methods import METHODS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]

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
def test_each_help_shows_an_example_that_could_be_run(words):
    help = CliRunner().invoke(app, [*words[1:], "--help"], env={"COLUMNS": "400"}, catch_exceptions=False).stdout
    shown = next(line for line in help.splitlines() if "Example: " in line)
    example = shlex.split(shown.partition("Example: ")[2])
    assert tuple(example[: len(words)]) == words
    assert unknown_options(example) == []


def unknown_options(line: list[str]) -> list[str]:
    """What in a command line the program does not know: the command, or its options."""
    command = next((command for words, command in COMMANDS.items() if tuple(line[: len(words)]) == words), None)
    if command is None:
        return line if line[1:2] not in (["--version"], ["--help"]) else []
    known = {name for param in command.params for name in (*param.opts, *param.secondary_opts)} | {"--help"}
    return [word for word in line if re.match(r"--?[a-z]", word) and word not in known]


def command_lines(text: str) -> list[list[str]]:
    """The lines that call the program inside the code blocks of a page, continuation lines joined."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    calls = (line.split(" #")[0].strip() for line in lines)
    return [shlex.split(line) for line in calls if line.startswith("loraport ") and "[OPTIONS]" not in line]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_commands_in_the_docs_exist(path):
    lines = command_lines(path.read_text(encoding="utf-8"))
    assert [unknown for line in lines for unknown in unknown_options(line)] == []
    assert lines or path.name != "README.md"


def test_an_unknown_option_is_seen():
    assert unknown_options(["loraport", "transfer", "a", "--sauce", "b"]) == ["--sauce"]
    assert unknown_options(["loraport", "transmogrify", "a"]) != []
    assert command_lines("```\nloraport transfer x \\\n  -o y  # why\n```") == [
        ["loraport", "transfer", "x", "-o", "y"]
    ]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_links_in_the_docs_lead_somewhere(path):
    text = re.sub(r"<!--.*?-->", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    links = re.findall(r"\]\(([^)#]+)[^)]*\)", text)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


def test_the_readme_lists_every_method():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.partition("### Methods")[2].partition("###")[0]
    assert re.findall(r"^\| `([\w-]+)` \|", table, flags=re.MULTILINE) == list(METHODS)


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
    text = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
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
