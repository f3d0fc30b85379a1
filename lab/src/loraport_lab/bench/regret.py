"""What one loses by using the same rule in every cell, or the one that is advised: the regret."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from loraport.diagnosis.rule.advice import CHOOSE, SAFE, Thresholds, verdict_of
from loraport.diagnosis.rule.measured_map import measured_map
from loraport.sampling.statistics import Interval, mean_interval
from loraport_lab.bench.run import CellResult

Advice = Callable[[CellResult], str]
"""The name of the row that is advised for a cell."""

ROWS = {SAFE: "undo"}
"""The lab's name of a rule, where it has one of its own."""


def advised(cell: CellResult) -> str:
    """Return the row of what `loraport diagnose` advises by the weights; the safe rule where it would sample."""
    head = float(cell.premises["head_drift"].nanmean())
    verdict = verdict_of(cell.cell.student.accelerator, head, Thresholds(**measured_map().thresholds))
    rule = SAFE if verdict == CHOOSE else verdict
    return ROWS.get(rule, rule)


@dataclass(frozen=True)
class Regret:
    """How far a rule stays behind the best fixed rule of each cell, in one measure."""

    rule: str
    measure: str
    all_cells: Interval
    discriminating: Interval | None
    """Over the cells that can tell rules apart; None where there is none."""
    worst: float
    worst_cell: str


def regrets(cells: Sequence[CellResult], measure: str, advice: Advice = advised) -> list[Regret]:
    """Return the regret of what is advised, then of every fixed rule, the smallest first."""
    found = [_regret(f"advised ({_words(cells, advice)})", cells, measure, advice)]
    fixed = [_regret(rule, cells, measure, always(rule)) for rule in fixed_rules(cells)]
    return [*found, *sorted(fixed, key=lambda regret: regret.all_cells.value)]


def always(rule: str) -> Advice:
    """Return the advice that is the same for every cell."""
    return lambda cell: rule


def _words(cells: Sequence[CellResult], advice: Advice) -> str:
    names = list(dict.fromkeys(map(advice, cells)))
    return names[0] + " everywhere" if len(names) == 1 else f"{len(names)} rules"


def fixed_rules(cells: Sequence[CellResult]) -> list[str]:
    """Return the rows that one could use everywhere: rules on weights alone, nothing sampled, nothing trained."""
    return [
        name
        for name, row in cells[0].rows.items()
        if (row.group in ("method", "control") or name in ("direct", "full undo")) and row.facts["chosen"] is None
    ]


def _regret(name: str, cells: Sequence[CellResult], measure: str, advice: Advice) -> Regret:
    lost = [best_on_other_half(cell, measure) - cell.rows[advice(cell)].values[measure].double() for cell in cells]
    telling = [values for cell, values in zip(cells, lost, strict=True) if cell.admission.discriminating]
    means = [float(values.mean()) for values in lost]
    worst = max(range(len(cells)), key=means.__getitem__)
    prompts = cells[0].prompts  # of all cells: they see the same clips, whose losses are added up
    return Regret(
        name,
        measure,
        mean_interval(torch.stack(lost).mean(0), prompts),
        mean_interval(torch.stack(telling).mean(0), prompts) if telling else None,
        means[worst],
        cells[worst].cell.name,
    )


def best_on_other_half(cell: CellResult, measure: str) -> Tensor:
    """Return for each clip the value of the fixed rule that is best on the clips of the other half of the prompts.

    The best of many rules on the same clips would owe a part of its lead to luck, and every rule would seem to regret
    that. So a regret can be below zero by chance, for the best rule half of the time.
    """
    prompts = list(dict.fromkeys(cell.prompts))
    half = torch.tensor([prompts.index(prompt) % 2 == 0 for prompt in cell.prompts])
    values = {rule: cell.rows[rule].values[measure].double() for rule in fixed_rules([cell])}
    found = torch.empty(len(half), dtype=torch.float64)
    for mine in (half, ~half):
        other = ~mine if bool((~mine).any()) else mine
        best = max(values, key=lambda rule: float(values[rule][other].mean()))
        found[mine] = values[best][mine]
    return found
