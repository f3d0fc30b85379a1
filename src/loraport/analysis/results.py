"""What an analysis gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from loraport.analysis.survey import Survey


@dataclass(frozen=True)
class LayerView:
    """One layer's row: where it lies and every number; `docs/reference/analysis.md` says what each is."""

    name: str
    kind: str
    depth: int | None
    shape: tuple[int, int]
    rank: int
    numbers: Mapping[str, float | int | None]
    seconds: float = 0.0

    @property
    def interference(self) -> float | None:
        """How much LoRA and drift meet in this layer: (constructive + destructive) · ‖D_lora‖·‖D_fft‖ / ‖W_s‖²."""
        parts = [self.numbers[name] for name in ("constructive", "destructive", "lora", "drift")]
        if any(part is None for part in parts):
            return None
        constructive, destructive, lora, drift = (float(part or 0) for part in parts)
        return (constructive + destructive) * lora * drift

    def row(self) -> dict[str, Any]:
        """Return the tidy table's row."""
        out, inn = self.shape
        start = {"layer": self.name, "kind": self.kind, "depth": self.depth, "out": out, "in": inn, "rank": self.rank}
        return {**start, **self.numbers, "interference": self.interference, "seconds": self.seconds}


@dataclass(frozen=True)
class SweepResult:
    """CASA over a grid of settings: a row for each layer and point of the grid."""

    knobs: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]

    def table(self) -> list[dict[str, Any]]:
        """Return the rows, each with the name of its grid."""
        return [{"sweep": ",".join(self.knobs), **row} for row in self.rows]

    def as_json(self) -> dict[str, Any]:
        """Return what analysis.json holds of it."""
        return {"knobs": list(self.knobs), "rows": [dict(row) for row in self.rows]}


@dataclass(frozen=True)
class Analysis:
    """A finished analysis."""

    facts: Mapping[str, Any]
    """What was compared, by which settings."""
    layers: tuple[LayerView, ...]
    survey: Survey
    curves: Mapping[str, Mapping[str, Tensor]]
    """Of the detailed layers: what their figures draw."""
    left_out: tuple[tuple[str, str], ...]
    """Layers of the LoRA that were not looked at, each with the reason."""
    notes: tuple[str, ...] = ()
    seconds: float = 0.0
    peak_rss_bytes: int = 0
    sweeps: tuple[SweepResult, ...] = ()
    device: str = "cpu"
    """What it was computed on."""

    def as_json(self) -> dict[str, Any]:
        """Return all numbers, without the curves."""
        return {
            **self.facts,
            "survey": self.survey.as_json(),
            "layers": [layer.row() for layer in self.layers],
            "left_out": [list(pair) for pair in self.left_out],
            "notes": list(self.notes),
            "sweeps": [sweep.as_json() for sweep in self.sweeps],
            "seconds": self.seconds,
            "peak_rss_bytes": self.peak_rss_bytes,
        }
