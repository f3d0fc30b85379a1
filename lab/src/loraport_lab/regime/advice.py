"""Fit the advice of `loraport diagnose` to the map, and measure what it loses on bases that it was not fitted to.

`python -m loraport_lab.regime.advice lab/results/map/map.csv` writes the file of the program that holds both.

The rule looks at two things: whether the drift is an accelerator's, and how much of it sits in the head.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Any

from loraport.diagnosis.rule.advice import SAFE, Thresholds, verdict_of
from loraport.diagnosis.rule.measured_map import DATA, TOLERANCE
from loraport.files.disk.atomic import write_whole
from loraport.plain_json import json_text
from loraport.reports.rendering import csv_text
from loraport_lab.regime.points import shipped_base
from loraport_lab.regime.summary import MINUS
from loraport_lab.regime.table import HERE, Line, as_a_file, read_lines
from loraport_lab.training.recipe import SHIPPED

RULES = ("direct", "casa", SAFE, "arbitrate-only")
"""What can be done with weights alone; a regret is measured against the best of them in the cell."""
_STATISTICS = ("drift", "rho2", "lora", "head_drift", "cosine", "kept")
_ENOUGH = 2 / 3
"""Share of a student's LoRAs that the safe rule must not leave behind direct reuse; below it nothing is advised."""


@dataclass(frozen=True)
class MapPoint:
    """One LoRA on one student: what the weights say, and what each rule was worth."""

    line: Line
    gains: Mapping[str, float]
    """Change of fidelity against direct reuse, in dB."""
    effects: Mapping[str, float]

    @property
    def head(self) -> float:
        """Share of the drift's energy in the first tenth of the base's directions."""
        return self.line.statistics["head_drift"]

    @property
    def accelerated(self) -> bool:
        """Whether the student is the base with a LoRA."""
        return self.line.student == "accelerator"

    @property
    def student(self) -> tuple[object, ...]:
        """What tells students apart: the LoRAs on one share its drift."""
        return self.line.distilled

    @property
    def shipped(self) -> bool:
        """Whether it is a pair of the family that comes with the program."""
        line, base = self.line, shipped_base()
        schedule = SHIPPED.last_schedule(line.student)
        same_base = (line.where, line.width, line.base_steps, line.seed) == (HERE, base.width, base.steps, base.seed)
        return same_base and line.usual and (line.rate, line.steps) == (schedule.rate, schedule.steps)

    def within(self, rule: str) -> bool:
        """Return whether a rule is as good as the best one, but for a difference that counts as none."""
        return max(self.gains.values()) - self.gains[rule] <= TOLERANCE


def points_of_map(lines: Sequence[Line]) -> list[MapPoint]:
    """Return the points of the map at which all rules were measured, at the rank of a file where that is known."""
    rows = {rule: {line.cell: line for line in as_a_file(lines, rule)} for rule in RULES}
    found = []
    for cell, direct in rows["direct"].items():
        own = {rule: row[cell] for rule, row in rows.items() if cell in row}
        gains = {rule: line.fidelity.value for rule, line in own.items() if line.fidelity is not None}
        if len(gains) == len(RULES):
            effects = {rule: line.effect.value for rule, line in own.items() if line.effect is not None}
            found.append(MapPoint(direct, gains, effects))
    return found


def fit(points: Sequence[MapPoint]) -> Thresholds:
    """Return the rule's thresholds: the fewest dB lost against the best rule, every base counting the same."""
    plain = [point for point in points if not point.accelerated]
    beside = [point for point in points if point.accelerated]
    accelerated = min(RULES[:3], key=lambda rule: mean_regret(beside, lambda _: rule)) if beside else SAFE
    heads = sorted({point.head for point in plain})
    cuts = [(low + high) / 2 for low, high in pairwise(heads)]
    casa = min([inf, *reversed(cuts)], key=lambda cut: mean_regret(plain, partial(_casa_above, cut)))
    return Thresholds(_unsure_from(plain, heads, casa), casa, accelerated)


def _casa_above(cut: float, point: MapPoint) -> str:
    return "casa" if point.head > cut else SAFE


def _unsure_from(points: Sequence[MapPoint], heads: Sequence[float], casa: float) -> float:
    """Return the head share from which the safe rule is not ahead in most pairs, up to where CASA is advised."""
    edge = casa
    below = [head for head in heads if head < casa]
    for place in range(len(below) - 1, -1, -1):
        own = [point for point in points if point.head == below[place]]
        if fmean(point.gains[SAFE] > 0 for point in own) >= _ENOUGH:
            break
        edge = (below[place - 1] + below[place]) / 2 if place else -inf
    return edge


def mean_regret(points: Sequence[MapPoint], rule: Callable[[MapPoint], str]) -> float:
    """Return the mean regret, every base counting the same."""
    return fmean(fmean(_regret(point, rule(point)) for point in own) for own in _by_base(points).values())


def _regret(point: MapPoint, rule: str) -> float:
    return max(point.gains.values()) - point.gains[rule]


def _by_base(points: Iterable[MapPoint]) -> dict[object, list[MapPoint]]:
    found: dict[object, list[MapPoint]] = {}
    for point in points:
        found.setdefault(point.line.base, []).append(point)
    return found


def told_by_others(points: Sequence[MapPoint]) -> list[tuple[MapPoint, str]]:
    """Return each point with the verdict of the rule that was fitted to the other bases alone."""
    told = []
    for base, own in _by_base(points).items():
        thresholds = fit([point for point in points if point.line.base != base])
        told += [(point, verdict_of(point.accelerated, point.head, thresholds)) for point in own]
    return told


def sureness(told: Sequence[tuple[MapPoint, str]]) -> dict[str, float]:
    """Return for each verdict how often what it does is as good as the best rule, on bases not fitted to.

    A student counts once, whatever the number of its LoRAs, and one success and one failure are added (Laplace): of
    few students nothing is sure.
    """
    shares: dict[str, dict[object, list[bool]]] = {}
    for point, verdict in told:
        shares.setdefault(verdict, {}).setdefault(point.student, []).append(point.within(done(verdict)))
    return {
        verdict: (1 + sum(fmean(each) for each in students.values())) / (2 + len(students))
        for verdict, students in shares.items()
    }


def done(verdict: str) -> str:
    """Return the rule that is used where a verdict is followed without sampling."""
    return SAFE if verdict == "choose" else verdict


def regret_rows(told: Sequence[tuple[MapPoint, str]]) -> list[dict[str, Any]]:
    """Return what the advice and every fixed rule lose: over all cells, over the shipped family's, and at worst."""
    points = [point for point, _ in told]
    advised = {id(point): done(verdict) for point, verdict in told}
    rules: dict[str, Callable[[MapPoint], str]] = {"advice": lambda point: advised[id(point)]}
    rules |= {rule: partial(_always, rule) for rule in RULES}
    return [{"rule": name, **_losses(points, rule)} for name, rule in rules.items()]


def _always(rule: str, _: MapPoint) -> str:
    return rule


def _losses(points: Sequence[MapPoint], rule: Callable[[MapPoint], str]) -> dict[str, Any]:
    lost = [_regret(point, rule(point)) for point in points]
    shipped = [point for point in points if point.shipped]
    return {
        "cells": len(points),
        "regret": round(fmean(lost), 3),
        "bases": round(mean_regret(points, rule), 3),
        "worst": round(max(lost), 2),
        "shipped": round(fmean(_regret(point, rule(point)) for point in shipped), 3) if shipped else None,
        "shipped_cells": len(shipped),
        "gain": round(fmean(point.gains[rule(point)] for point in points), 3),
        "worse": sum(point.gains[rule(point)] < -TOLERANCE for point in points),
        "effect": round(fmean(point.effects[rule(point)] for point in points), 2),
        "worst_effect": round(min(point.effects[rule(point)] for point in points), 1),
    }


def advice_json(points: Sequence[MapPoint]) -> dict[str, Any]:
    """Return what the program ships: the rule, how sure it is, what it loses, and the cells."""
    told = told_by_others(points)
    thresholds = fit(points)
    as_they_are = sum(point.within("direct") for point in points) / len(points)
    return {
        "made_by": "python -m loraport_lab.regime.advice lab/results/map/map.csv",
        "thresholds": {
            "unsure": round(thresholds.unsure, 4),
            "casa": round(thresholds.casa, 4),
            "accelerated": thresholds.accelerated,
        },
        "sure": {verdict: round(share, 2) for verdict, share in sorted(sureness(told).items())},
        "direct_is_best": round(as_they_are, 2),
        "regret": regret_rows(told),
        "cells": [_cell(point) for point in points],
    }


def _cell(point: MapPoint) -> dict[str, Any]:
    line = point.line
    return {
        "name": f"{line.student}/{line.adapter}{lora_words(line)}",
        "where": line.where,
        "width": line.width,
        "accelerated": point.accelerated,
        **{name: line.statistics.get(name) for name in _STATISTICS},
        "gains": {rule: round(gain, 3) for rule, gain in point.gains.items()},
    }


def lora_words(line: Line) -> str:
    """Return what is unusual of a cell's LoRA, in words; "" where nothing is."""
    at = f" at {line.strength:g}" if line.strength != 1 else ""
    return at + (f" trained {line.lora_length} times as long" if line.lora_length != 1 else "")


def advice_csv(points: Sequence[MapPoint]) -> bytes:
    """Return the regrets as a table for people."""
    shipped = next(row["shipped_cells"] for row in regret_rows(told_by_others(points)))
    heads = [
        "rule", f"all {len(points)} pairs, dB", "every base alike, dB", "worst pair, dB",
        f"the {shipped} of this repository, dB", "pairs worse than direct", "gain on the mean, dB", "effect, points",
        "worst effect",
    ]  # fmt: skip
    lines = [heads]
    for row in regret_rows(told_by_others(points)):
        name = "diagnose" if row["rule"] == "advice" else f"always {row['rule']}"
        numbers = [
            f"{row['regret']:.3f}", f"{row['bases']:.3f}", f"{row['worst']:.2f}", f"{row['shipped']:.3f}",
            str(row["worse"]), f"{row['gain']:+.2f}", f"{row['effect']:+.1f}", f"{row['worst_effect']:+.1f}",
        ]  # fmt: skip
        lines.append([name, *(number.replace("-", MINUS) for number in numbers)])
    return csv_text(lines[0], lines[1:]).encode()


def ship() -> None:
    """Write the program's file from a map, and the table of regrets beside the map."""
    parser = argparse.ArgumentParser(prog="python -m loraport_lab.regime.advice", description=__doc__)
    parser.add_argument("map", type=Path, metavar="CSV", help="the map's table")
    parser.add_argument("--out", type=Path, default=DATA, metavar="JSON", help="the program's own file unless given")
    arguments = parser.parse_args()
    points = points_of_map(read_lines(arguments.map))
    write_whole(arguments.out, (json_text(advice_json(points), indent=1, ensure_ascii=False) + "\n").encode())
    write_whole(arguments.map.with_name("map-advice.csv"), advice_csv(points))


if __name__ == "__main__":
    ship()
