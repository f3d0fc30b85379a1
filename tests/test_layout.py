"""Text in a terminal: nothing wider than it, words whole, and no colours where nobody can see them."""

import io
import os
import pty
import re
import subprocess
import sys

import pytest

from loraport.errors import near_miss, unknown_name
from loraport.files.disk.sizes import size_words
from loraport.layout import facts_lines, styled, table_lines, width_of, wrapped

FACTS = {
    "wrote": "style-fastwan.safetensors",
    "sizes": "of the weights' norm, medians: drift 10.0 %, LoRA 10.0 %, result 11.2 %; cosine of both 83.0 %",
    "taken by": "ComfyUI\ndiffusers, and whoever else reads names that begin with diffusion_model and blocks",
}
TABLE = [["name", "distilled from", "GB"], ["fastwan", "wan2.1-t2v-1.3b", "2.98"], ["wan", "", "57"]]


class Screen(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [40, 80, 120])
def test_facts_fit_and_no_word_is_cut(width):
    lines = ["".join(parts) for parts in facts_lines(FACTS, width)]
    assert all(len(line) <= width for line in lines)
    words = " ".join(f"{name} {text}" for name, text in FACTS.items()).split()
    assert " ".join(lines).split() == words


def test_a_number_keeps_its_percent_sign():
    text = "drift 10.0 %, LoRA 10.0 %, result 11.2 %"
    for width in range(20, 40):
        lines = wrapped(text, width)
        assert not any(line.startswith("%") for line in lines) and " ".join(lines) == text


def test_sizes_are_said_in_three_digits():
    sizes = (812, 80_400, 329_700_000, 12_300_000, 5_680_000_000, 110_000_000_000)
    assert [size_words(size) for size in sizes] == ["812 bytes", "80.4 kB", "330 MB", "12.3 MB", "5.68 GB", "110 GB"]


def test_a_pipe_gets_a_line_of_the_program_as_a_line():
    lines = ["".join(parts) for parts in facts_lines(FACTS, None)]
    assert len(lines) == 4 and lines[1] == f"sizes     {FACTS['sizes']}" and lines[3].startswith(" " * 10 + "diffusers")
    assert wrapped("x " * 200, None) == ["x " * 200] and width_of(io.StringIO()) is None


def test_a_table_fits_or_stands_as_lists():
    assert table_lines(TABLE, 80) == [
        "name     distilled from     GB",
        "fastwan  wan2.1-t2v-1.3b  2.98",
        "wan                         57",
    ]
    assert table_lines(TABLE, 28) == [
        *("name", "  distilled from     GB", "fastwan", "  wan2.1-t2v-1.3b  2.98", "wan", "                     57"),
    ]
    assert table_lines(TABLE, 20) == [
        "fastwan",
        "  distilled from:",
        "      wan2.1-t2v-1.3b",
        "  GB: 2.98",
        "wan",
        "  GB: 57",
    ]
    assert table_lines(TABLE, None) == table_lines(TABLE, 80)


def test_colours_only_where_they_can_be_shown(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert styled("wrong", "error", Screen()) == "\x1b[1;31mwrong\x1b[0m"
    assert styled("wrong", "error", io.StringIO()) == "wrong"
    monkeypatch.setenv("NO_COLOR", "1")
    assert styled("wrong", "error", Screen()) == "wrong"
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setenv("TERM", "dumb")
    assert styled("wrong", "error", Screen()) == "wrong"


def test_an_unknown_name_says_what_was_meant():
    text = str(unknown_name("method", "cassa", ["casa", "undo"]))
    assert text == "unknown method 'cassa'; known: casa, undo; did you mean 'casa'?"
    assert "mean" not in str(unknown_name("method", "zzz", ["casa", "undo"]))
    many = [f"model-{number}" for number in range(30)]
    assert str(unknown_name("preset", "modell-7", many)) == "unknown preset 'modell-7'; did you mean 'model-7'?"
    assert near_miss("CASA", ["casa"]) == "casa"


def on_a_terminal(words, columns, **environment):
    """What a command shows on a terminal so wide: all that it writes, escapes included."""
    main, other = pty.openpty()
    own = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    settings = {**own, "COLUMNS": str(columns), "TERM": "xterm", **environment}
    process = subprocess.Popen([sys.executable, "-m", "loraport", *words], stdout=other, stderr=other, env=settings)
    os.close(other)
    shown = b""
    while True:
        try:
            block = os.read(main, 65536)
        except OSError:
            break
        if not block:
            break
        shown += block
    process.wait(timeout=60)
    os.close(main)
    return shown.decode().replace("\r\n", "\n")


@pytest.mark.slow
@pytest.mark.parametrize("columns", [40, 80])
def test_presets_and_errors_fit_the_terminal(columns):
    listed = on_a_terminal(["presets"], columns, NO_COLOR="1")
    assert "\x1b" not in listed and all(len(line) <= columns for line in listed.splitlines())
    wrong = on_a_terminal(["inspect", "no-such-file-anywhere.safetensors"], columns)
    assert "\x1b[1;31mloraport:\x1b[0m" in wrong and "\x1b" not in on_a_terminal(["inspect", "none"], 80, TERM="dumb")
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", wrong))  # the bar moves the cursor
    assert all(len(line) <= columns for line in lines) and any("no-such-file" in line for line in lines)
