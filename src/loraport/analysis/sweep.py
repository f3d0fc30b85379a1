"""Apply CASA over grids of its settings, the bases made once, and report weight statistics for every point."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from typing import Any

from loraport.analysis.inputs import AnalysisInputs, AnalyzeConfig, choose_layers
from loraport.analysis.results import SweepResult
from loraport.compute import layer_generator
from loraport.errors import SettingsError, unknown_name
from loraport.estimates.layer_cost import layer_weight
from loraport.files.names.blocks import layer_depth, layer_kind
from loraport.inputs.plan import LayerJob
from loraport.inputs.rank import common_rank
from loraport.methods.casa import decide, decided_update
from loraport.methods.layer import Layer
from loraport.methods.settings import CasaSettings
from loraport.progress import NO_PROGRESS, Progress, counter
from loraport.spectral.kernels import norm
from loraport.transfers.journal import PartialFolder

KNOBS = ("tau", "q_dom", "q_act", "energy", "restore")
SWEEPING = "sweeping"
MOST_POINTS = 1000
"""Of one grid; more are almost certainly a typing error."""


@dataclass(frozen=True)
class Grid:
    """Values of one or more settings; every combination is a point."""

    values: Mapping[str, tuple[float, ...]]

    @classmethod
    def parse(cls, text: str) -> Grid:
        """Read `q_dom=0.3:0.7:0.05` (from, to, step, both ends included), `tau=0.5/1/2`, several joined by commas.

        Raises SettingsError for an unknown setting, or values that cannot be read.
        """
        values: dict[str, tuple[float, ...]] = {}
        for part in text.split(","):
            name, equals, listed = (piece.strip() for piece in part.partition("="))
            name = name.replace("-", "_")
            if name not in KNOBS:
                raise unknown_name("setting to sweep", name, KNOBS)
            if not equals or name in values:
                raise SettingsError(f"sweep {text!r}: write each setting once, as {name}=0.3:0.7:0.05 or {name}=0.5/1")
            values[name] = _values(listed)
        grid = cls(values)
        if len(grid.points()) > MOST_POINTS:
            raise SettingsError(f"sweep {text!r} has {len(grid.points())} points; {MOST_POINTS} at most")
        return grid

    def points(self) -> list[dict[str, float]]:
        """Return every combination, the last setting running fastest."""
        return [dict(zip(self.values, point, strict=True)) for point in itertools.product(*self.values.values())]

    def settings(self, start: CasaSettings) -> list[tuple[dict[str, float], CasaSettings]]:
        """Return each point with the settings it makes of the others. Raises SettingsError for a value out of range."""
        chosen = []
        for point in self.points():
            changes: dict[str, Any] = dict(point)
            if "energy" in changes:
                changes["energy_rectangular"] = changes["energy"]
            chosen.append((point, replace(start, **changes)))
        return chosen


def sweep(config: AnalyzeConfig, grids: Sequence[Grid], *, progress: Progress = NO_PROGRESS) -> tuple[SweepResult, ...]:
    """Apply CASA at every point of each grid to every chosen layer; an interrupted sweep resumes.

    Each row has the layer, the point, the shares restored and arbitrated, what the written rank (twice the LoRA's)
    keeps, and the distance of the effective routing to that of source + LoRA, over ‖D_lora‖: before truncation
    (`distance`: ‖W_t + D' − W_s − D_lora‖ / ‖D_lora‖) and as written (`distance_written`).
    """
    inputs = AnalysisInputs.open(config)
    jobs, _ = choose_layers(inputs.prepared, config)
    with PartialFolder(Path(config.output), inputs.identity(config)) as partial:
        return run_sweeps(inputs, config, jobs, grids, partial, progress)


def run_sweeps(
    inputs: AnalysisInputs,
    config: AnalyzeConfig,
    jobs: Sequence[LayerJob],
    grids: Sequence[Grid],
    partial: PartialFolder,
    progress: Progress,
) -> tuple[SweepResult, ...]:
    """Return the rows of every grid, layer by layer, those of an earlier start read back.

    A layer whose drift is within rounding has none: a transfer copies the LoRA there, at every point.
    """
    points = [grid.settings(config.casa) for grid in grids]
    rank = common_rank(inputs.prepared.config, inputs.prepared.plan)
    rows: dict[str, list[list[dict[str, Any]]]] = {}
    mark = f"sweep {[grid.values for grid in grids]}"
    for job in jobs:
        earlier = partial.get(f"{mark} {job.name}")
        if earlier is not None:
            rows[job.name] = earlier.facts["grids"]
    todo = [job for job in jobs if job.name not in rows]
    weights_of_bar = {job.name: layer_weight(job, inputs.prepared.config.recipe) for job in jobs}
    done = sum(weights_of_bar[name] for name in rows)
    report = counter(progress, SWEEPING, sum(weights_of_bar.values()), done)
    for job, weights in inputs.weights(todo, target=False):
        layer = None if weights.is_rounding else inputs.layer(job, weights)
        grid_rows = [[] if layer is None else list(layer_rows(layer, job, of_grid, rank)) for of_grid in points]
        partial.put(f"{mark} {job.name}", {}, {"grids": grid_rows})
        rows[job.name] = grid_rows
        report(weights_of_bar[job.name])
    return tuple(
        SweepResult(tuple(grid.values), tuple(row for job in jobs for row in rows[job.name][number]))
        for number, grid in enumerate(grids)
    )


def layer_rows(
    layer: Layer, job: LayerJob, points: Sequence[tuple[dict[str, float], CasaSettings]], rank: int
) -> Iterator[dict[str, Any]]:
    """Yield a row for each point, truncated in coordinates of the basis where that is cheaper, as a transfer is."""
    upright = layer if layer.drift.shape[0] >= layer.drift.shape[1] else layer.transposed()
    size = layer.lora.norm()
    for point, settings in points:
        decisions = decide(upright, settings)
        update = decided_update(upright, decisions, settings)
        dense = update.dense()
        written = update.factorized(min(rank, *dense.shape), layer_generator(0, job.name))
        off = upright.drift - upright.lora.dense()
        facts = decisions.facts(settings)
        yield {
            "layer": job.name, "kind": layer_kind(job.name), "depth": layer_depth(job.name), **point,
            "k": facts["k"], "clusters": facts["clusters"], "largest_cluster": facts["largest_cluster"],
            "restored": facts["restored"],
            "arbitrated": float(decisions.arbitrated.double().mean()),
            "kept_energy": 1 - written.lost_energy, "kept_correction": update.kept_correction(written),
            "distance": norm(dense + off) / size if size else None,
            "distance_written": norm(written.dense() + off) / size if size else None,
            "update": norm(dense) / size if size else None,
        }  # fmt: skip


def _values(text: str) -> tuple[float, ...]:
    """Return the values of `a:b:step` or `a/b/c`; decimal steps are exact, so that 0.3:0.7:0.05 ends at 0.7."""
    try:
        if ":" not in text:
            return tuple(float(one) for one in text.split("/"))
        first, last, step = (Decimal(one) for one in text.split(":"))
        if step <= 0 or last < first or not (last - first).is_finite():
            raise ValueError
        count = int((last - first) / step) + 1
        return tuple(float(first + i * step) for i in range(min(count, MOST_POINTS + 1)))
    except (ValueError, InvalidOperation):
        raise SettingsError(f"{text!r} is not a list of values: write 0.3:0.7:0.05 (from:to:step) or 0.5/1/2") from None
