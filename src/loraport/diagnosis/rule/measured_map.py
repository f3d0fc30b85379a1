"""The map of measured pairs that ships with the program: its cells, and how well the rule does on bases new to it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import log
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "map.json"
"""Made by the lab (`python -m loraport_lab.regime.advice`); a test holds it to the map's own table."""
TOLERANCE = 0.1
"""Difference in fidelity, in dB, that counts as none: half of the usual 95 % interval of a cell."""


@dataclass(frozen=True)
class MeasuredCell:
    """One LoRA on one student, sampled: what its weights say, and what each rule was worth there."""

    name: str
    where: str
    width: int
    accelerated: bool
    drift: float
    rho2: float
    lora: float
    head_drift: float
    cosine: float | None
    kept: float
    gains: Mapping[str, float]
    """Rule -> change of fidelity against direct reuse, in dB."""

    def as_json(self) -> dict[str, Any]:
        """Return its row in the JSON output."""
        return {"name": self.name, "where": self.where, "width": self.width, "gains": dict(self.gains)}


@dataclass(frozen=True)
class MeasuredMap:
    """All cells, the thresholds fitted to them, and what leaving one base out at a time says of both."""

    cells: tuple[MeasuredCell, ...]
    thresholds: Mapping[str, Any]
    sure: Mapping[str, float]
    direct_is_best: float
    """Share of the cells where the LoRA as it is was as good as the best rule."""
    regret: tuple[Mapping[str, Any], ...]

    def span(self, trait: str) -> tuple[float, float]:
        """Return the least and the largest value of a trait over all cells."""
        values = [_trait(cell, trait) for cell in self.cells]
        return min(values), max(values)

    def as_good_as_best(self, rule: str, *, beyond: float) -> tuple[int, int]:
        """Return in how many pairs with more than this head share a rule was as good as the best, and of how many.

        Pairs beside an accelerator do not count.
        """
        gains = [cell.gains for cell in self.cells if not cell.accelerated and cell.head_drift > beyond]
        return sum(max(own.values()) - own[rule] <= TOLERANCE for own in gains), len(gains)

    def nearest(self, traits: Mapping[str, float], *, accelerated: bool, count: int = 3) -> tuple[MeasuredCell, ...]:
        """Return the cells that are most like a pair: by drift, head share and LoRA over drift, each over its span."""

        def distance(cell: MeasuredCell) -> float:
            total = 0.0
            for name, value in traits.items():
                low, high = self.span(name)
                total += (_scaled(name, value, low, high) - _scaled(name, _trait(cell, name), low, high)) ** 2
            return total + (cell.accelerated != accelerated)

        return tuple(sorted(self.cells, key=distance)[:count])


def _trait(cell: MeasuredCell, name: str) -> float:
    return cell.lora / cell.drift if name == "ratio" else float(getattr(cell, name))


def _scaled(name: str, value: float, low: float, high: float) -> float:
    """Return where a value lies between two others, 0 to 1; sizes by their logarithm."""
    if name == "head_drift":
        return (value - low) / (high - low)
    return (log(max(value, 1e-12)) - log(low)) / (log(high) - log(low))


@lru_cache(maxsize=1)
def measured_map() -> MeasuredMap:
    """Return the map that ships with the program."""
    facts = json.loads(DATA.read_text(encoding="utf-8"))
    cells = tuple(MeasuredCell(**cell) for cell in facts["cells"])
    return MeasuredMap(cells, facts["thresholds"], facts["sure"], facts["direct_is_best"], tuple(facts["regret"]))
