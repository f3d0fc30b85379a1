"""What the rule looks at: traits of a pair and a LoRA, as means over layers."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MOSTLY = 0.8
"""Share of the layers that must have a drift of few directions for it to be an accelerator's."""


@dataclass(frozen=True)
class Traits:
    """What the weights say of a pair and a LoRA: means over the layers that were looked at, as shares of ‖W_s‖."""

    drift: float
    """0 where source and target are the same, or differ by rounding alone"""
    floor: float
    """What rounding in the coarser file alone would make of the drift"""
    lora: float
    head_drift: float | None
    """Share of the drift's energy in the first tenth of the source's singular directions; None without a drift"""
    rho2: float | None = None
    """Relative change of the spectrum (Eq. 1); None where it was not computed"""
    cosine: float | None = None
    accelerated: bool = False
    """Whether the drift is that of a LoRA on the source"""
    raw_drift: float = 0.0
    """The drift with what counts as rounding"""
    rounded: bool = False
    """Whether rounding alone tells the two apart in some layers"""
    head_error: float = 0.0
    """Standard error of the head share, from the layers that were looked at; 0 where all were"""
    quantized: tuple[str, ...] = ()
    """Formats with scales in which one of the models is stored"""

    @property
    def ratio(self) -> float:
        """‖LoRA‖ / ‖drift‖."""
        return self.lora / self.drift if self.drift else float("inf")


@dataclass(frozen=True)
class LayerTraits:
    """The same of one layer."""

    drift: float
    """As the files have it"""
    floor: float
    rounding: bool
    """Whether the drift counts as rounding"""
    lora: float
    head_drift: float | None = None
    """None where there is no drift, and where it was not looked for"""
    few_directions: bool | None = None
    """Whether the drift has as few directions as a LoRA's; None where that was not looked for"""
    rho2: float | None = None
    cosine: float | None = None


def traits_of(layers: Sequence[LayerTraits], *, of: int, beside: bool = False, quantized: Iterable[str] = ()) -> Traits:
    """Return the means over the layers that moved, out of so many layers in all.

    `beside`: the target is the source with an accelerator.
    """
    moved = [layer for layer in layers if layer.drift and not layer.rounding]
    heads = [layer.head_drift for layer in moved if layer.head_drift is not None]
    few = [layer.few_directions for layer in moved if layer.few_directions is not None]
    return Traits(
        drift=_mean(layer.drift for layer in moved) or 0.0,
        floor=_mean(layer.floor for layer in layers) or 0.0,
        lora=_mean(layer.lora for layer in moved or layers) or 0.0,
        head_drift=_mean(heads),
        rho2=_mean(layer.rho2 for layer in moved),
        cosine=_mean(layer.cosine for layer in moved),
        accelerated=beside or (bool(few) and sum(few) >= MOSTLY * len(few)),
        raw_drift=_mean(layer.drift for layer in layers if layer.drift) or 0.0,
        rounded=any(layer.rounding for layer in layers),
        head_error=_error(heads, of),
        quantized=tuple(dict.fromkeys(quantized)),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _error(values: Sequence[float], of: int) -> float:
    """Return the standard error of a mean over some of so many layers; 0 where all were looked at."""
    if len(values) < 2 or len(values) >= of:
        return 0.0
    return statistics.stdev(values) * ((1 / len(values)) * (1 - len(values) / of)) ** 0.5
