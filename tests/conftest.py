"""Fixtures that tests of several rooms use."""

import sys

import pytest

from loraport.cli import main


@pytest.fixture
def run(monkeypatch, capsys):
    """Run `loraport ...` in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["loraport", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            main()
        out, err = capsys.readouterr()
        return stop.value.code or 0, out, err

    return call
