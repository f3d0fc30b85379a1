"""The notebooks run, and show what they print."""

import json
from pathlib import Path

import pytest

from tests.notebooks import executed, written

NOTEBOOKS = sorted((Path(__file__).parents[1] / "examples").glob("*.ipynb"))


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_shows_what_it_prints(path, monkeypatch, tmp_path):
    monkeypatch.setenv("LORAPORT_CACHE", str(tmp_path / "cache"))
    text = path.read_text(encoding="utf-8")
    notebook = json.loads(text)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"]) > 5
    assert written(executed(notebook)) == text, f"run python -m tests.notebooks {path}"


def test_there_is_one_and_another_output_is_seen():
    cell = {"cell_type": "code", "id": "a", "metadata": {}, "source": ["x = 1\n", "print(x)\n", "x + 1"]}
    run = executed({"cells": [cell]})["cells"][0]
    assert run["outputs"][0]["text"] == ["1\n"] and run["outputs"][1]["data"] == {"text/plain": ["2"]}
    with pytest.raises(ZeroDivisionError):
        executed({"cells": [{**cell, "source": ["1 / 0"]}]})
    assert NOTEBOOKS
