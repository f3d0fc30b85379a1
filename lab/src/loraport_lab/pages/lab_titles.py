"""The lab's tables by name, in their order: headings and what to know of each, for the page and the documentation."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Title:
    """A heading and what stands below it."""

    title: str
    words: str
    numbers: bool = True
    """Whether the lines are numbers, which stay on one line."""
    part: str = ""
    """A heading above it and those that follow."""


SURE = (
    "In brackets: the 95 % interval holds zero. With an asterisk: sure even though the whole table is looked at "
    "(Holm's correction over all its rows and cells, 5 %)."
)
TITLES = {
    "cells": Title(
        "Cells and their admission",
        "Differences over their standard errors, in fidelity. Cells that can tell methods apart are discriminating.",
        numbers=False,
    ),
    "premises": Title(
        "What the method supposes",
        "Means over the adapted layers: the drift and the adapter as shares of the weight's norm, ρ₂ of the drift "
        "(Eq. 1), the energy that each sends from the first tenth of all directions, clusters and the largest of them "
        "as shares of the leading directions, which part of all entries CASA restores and arbitrates, and how much of "
        "its correction survives truncation to twice the adapter's rank.",
    ),
    "rows": Title(
        "All rows",
        "Gaps over the discriminating cells but the tuned one; changes against direct reuse over all cells. Better and "
        "worse count cells whose 95 % interval excludes zero, in brackets those that remain after Holm's correction.",
    ),
    "ablation": Title(
        "The paper's Table 2: CASA and its parts",
        "Fidelity (dB) / effect / content (points), means over each student's adapters and over all cells; then the "
        "change against direct reuse over all cells with its 95 % interval. The last two rows are ablations that the "
        "paper lacks: every direction by itself, and no dominance (nothing restored, everything may be arbitrated).",
    ),
    "methods": Title(
        "The paper's Table 3: methods",
        "The same for the methods that the paper compares, and for the adapter trained on the student.",
    ),
    "fidelity": Title("Fidelity against direct reuse, dB", f"Discriminating cells come first. {SURE}"),
    "effect": Title("Effect against direct reuse, points", SURE),
    "content": Title("Content against direct reuse, points", SURE),
    "regret": Title(
        "What a fixed rule costs",
        "Regret: how far a rule stays behind the best fixed rule of each cell, which is found on the other half of the "
        "prompts; mean over cells with its 95 % interval, over the discriminating ones alone, and the worst cell. "
        "Below zero is chance. The first line of each measure is what `loraport diagnose` advises by the weights, the "
        "safe rule where it would sample; its thresholds were fitted to a map that holds the shipped family.",
    ),
    "ranks": Title(
        "CASA at several ranks",
        "Fidelity (dB) and effect (points) against direct reuse on the cells of the studies; source is the adapter's "
        "own rank, full is not truncated. In brackets: the 95 % interval holds zero.",
        part="Studies on a few cells",
    ),
    "dials": Title(
        "The paper's Fig. 8: CASA's dials",
        "One dial at a time, the others at the paper's values, full rank; fidelity (dB) and effect (points) against "
        "direct reuse. In brackets: the 95 % interval holds zero.",
    ),
    "partly-distilled": Title(
        "The paper's Tables 5–6: partly distilled students",
        "Students that keep only the drift of dominant clusters; fidelity (dB) and content (points). "
        "`dominant only q`: our variant with the adapter on, against direct reuse; the complement and the tail of the "
        "drift stay, so 0 is the student itself. `bare, as printed`: the appendix's equations, no adapter anywhere, "
        "against the bare student; fidelity is then to the base without adapter. In brackets: the 95 % interval holds "
        "zero.",
    ),
    "disturbed": Title(
        "The paper's Fig. 14: disturbed students",
        "Fidelity (dB), content (points) and flicker (points of the reference's). `peaks`: our variant with the "
        "adapter on, the strongest twentieth of the drift's routing multiplied, against direct reuse. `bare`: noise on "
        "the densest twentieth of the blocks, as the appendix prints it and in units of the block, against the bare "
        "student. In brackets: the 95 % interval holds zero.",
    ),
    "calibration": Title(
        "Calibration, before and after",
        "Direct reuse's fidelity (dB) / effect / content (points), and the changes against it; in brackets: the "
        "interval holds zero. End error as a share of direct reuse's, of the oracle / gains / gains and readout; gap "
        "closed by the latter in fidelity / effect. Then what the guard kept, and what --method auto chose without and "
        "with a calibrated candidate.",
        numbers=False,
        part="Calibration, guard and score",
    ),
    "harm": Title(
        "Does the guard keep from harm?",
        "Cells that are surely better / surely worse than direct reuse (95 % interval over clips that no fit and no "
        "guard saw); of twenty intervals without a difference one is expected to exclude zero.",
        numbers=False,
    ),
    "controls": Title(
        "Controls, clips, strengths, stacks",
        "Changes of fidelity (dB) / effect / content (points) against direct reuse in the same use, and the end error "
        "as a share of direct reuse's.",
        numbers=False,
    ),
    "agreement": Title(
        "Does the end error rank rows as other measures do?",
        "Spearman's correlation of the end error with each measure over the rows of a cell (methods, controls, fitted "
        "rows; without the frame's extremes), mean over the cells where it is measured and the lowest; over rows "
        "within 1 dB of direct reuse alone; and of the rows that a measure calls surely better or worse than direct "
        "reuse, how many the end error puts on the same side.",
    ),
    "agreement-by-cell": Title(
        "The same, cell by cell",
        "Every cell in which end errors were measured, those of the studies without fitted rows among them: how many "
        "rows were compared and how many of them are fitted, the rank correlation with each measure, and the rows on "
        "the same side. In the last line the means, and the sums.",
    ),
}
"""{a table's name, which is that of its file: its heading}."""
