"""Rows that are fitted by sampling, what the guard and `auto` keep, and controls chosen to prove them wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from torch import Tensor

from loraport.sampling.calibration.run import CalibrationResult, CalibrationSettings, calibrate, cut_back
from loraport.sampling.choice.guard import AUTO_METHODS
from loraport.sampling.hooks import add_updates, scale_updates
from loraport.sampling.samples import SampleStore
from loraport.spectral.low_rank import LowRank
from loraport_lab.bench.material import Cell, Material, adapter_updates
from loraport_lab.bench.rows import AdapterUse, Group, Row, Rule, nothing, transferred
from loraport_lab.family.family import ADAPTERS
from loraport_lab.family.pair import EmbeddedPair

FIT_CLIPS = 16
"""Clips that are fitted to, and as many that decide whether the fit is accepted; the command's default is 32."""
SETTINGS = CalibrationSettings(clips=FIT_CLIPS)
STUDIED_CELLS = (
    *(("one-step", adapter) for adapter in ("noir", "retro", "swing")),
    ("few-step", "neon"),
    ("causal", "noir"),
)
"""Where controls, strengths and stacks are measured too, and clip counts where the student has one step."""
COUNTS = (4, 8, 32, 64)
STRENGTHS = (0.5, 0.75, 1.25)
BESIDE = {"noir": "swing", "retro": "swing", "neon": "swing", "swing": "noir"}
"""The other adapter that one is stacked with: a style with a motion."""
FOREIGN = {"noir": "retro", "retro": "noir", "neon": "retro", "swing": "noir"}
"""The adapter whose gains another gets in the control."""


@dataclass(frozen=True)
class Fit:
    """How a row is fitted: from the adapter, or `bare`, for a control, from nothing at all."""

    settings: CalibrationSettings = SETTINGS
    bare: bool = False


@lru_cache(maxsize=2)
def open_pair(student: str, family: Path) -> EmbeddedPair:
    """Open both models of a cell, once a process."""
    return EmbeddedPair(student, family)


@lru_cache(maxsize=8)
def calibration_on(material: Material, fit: Fit) -> CalibrationResult:
    """Calibrate on a cell; readout after gains starts from the row that has gains alone."""
    settings, start = fit.settings, {} if fit.bare else dict(material.adapter)
    if settings.rank == "source":
        whole = calibration_on(material, replace(fit, settings=replace(settings, rank="auto")))
        return replace(whole, updates=cut_back(whole.updates, start, settings))
    gains = None
    if settings.readout and settings.gains != "none" and start:
        first = calibration_on(material, replace(fit, settings=replace(settings, readout=False)))
        start, gains, settings = first.updates, first.gains, replace(settings, gains="none")
    pair = open_pair(material.cell.student.name, material.family)
    result = calibrate(pair, material.adapter, start, settings, store=SampleStore(material.scratch))
    return replace(result, gains=gains or result.gains)


def _dense(updates: Mapping[str, LowRank]) -> dict[str, Tensor]:
    return {name: update.dense() for name, update in updates.items()}


def calibrated_rule(fit: Fit) -> Rule:
    """Return the rule that gives the calibrated updates of the cell."""
    return lambda material: _dense(calibration_on(material, fit).updates)


def foreign_gains(material: Material) -> Mapping[str, Tensor]:
    """Return the adapter with the gains that were fitted for another adapter on the same student."""
    elsewhere = replace(material, cell=Cell(material.cell.student, ADAPTERS[FOREIGN[material.cell.adapter.name]]))
    gains = calibration_on(elsewhere, Fit(replace(SETTINGS, readout=False))).gains
    return _dense(dict(material.adapter) if gains is None else gains.applied(material.adapter))


def rule_for(fit: Fit | None, use: AdapterUse) -> Rule:
    """Return the rule of the calibrated adapter (or without a fit the plain one) in another use."""

    def base_updates(material: Material) -> Mapping[str, LowRank]:
        return material.adapter if fit is None else calibration_on(material, fit).updates

    def rule(material: Material) -> Mapping[str, Tensor]:
        updates = scale_updates(base_updates(material), use.strength)
        if use.beside is not None:
            other = replace(material, cell=Cell(material.cell.student, ADAPTERS[use.beside]))
            updates = add_updates(updates, base_updates(other))
        return _dense(updates)

    return rule


def reference_updates(material: Material, use: AdapterUse) -> dict[str, LowRank]:
    """Return the updates on the base that a row's reference clips are sampled with."""
    updates = scale_updates(material.adapter, use.strength)
    return updates if use.beside is None else add_updates(updates, adapter_updates(use.beside, material.family))


def _row(name: str, fit: Fit, group: Group = "calibration") -> Row:
    return Row(
        name, group, str(fit), calibrated_rule(fit), account=lambda material: calibration_on(material, fit).as_json()
    )


def _guarded_row(name: str, methods: tuple[str, ...], fit: Fit | None) -> Row:
    candidates: dict[str, Rule] = {method: transferred(method) for method in methods}
    if fit is not None:
        candidates["calibrated"] = calibrated_rule(fit)
    return Row(name, "calibrated", f"guard among {methods} and {fit}", nothing, candidates=candidates, choice="guard")


CALIBRATED = (
    _row("gains", Fit(replace(SETTINGS, readout=False)), "calibrated"),
    _row("gains + readout", Fit(), "calibrated"),
    _guarded_row("calibrated, guarded", ("direct",), Fit()),
    _guarded_row("auto", AUTO_METHODS, None),
    _guarded_row("auto, calibrated too", AUTO_METHODS, Fit()),
)
"""On every cell: what `calibrate` fits, what it writes, what `--method auto` writes without and with `--calibrated`."""

CONTROLS = (
    _row("readout", Fit(replace(SETTINGS, gains="none"))),
    _row("gains per layer", Fit(replace(SETTINGS, gains="layer", readout=False))),
    _row("gains + readout, the adapter's rank", Fit(replace(SETTINGS, rank="source"))),
    _row("gains + readout, no held-out clips", Fit(replace(SETTINGS, guarded=False))),
    _row("control: readout, no adapter", Fit(replace(SETTINGS, gains="none"), bare=True)),
    Row("control: gains of another adapter", "calibration", f"{FOREIGN} {SETTINGS}", foreign_gains),
)


COUNTED = tuple(_row(f"gains + readout, {count} clips", Fit(replace(SETTINGS, clips=count))) for count in COUNTS)


def _rows_at(use: AdapterUse, words: str) -> tuple[Row, ...]:
    """Return direct reuse in this way, and the calibrated adapter against it."""
    plain, key = f"direct {words}", str(use)
    return (
        Row(plain, "calibration", f"direct {key}", rule_for(None, use), use=use, against=plain),
        Row(
            f"gains + readout {words}",
            "calibration",
            f"{Fit()} {key}",
            rule_for(Fit(), use),
            use=use,
            against=plain,
        ),
    )


def companions(cell: Cell) -> tuple[str, ...]:
    """Return the other adapters that the calibrated rows of a cell need."""
    return (BESIDE[cell.adapter.name], FOREIGN[cell.adapter.name]) if _studied(cell) else ()


def _studied(cell: Cell) -> bool:
    return (cell.student.name, cell.adapter.name) in STUDIED_CELLS


def calibration_rows(material: Material) -> tuple[Row, ...]:
    """Return the calibrated rows of one cell."""
    cell = material.cell
    if not _studied(cell):
        return CALIBRATED
    words = {AdapterUse(strength): f"at {strength:g}" for strength in STRENGTHS}
    words[AdapterUse(beside=BESIDE[cell.adapter.name])] = f"and {BESIDE[cell.adapter.name]}"
    others = (row for use, text in words.items() for row in _rows_at(use, text))
    return (*CALIBRATED, *CONTROLS, *(COUNTED if len(cell.student.steps) == 1 else ()), *others)
