"""Calibration: gains, then readout, each accepted only where held-out clips confirm it; makes an ordinary adapter."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from loraport.errors import SettingsError
from loraport.sampling.calibration.gains import Gains, Grouping, fit_gains, gain_groups, gain_passes
from loraport.sampling.calibration.readout import RANK, ReadoutStep, fit_readout, readout_passes
from loraport.sampling.calibration.residual_writers import writing_layers
from loraport.sampling.end_error import EndEffect
from loraport.sampling.pair import Clips, Pair, Updates
from loraport.sampling.pass_counter import PassCounter
from loraport.sampling.samples import SampleStore
from loraport.spectral.low_rank import LowRank, truncate


@dataclass(frozen=True)
class CalibrationSettings:
    """How an adapter is calibrated."""

    clips: int = 32
    """Clips to fit to; as many again decide what is accepted."""
    gains: Grouping | Literal["none"] = "type"
    readout: bool = True
    readout_rank: int = RANK
    last_blocks: int | None = None
    """Readout corrects the writing layers of so many last blocks; None: of all, in a deep network of the last third."""
    guarded: bool = True
    rank: Literal["auto", "source"] = "auto"
    """auto: readout adds its rank to the adapter's; source: the sum is cut back to the adapter's rank."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("clips", "readout_rank"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name.replace('_', ' ')} is {getattr(self, name)}, but it must be 1 or more")
        if self.rank not in ("auto", "source"):
            raise SettingsError(
                f"rank {self.rank!r} is not one of: auto (readout adds its own), source (the adapter's)"
            )

    def as_json(self) -> dict[str, Any]:
        """Return the settings for the JSON output and the file's metadata."""
        return asdict(self)

    @property
    def roles(self) -> tuple[Clips, Clips]:
        """The clips to fit to, and those that decide."""
        return Clips("fit", 0, self.clips, self.seed), Clips("check", 0, self.clips, self.seed)


@dataclass(frozen=True)
class CalibrationResult:
    """The calibrated updates, and what was accepted on the way."""

    updates: dict[str, LowRank]
    gains: Gains | None
    steps: tuple[ReadoutStep, ...]

    def as_json(self) -> dict[str, Any]:
        """Return what was accepted, for the JSON output."""
        return {
            "gains": None if self.gains is None else dict(self.gains.factors),
            "gain_errors": [] if self.gains is None else list(self.gains.errors),
            "readout": [asdict(step) for step in self.steps],
        }


NOTHING = 1e-8
"""An error below this share of the adapter's effect is rounding: nothing is calibrated then."""
FEW_BLOCKS = 12
"""Up to here readout corrects all blocks, in deeper networks the last third: it takes the blocks after as identity."""


def corrected_layers(pair: Pair, settings: CalibrationSettings) -> tuple[str, ...]:
    """Return the writing layers that readout will correct."""
    if not settings.readout:
        return ()
    return writing_layers(pair.network(), _last(pair, settings))


def _last(pair: Pair, settings: CalibrationSettings) -> int | None:
    blocks = len({layer.split(".")[1] for layer in writing_layers(pair.network())})
    return settings.last_blocks if settings.last_blocks or blocks <= FEW_BLOCKS else blocks // 3


def calibration_passes(pair: Pair, updates: Updates, settings: CalibrationSettings) -> dict[str, int]:
    """Return the passes of a calibration with nothing in the store, by network."""
    n, run, evaluations = settings.clips, pair.passes.target, pair.passes.evaluations
    target = 3 * n * run
    if settings.gains != "none" and updates:
        target += gain_passes(len(gain_groups(updates, settings.gains)), n, n, run)
    if settings.readout:
        target += readout_passes(len(corrected_layers(pair, settings)), n, n, run, evaluations)
    return {"source": 4 * n * pair.passes.source, "target": target}


def calibrate(
    pair: Pair,
    adapter: Updates,
    start: Updates | None = None,
    settings: CalibrationSettings | None = None,
    *,
    store: SampleStore | None = None,
    counter: PassCounter | None = None,
) -> CalibrationResult:
    """Fit updates of the target to the adapter's effect on the source, beginning with `start` (the adapter itself).

    Where `start` has no error, it is returned unchanged.

    Raises SettingsError and MismatchError where readout is asked for and the target does not allow it.
    """
    settings = settings or CalibrationSettings()
    start = dict(adapter if start is None else start)
    store = store or SampleStore(None)
    counter = counter or PassCounter(sum(calibration_passes(pair, start, settings).values()))
    fit, check = (EndEffect(pair, adapter, role, store, counter) for role in settings.roles)
    if float(check.errors(start).double().mean()) <= NOTHING * check.size():
        return CalibrationResult(start, None, ())
    now, gains = start, None
    steps: tuple[ReadoutStep, ...] = ()
    if settings.gains != "none" and start:
        gains = fit_gains(fit, check, now, settings.gains, guarded=settings.guarded)
        now = gains.applied(now)
    if settings.readout:
        readout = fit_readout(
            fit, check, now,
            rank=settings.readout_rank, last=_last(pair, settings), guarded=settings.guarded,
        )  # fmt: skip
        now, steps = readout.updates, readout.steps
    return CalibrationResult(cut_back(now, start, settings) if settings.rank == "source" else now, gains, steps)


def cut_back(updates: Updates, start: Updates, settings: CalibrationSettings) -> dict[str, LowRank]:
    """Return the updates at no more than the rank of those it began with."""
    own = max((update.rank for update in start.values()), default=settings.readout_rank)
    return {name: truncate(update, own) if update.rank > own else update for name, update in updates.items()}


def solve_bytes(pair: Pair, settings: CalibrationSettings) -> int:
    """Return the memory of the largest solve: float64 moments of every evaluation, with C's eigenvectors."""
    shapes = pair.layers()
    widest = max((shapes[layer][1] for layer in corrected_layers(pair, settings)), default=0)
    return 8 * widest**2 * (len(pair.evaluations) + 3)
