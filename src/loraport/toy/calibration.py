"""Calibration on the embedded family, where its result can be judged: rows, controls, and scores of any other row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from loraport.effect.calibrate import CalibrationSettings, calibrate, calibration_passes
from loraport.effect.candidates import plain
from loraport.effect.gains import Gains, fit_gains
from loraport.effect.meter import Meter, Watch
from loraport.effect.pair import Clips, Updates
from loraport.effect.score import Score, judged_clips, score
from loraport.effect.store import SampleStore
from loraport.effect.targets import EndEffect
from loraport.effect.updates import added, scaled
from loraport.spectral.svd import LowRank
from loraport.toy.family import FAMILY, adapter_path
from loraport.toy.judge import Judge
from loraport.toy.measure import psnr
from loraport.toy.pair import EmbeddedPair
from loraport.weights.lora import read_lora


@dataclass(frozen=True)
class Cell:
    """A student and what shall run on it: one adapter or several at once, at a strength."""

    student: str
    adapters: tuple[str, ...]
    strength: float = 1.0
    family: Path = FAMILY

    def pair(self) -> EmbeddedPair:
        """Both models, opened."""
        return EmbeddedPair(self.student, self.family)

    def updates(self) -> dict[str, LowRank]:
        """The adapters as they were trained on the base, added up, at the cell's strength."""
        read = [_plain(adapter_path(name, self.family)) for name in self.adapters]
        return scaled(added(*read), self.strength)


def _plain(place: Path) -> dict[str, LowRank]:
    return {name: plain(name, update, str(place)) for name, update in read_lora(place).layers.items()}


ROWS: Mapping[str, CalibrationSettings] = {
    "gains": CalibrationSettings(readout=False),
    "gains per layer": CalibrationSettings(gains="layer", readout=False),
    "readout": CalibrationSettings(gains="none"),
    "readout at the adapter's rank": CalibrationSettings(gains="none", rank="source"),
    "gains + readout": CalibrationSettings(),
    **{f"gains + readout, {count} clips": CalibrationSettings(clips=count) for count in (4, 8, 16, 64)},
    "gains + readout without the guard": CalibrationSettings(guarded=False),
}
"""The calibrated rows by name; 32 + 32 clips where nothing else is said."""
CONTROL = "control: readout with no adapter in the student"


def calibrated_update(
    cell: Cell,
    settings: CalibrationSettings | None = None,
    *,
    start: Updates | None = None,
    store: SampleStore | None = None,
    watch: Watch | None = None,
) -> dict[str, LowRank]:
    """Canonical layer -> the calibrated update of a cell; layers without an update are absent.

    `start` is what the student begins with: the cell's adapters, another transfer of them, or {} for the control.
    """
    pair, adapter = cell.pair(), cell.updates()
    begin = dict(adapter if start is None else start)
    settings = settings or CalibrationSettings()
    meter = Meter(sum(calibration_passes(pair, begin, settings).values()), watch)
    return calibrate(pair, adapter, begin, settings, store=store, meter=meter).updates


def control_update(cell: Cell, clips: int = 32, *, store: SampleStore | None = None) -> dict[str, LowRank]:
    """Readout towards the adapter's effect with no adapter in the student: what a late linear map does alone."""
    return calibrated_update(cell, CalibrationSettings(clips=clips, gains="none"), start={}, store=store)


def foreign_gains(cell: Cell, other: str, settings: CalibrationSettings | None = None) -> dict[str, LowRank]:
    """The cell's adapters with the gains that were fitted for another adapter on the same student."""
    settings = settings or CalibrationSettings()
    elsewhere = replace(cell, adapters=(other,))
    return fitted_gains(elsewhere, settings).applied(cell.updates())


def fitted_gains(cell: Cell, settings: CalibrationSettings, store: SampleStore | None = None) -> Gains:
    """The gains of a cell."""
    pair, adapter, meter = cell.pair(), cell.updates(), Meter(1)
    fit, check = (EndEffect(pair, adapter, role, store or SampleStore(None), meter) for role in settings.roles)
    return fit_gains(fit, check, adapter, "type" if settings.gains == "none" else settings.gains)


def end_scores(
    cell: Cell, rows: Mapping[str, Updates], *, clips: int = 32, store: SampleStore | None = None
) -> tuple[Score, ...]:
    """The END error of any rows, on clips that nothing was fitted to."""
    adapter = cell.updates()
    effect = EndEffect(cell.pair(), adapter, judged_clips(clips), store or SampleStore(None), Meter(1))
    return score(effect, adapter, rows)


def judged_rows(
    cell: Cell, rows: Mapping[str, Updates], judge: Judge, effects: Sequence[str], *, clips: int = 32
) -> dict[str, dict[str, Tensor]]:
    """Row -> measure -> a value per clip, on clips of a third kind: PSNR to base + adapter, each effect's share."""
    pair, seen = cell.pair(), Clips("measure", 0, clips)
    values: dict[str, dict[str, list[Tensor]]] = {label: {} for label in rows}
    for batch in seen.batches(pair.batch):
        reference = pair.seen(pair.source(batch, cell.updates()).end)
        for label, updates in rows.items():
            shown = pair.seen(pair.target(batch, updates))
            found = {effect: 100 * judge.effect_shares(shown, effect) for effect in effects}
            for measure, value in {"psnr": psnr(shown, reference), **found}.items():
                values[label].setdefault(measure, []).append(value)
    return {
        label: {measure: torch.cat(parts) for measure, parts in measures.items()} for label, measures in values.items()
    }
