"""Every command of the README and the site does what the page says: it is run, on tiny files of the names it uses."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "lab" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
PAGES.remove(ROOT / "docs" / "lab-log.md")  # dated entries: commands as they were then

TUTORIAL = "first-transfer.md"
"""Begins in an empty folder; all other pages have the files of `docs_files`."""

PARSED = {
    "loraport demo": "samples for minutes; tests of the demo run it on fewer clips",
    "loraport lab run": "samples for an hour; tests of the lab run one cell",
    "loraport app": "serves until it is stopped; its own tests serve it and use it",
    "loraport push style-fast.safetensors you/style-fast --compare": "wants clips of this file, which its tests make",
}
"""Commands that are only parsed, to the last option and value, by their first words, with the reason."""

ELSEWHERE = re.compile(r"\bs3://|--ray\b")
"""Of commands that want a bucket or a cluster, which tests of their own have: they are only parsed, too."""

DRY = ("choose", "score", "calibrate", "compare", "push")
"""Commands that sample pipelines, or publish: run with `--dry-run`, which opens them and plans. Run on the embedded
family, where few clips are asked for."""

CLIPS = ("score", "choose", "compare")
"""Commands that sample: run with few clips, whatever the page asks for, since clips cost seconds."""

ONCE = {"analyze", "ssd-1b"}
"""Words of slow commands: a line that another page has too is run on one of them."""

LOSES = ("ssd-1b",)
"""Words of commands that rightly end with exit code 3, because the target lacks layers."""


def code_blocks(text: str) -> list[tuple[str, str]]:
    """(language, code) of the fenced blocks of a page, in order."""
    return re.findall(r"^```([^`\n]*)\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)


def command_lines(code: str) -> list[str]:
    """The lines of a block of shell commands, continuation lines joined, comments taken off."""
    lines = (re.split(r"\s#", line)[0].strip() for line in code.replace("\\\n", " ").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def check_kind(words: list[str]) -> str:
    """How a command line is checked: run, dry, parsed, make, pip, python or shell."""
    if words[0] != "loraport":
        return words[0] if words[0] in ("make", "pip", "python") else "shell"
    line = " ".join(words)
    if ELSEWHERE.search(line) or any(line.startswith(start) for start in PARSED):
        return "parsed"
    small = "toy:base" in words and ("--clips" in words or words[1] in ("score", "compare"))
    return "dry" if words[1] in DRY and not small else "run"


def with_few_clips(words: list[str]) -> list[str]:
    """A line of a command that samples, with the fewest clips instead of the number that it asks for."""
    option, fewest = ("--first", "1") if words[1] == "compare" else ("--clips", "2")
    if option in words:
        words = [*words[: words.index(option)], *words[words.index(option) + 2 :]]
    return [*words, option, fewest]


def parse(words: list[str]) -> None:
    """Parse a command line as the program does, without running it; raises click's UsageError."""
    from loraport.cli import app

    command: Any = typer.main.get_command(app)
    rest = words[1:]
    while hasattr(command, "commands"):
        command = command.commands[rest[0]]
        rest = rest[1:]
    command.make_context(words[0], list(rest))


_done: set[str] = set()


class Checker:
    """Runs the lines of one page in one folder and lists what is wrong."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.capsys, self.monkeypatch = folder, capsys, monkeypatch
        self.kinds: dict[str, str] = {}

    def faults(self, text: str) -> list[str]:
        """One entry for each line that does not do what it should."""
        found = []
        self.monkeypatch.chdir(self.folder)
        for language, code in code_blocks(text):
            if language == "python" and not code.startswith("loraport."):  # a signature
                found += self._program(code)
            elif language == "sh":
                for line in command_lines(code):
                    found += [f"{line}: {fault}" for fault in self._line(line)]
        return found

    def _program(self, code: str) -> list[str]:
        try:
            exec(compile(code, "<page>", "exec"), {})
        except Exception as error:
            return [f"{code.strip().splitlines()[0]} ...: {type(error).__name__}: {error}"]
        return []

    def _line(self, line: str) -> list[str]:
        words = shlex.split(line)
        kind = self.kinds[line] = check_kind(words)
        if kind == "parsed":
            try:
                parse(words)
            except Exception as error:
                return [f"{type(error).__name__}: {error}"]
            return []
        if ONCE & {*words} and line in _done:
            return []
        _done.add(line)
        if kind in ("run", "dry"):
            return self._call([*words, "--dry-run"] if kind == "dry" else words)
        return {"make": _make, "pip": _pip, "python": _python, "shell": lambda words: []}[kind](words)

    def _call(self, words: list[str]) -> list[str]:
        from loraport.cli import main

        if words[1] in CLIPS and "--dry-run" not in words:
            parse(words)  # the number that the page asks for is one
            words = with_few_clips(words)

        self.monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stop:
            main()
        error = self.capsys.readouterr().err
        code = stop.value.code or 0
        wanted = 3 if any(word in LOSES for word in words) else 0
        return [] if code == wanted else [f"exit code {code}, expected {wanted}: {error.strip()[-500:]}"]


def _make(words: list[str]) -> list[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [word for word in words[1:] if "=" not in word]
    return [f"no target {target}" for target in targets if not re.search(rf"^{target}:", makefile, re.MULTILINE)]


def _pip(words: list[str]) -> list[str]:
    """`pip install 'PLACE[extra]'`: the place has a project, and the project the extras."""
    if words[1:2] != ["install"]:
        return [f"not an installation: {words}"]
    found = []
    for word in (word for word in words[2:] if not word.startswith("-")):
        place, _, extras = word.rstrip("]").partition("[")
        project = ROOT / place / "pyproject.toml"
        if not project.is_file():
            found.append(f"{place} has no pyproject.toml")
            continue
        text = project.read_text(encoding="utf-8").partition("[project.optional-dependencies]")[2]
        found += [f"no extra {name}" for name in extras.split(",") if name and f"\n{name} = [" not in text]
    return found


def _python(words: list[str]) -> list[str]:
    """`python -m MODULE` and `python FILE`: there is such a module or file here."""
    name = words[2] if words[1] == "-m" else words[1]
    there = find_spec(name) is not None if words[1] == "-m" else (ROOT / name).is_file() or Path(name).is_file()
    return [] if there else [f"{name} is not there"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """The folder with the files that pages name, the Hub's cache, and a cache of decompositions for all pages."""
    from tests.docs_files import write_hub, write_inputs

    root = tmp_path_factory.mktemp("docs")
    (root / "files").mkdir()
    write_inputs(root / "files")
    write_hub(root / "hub")
    return root


@pytest.fixture
def checker(inputs, tmp_path, monkeypatch, capsys):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(inputs / "hub"))
    monkeypatch.setenv("HF_HUB_CACHE", str(inputs / "hub"))  # of the processes that a command starts
    monkeypatch.setenv("LORAPORT_CACHE", str(inputs / "cache"))
    folder = tmp_path / "page"
    shutil.copytree(inputs / "files", folder, copy_function=os.link)
    return Checker(folder, capsys, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_of_a_page_works(page, checker):
    if page.name == TUTORIAL:
        shutil.rmtree(checker.folder)
        checker.folder.mkdir()
        (checker.folder / "make_files.py").touch()  # the page's program, which is run as it stands
    assert checker.faults(page.read_text(encoding="utf-8")) == []


def all_lines() -> list[str]:
    """Every command line of every page."""
    blocks = [block for page in PAGES for block in code_blocks(page.read_text(encoding="utf-8"))]
    return [line for language, code in blocks if language == "sh" for line in command_lines(code)]


def test_few_commands_are_only_parsed():
    kinds = [check_kind(shlex.split(line)) for line in all_lines()]
    assert kinds.count("run") > 40 and kinds.count("parsed") <= 13 and kinds.count("dry") <= 14
    for start in PARSED:
        assert any(line.startswith(start) for line in all_lines()), f"{start} is in no page: take it off the list"


def test_commands_stand_in_blocks_that_are_checked():
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        outside = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
        assert not re.search(r"^ {4,}(loraport|make|pip) ", outside, re.MULTILINE), page
        for language, code in code_blocks(text):
            shown = language != "sh" and "[OPTIONS]" not in code  # usage lines are no commands
            assert not (shown and re.search(r"^(loraport|make|pip) ", code, re.MULTILINE)), page


WRONG = {
    "an option that is not there": "loraport inspect style.safetensors --sauce",
    "a value that is not one": "loraport transfer style.safetensors --source wan --target wan -o x --dtype fp33",
    "a file that is not there": "loraport inspect stile.safetensors",
    "a method that is not there": "loraport transfer style.safetensors --source wan --target wan -o x --method cassa",
    "an option of what is only parsed": "loraport demo --stile noir",
    "a value of what is only parsed": "loraport demo --clips many",
    "a command that is not there": "loraport transmogrify style.safetensors",
    "a target of make": "make coffee",
    "an extra": "pip install '.[everything]'",
    "a module": "python -m benchmarks.coffee",
}


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG)
def test_a_wrong_line_is_a_fault(line, checker):
    assert len(checker.faults(f"# Page\n\n```sh\n{line}\n```\n")) == 1


def test_a_wrong_program_is_a_fault(checker):
    assert checker.faults("```python\nimport loraport\n\nloraport.transfers()\n```\n") != []
