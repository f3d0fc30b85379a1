"""Counts of better and worse pairs that the README and the findings quote are those of the lab's tables."""

import csv
import re
from pathlib import Path

import pytest

pytest.importorskip("diffusers")
pytest.importorskip("peft")

from loraport_lab.regime.table import HERE, as_a_file, read_lines

ROOT = Path(__file__).parents[3]
RESULTS = ROOT / "lab" / "results"
ROWS = {"undo:0.25": "undo", "undo-orthogonal:0.25": "undo-orthogonal", "trained on the student": "oracle"}
ROWS |= {"ProLoRA": "prolora", "a LoRA trained on the student": "oracle"}
"""What a table calls a row -> what the lab does."""


def counts(folder: str) -> dict[str, str]:
    with (RESULTS / folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    place = rows[0].index("better / worse")  # the first is fidelity's
    return {row[0]: row[place].split(" (")[0] for row in rows[1:]}


def table(text: str, first: str) -> dict[str, list[str]]:
    """The cells of the Markdown table whose head begins so, by the name in its first column."""
    lines = text[text.index(f"| {first}") :].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2 : lines.index("")]]
    return {row[0].split(" (")[0].strip("`"): row[1:] for row in rows}


def test_the_readmes_table_counts_as_the_labs_do():
    first, here, second = counts("first-family"), counts("."), counts("second-family")
    wide = [line for line in read_lines(RESULTS / "map" / "map.csv") if line.width == 640]
    shown = table((ROOT / "README.md").read_text(encoding="utf-8"), "method | what it does")
    assert len(shown) == 6
    for method, (_, of_first, of_both, of_wide) in shown.items():
        if method == "direct":
            continue
        row = ROWS.get(method, method)
        assert of_both == f"{here[row]} and {second[row]}", method
        assert of_first == first.get(row, "–"), method
        lines = as_a_file(wide, row if row == "oracle" else method)
        signs = [line.fidelity.sign for line in lines if line.fidelity is not None]
        assert of_wide.split(" of ")[0] == (f"{signs.count(1)} / {signs.count(-1)}" if signs else "–"), method


def test_the_findings_compare_two_seeds_as_their_tables_do():
    shown = table((ROOT / "docs" / "lab" / "findings.md").read_text(encoding="utf-8"), "fidelity against direct")
    assert len(shown) >= 6
    for method, cells in shown.items():
        row = ROWS.get(method, method)
        for cell, own in zip(cells, (counts("."), counts("second-family")), strict=True):
            assert re.match(r"\d+ / \d+", cell)[0] == own[row], method


def test_what_is_said_of_the_whole_map_is_what_its_table_has():
    usual = [line for line in read_lines(RESULTS / "map" / "map.csv") if line.usual]
    found = {}
    for method in ("undo:0.25", "casa", "prolora", "oracle"):
        signs = [line.fidelity.sign for line in as_a_file(usual, method) if line.fidelity is not None]
        found[method] = signs.count(1), signs.count(-1)
    pairs, bases = len(as_a_file(usual, "casa")), len({line.base for line in usual})
    number = {6: "six", 7: "seven", 8: "eight"}[bases]
    (undone, undo_lost), (better, worse), (_, lost), (gained, none) = found.values()
    assert none == found["prolora"][0] == 0
    readme = (
        f"Over {pairs} pairs of {number} tiny bases `undo:0.25` is {undone} / {undo_lost}, `casa` {better} / {worse}:"
    )
    page = (
        f"over all {pairs} pairs it is surely better in {undone} and worse in {undo_lost}, CASA in {better} and "
        f"{worse} (ProLoRA in 0 and {lost}, a LoRA trained on the student in {gained} and 0)"
    )
    for name, sentence in (("README.md", readme), ("docs/explanation/does-it-help.md", page)):
        assert sentence in " ".join((ROOT / name).read_text(encoding="utf-8").split()), name
    narrow = [line for line in usual if line.where == HERE and line.width < 256]
    plain = {line.cell: line for line in as_a_file(narrow, "undo:0.25")}
    ahead = [
        plain[line.cell].fidelity.value - line.fidelity.value for line in as_a_file(narrow, "undo-orthogonal:0.25")
    ]
    assert sum(gain < -0.1 for gain in ahead) == 1
    sentence = f"by more than 0.1 dB in {sum(gain > 0.1 for gain in ahead)} of {len(ahead)} pairs, behind in one"
    assert sentence in " ".join((ROOT / "docs/explanation/does-it-help.md").read_text(encoding="utf-8").split())
    students = len({line.distilled for line in read_lines(RESULTS / "map" / "map.csv")})
    text = " ".join((ROOT / "docs/explanation/does-it-help.md").read_text(encoding="utf-8").split())
    assert f"{students} students of {number} base models, with {pairs} pairs of a student and a LoRA" in text
