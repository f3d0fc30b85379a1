"""What a file or a name holds is shown and never obeyed."""

import io
import json

import pytest

from loraport.console import Terminal, print_facts
from loraport.printable import PrintableStream, printable, protect, raw_stream


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[31mred\x07", "\\x1b[31mred\\x07"),
        ("\x9b2J", "\\x9b2J"),
        ("gpj.\u202eexe", "gpj.\\u202eexe"),
        ("back\rover", "back\\x0dover"),
        ("two\nlines\tand Ünïcode – 模型", "two\nlines\tand Ünïcode – 模型"),
    ],
)
def test_control_characters_are_written_out_and_nothing_else(text, shown):
    assert printable(text) == shown.replace("\\x0d", "\\r")


def test_streams_show_what_they_are_given_and_hide_nothing(monkeypatch, capsys):
    under = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    monkeypatch.setattr("sys.stdout", under)
    protect()
    protect()
    import sys

    assert isinstance(sys.stdout, PrintableStream) and raw_stream(sys.stdout) is under
    print("\x1b[2J", "name-\udcff")
    print_facts({"name": "\udcff\x1b"}, json=True)
    under.flush()
    first, rest = under.buffer.getvalue().decode().split("\n", 1)
    assert first == "\\x1b[2J name-\\udcff"
    assert json.loads(rest) == {"name": "\udcff\x1b"}


def test_the_words_of_a_run_are_printable_too(monkeypatch):
    under = io.StringIO()
    monkeypatch.setattr("sys.stderr", PrintableStream(under))
    with Terminal(verbose=True) as terminal:
        terminal.note("\x1b]0;title\x07")
        terminal.advance("\x1b[1m", 0, 2)
    assert "\x1b]" not in under.getvalue() and "\\x1b]0;title\\x07" in under.getvalue()
