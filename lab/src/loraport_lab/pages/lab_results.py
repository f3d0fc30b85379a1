"""The lab's pages of the documentation, which are made from the tables in `lab/results/`."""

import textwrap
from dataclasses import replace
from pathlib import Path

from loraport_lab.pages.lab_titles import TITLES, Title

LINE_WIDTH = 120
FIRST, SECOND = "first-family", "second-family"
"""Folders of tables: those of the family's first edition, and those of another training of the present one."""
FIRST_TITLES = {
    name: replace(title, words=words)
    for name, title, words in (
        ("rows", TITLES["rows"], "Gaps over the discriminating cells but the tuned one; changes against direct reuse."),
        ("fidelity", TITLES["fidelity"], "The first nine cells discriminate. In brackets: the interval holds zero."),
        ("effect", TITLES["effect"], ""),
        ("ranks", TITLES["ranks"], "Fidelity against direct reuse, dB."),
        ("dials", TITLES["dials"], "One dial at a time; fidelity against direct reuse, dB."),
    )
} | {
    "probes": Title("Partly distilled and disturbed students", "Our variants of the paper's probes, the adapter on."),
    "second-family-rows": Title("All rows on a second family", "", part="Another training of the same family"),
    "second-family-calibration": Title("Calibration on a second family", "", numbers=False),
}
"""What is said otherwise of the tables of the first edition, and tables that only it has."""
FIGURES = {"dials": ("dials.svg", "Fidelity and effect of CASA at other values of its dials")}
"""{a table: the figure that stands before it, and what it shows}."""


def results_page(folder: Path) -> str:
    """Return lab/results.md; `folder` is lab/results, whose files it shows."""
    intro = (
        "The numbers behind the [findings](findings.md), as CSV files in `lab/results/` and here as tables; the "
        "[protocol](protocol.md) says how they were measured. `loraport lab run -o results/lab` writes the same files "
        "into `results/lab/tables/`, and `python -m loraport_lab.pages.lab_keep results/lab` takes them over; those of "
        "calibration, guard and score are of a run of their own, with `--calibration` on some cells. The "
        "[first edition of the family](first-family.md), another case, has a page of its own."
    )
    parts = [_head("The lab's tables", intro), *_sections(folder, TITLES, "")]
    if not any((folder / f"{name}.csv").is_file() for name in TITLES):
        parts.append("The present family has not been measured as a whole yet.")
    second = [*_sections(folder, TITLES, SECOND)]
    if second:
        parts += ["## Another training of the same family", *(section.replace("## ", "### ", 1) for section in second)]
    return "\n\n".join(parts) + "\n"


def first_family_page(folder: Path) -> str:
    """Return lab/first-family.md."""
    intro = (
        "The family's first edition was 128 numbers wide, and its students had moved 7 to 28 % of the weights' norm "
        "(ρ₂ 1.5 to 8 %), where the paper's have a ρ₂ of at most 0.3 %. So these tables say what the methods do far "
        "outside of the setting that they are made for. Only its numbers are kept; it was measured in November 2026, "
        "with 48 clips a row, by the [protocol](protocol.md) of that time: a bootstrap over clips, and no correction "
        "for many tests."
    )
    titles = {name: FIRST_TITLES.get(name, TITLES.get(name)) for name in (*TITLES, *FIRST_TITLES)}
    known = {name: title for name, title in titles.items() if title is not None}
    return "\n\n".join([_head("The first family's tables", intro), *_sections(folder, known, FIRST)]) + "\n"


def _head(title: str, intro: str) -> str:
    note = "<!-- Made by `make docs` from the files in lab/results; edit the program instead. -->"
    return f"---\nhide-toc: true\n---\n\n# {title}\n\n{note}\n\n{_wrapped(intro)}"


def _sections(folder: Path, titles: dict[str, Title], inner: str) -> list[str]:
    """Return a section for each table that is there."""
    place = "/".join(filter(None, ("lab/results", inner)))
    found = []
    for name, title in titles.items():
        if not (folder / inner / f"{name}.csv").is_file():
            continue
        lines = [f"## {title.title}"]
        lines += [_wrapped(title.words)] if title.words else []
        figure, words = FIGURES.get(name, ("", ""))
        if figure and (folder / inner / figure).is_file():
            lines.append(f"![{words}](../../{place}/{figure})")
        css = "lab numbers" if title.numbers else "lab"
        options = f":file: ../../{place}/{name}.csv\n:class: {css}\n:header-rows: 1\n:stub-columns: 1"
        found.append("\n\n".join([*lines, f"```{{csv-table}}\n{options}\n```"]))
    return found


def _wrapped(text: str) -> str:
    return textwrap.fill(text, LINE_WIDTH, break_long_words=False, break_on_hyphens=False)
