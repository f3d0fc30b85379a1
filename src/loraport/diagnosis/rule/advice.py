"""The rule: which method a pair's weights speak for, why, how sure that is, and where they cannot tell.

It was fitted to the measured map and is as simple as the map is small. An accelerator beside the source: the LoRA as it
is. A drift that keeps to the head of the source's spectrum: CASA. One that leaves it: a quarter of the drift undone.
Between the two, and far from every measured pair: sample.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from loraport.diagnosis.rule.measured_map import MeasuredCell, MeasuredMap, measured_map
from loraport.diagnosis.rule.traits import Traits
from loraport.errors import SettingsError

SAFE = "undo:0.25"
"""What to take where nothing can be sampled: of all fixed rules the one that loses least on the map."""
DIRECT, CASA, CHOOSE = "direct", "casa", "choose"
NOT_THIS_PAIR = "not-this-pair"
RECOMMEND = "recommend"
"""What stands for the advised method, where a method is named."""

PAPER_REGIME = 0.003
"""ρ₂ of the models that the paper looks at is no larger."""
NEAR_REGIME = 0.01
BEYOND = 1.5
"""Factor by which a size may lie outside of the map's span before the map says nothing of it."""
BESIDE = 0.05
"""The same for the head share, as a difference."""


@dataclass(frozen=True)
class Thresholds:
    """Where the rule changes its mind, as shares of the drift's energy in the first tenth of the directions."""

    unsure: float
    """Up to this share a quarter of undo is advised; beyond, the map is divided."""
    casa: float
    """Beyond this share CASA is advised."""
    accelerated: str
    """What is advised for an accelerator beside the source, wherever its drift lies."""


def is_recommended(methods: Sequence[str], preset: str | None, changes: Mapping[str, Any] | None) -> bool:
    """Return whether the method is to be the advised one.

    Raises SettingsError where others are named beside it, and for settings, which are of a method that is known.
    """
    if RECOMMEND not in methods:
        return False
    if len(methods) > 1:
        raise SettingsError(f"--method {','.join(methods)}: {RECOMMEND} stands for one method; give it alone")
    if preset or changes:
        raise SettingsError(f"settings belong to a method by name; with --method {RECOMMEND}, leave them out")
    return True


def verdict_of(accelerated: bool, head: float, thresholds: Thresholds) -> str:
    """Return the verdict on a pair that the map covers."""
    if accelerated:
        return thresholds.accelerated
    if head > thresholds.casa:
        return CASA
    return SAFE if head <= thresholds.unsure else CHOOSE


@dataclass(frozen=True)
class Advice:
    """A verdict on a pair, with its reason."""

    verdict: str
    why: str
    sure: float
    """How often, on base models that the rule was not fitted to, what it advised was as good as the best rule"""
    method: str
    """What to do where nothing can be sampled"""
    regime: str
    """same, rounding, paper, near, beyond: where ρ₂ lies beside the paper's models"""
    on_map: bool = True
    nearest: tuple[MeasuredCell, ...] = ()
    all_layers: bool = False
    """Whether a look at all layers might tell"""

    def line(self) -> str:
        """Return the advice in one line."""
        sure = "" if self.sure >= 1 else f" ({100 * self.sure:.0f} % sure)" if self.sure else " (not measured)"
        return f"{VERDICT_WORDS.get(self.verdict, self.verdict)}{sure}: {self.why}"

    def as_json(self) -> dict[str, Any]:
        """Return the object that a transfer's JSON output holds of it."""
        return {
            "verdict": self.verdict,
            "why": self.why,
            "sure": self.sure,
            "method": self.method,
            "regime": self.regime,
            "on_map": self.on_map,
            "nearest": [cell.as_json() for cell in self.nearest],
        }


VERDICT_WORDS = {
    DIRECT: "direct, the LoRA as it is",
    CASA: "casa",
    SAFE: f"{SAFE}, a quarter of the drift undone",
    CHOOSE: "choose by samples",
    NOT_THIS_PAIR: "not this pair",
}


def advise(traits: Traits) -> Advice:
    """Return what the weights speak for."""
    chart = measured_map()
    if not traits.drift or traits.head_drift is None:
        return _without_drift(traits, chart)
    regime = regime_of(traits, chart)
    known = {"drift": traits.drift, "ratio": traits.ratio, "head_drift": traits.head_drift}
    nearest = chart.nearest(known, accelerated=traits.accelerated)
    if outside := _outside(known, chart, traits.accelerated):
        return Advice(
            CHOOSE, f"{outside}, so no measured pair is like this one; only samples can tell", 0.0, DIRECT, regime,
            False, nearest,
        )  # fmt: skip
    thresholds = Thresholds(**chart.thresholds)
    verdict = verdict_of(traits.accelerated, traits.head_drift, thresholds)
    method = SAFE if verdict == CHOOSE else verdict
    sides = {
        verdict_of(traits.accelerated, traits.head_drift + step * traits.head_error, thresholds) for step in (-1, 1)
    }
    if sides != {verdict}:
        why = (
            f"{_percent(traits.head_drift)} of the drift sits in the first tenth of the source's directions, give or "
            f"take {_percent(traits.head_error)} for the layers that were not looked at; the rule turns there, and "
            "only all layers can tell"
        )
        return Advice(CHOOSE, why, chart.sure[CHOOSE], method, regime, True, nearest, all_layers=True)
    return Advice(
        verdict, _reason(verdict, traits, traits.head_drift, chart), chart.sure[verdict], method, regime, True, nearest,
    )  # fmt: skip


def _without_drift(traits: Traits, chart: MeasuredMap) -> Advice:
    if not traits.raw_drift and traits.rounded:
        why = "source and target are the same but for the rounding of their files: there is nothing to take back"
        return Advice(DIRECT, why, 1.0, DIRECT, "rounding")
    if not traits.raw_drift:
        why = "source and target have the same weights in these layers: every method gives the LoRA as it is"
        return Advice(DIRECT, why, 1.0, DIRECT, "same")
    size = f"the drift, {_percent(traits.raw_drift)} of the weights, is no more than what rounding makes"
    if traits.quantized:
        why = (
            f"{size} ({_percent(traits.floor)}: {', '.join(traits.quantized)}): what the distillation did cannot be "
            "seen, and a transfer would take back noise; give the file in 16 bits"
        )
        return Advice(DIRECT, why, chart.direct_is_best, DIRECT, "rounding")
    return Advice(DIRECT, f"{size} ({_percent(traits.floor)}): there is nothing to take back", 1.0, DIRECT, "rounding")


def regime_of(traits: Traits, chart: MeasuredMap | None = None) -> str:
    """Return where ρ₂ lies beside the paper's models; where it is not known, judged by the drift as on the map."""
    if traits.rho2 is not None:
        low = high = traits.rho2
    else:
        shares = [cell.rho2 / cell.drift for cell in (chart or measured_map()).cells]
        low, high = min(shares) * traits.drift, max(shares) * traits.drift
    if high <= PAPER_REGIME:
        return "paper"
    return "beyond" if low > NEAR_REGIME else "near"


REGIME_WORDS = {
    "same": "no drift",
    "rounding": "a drift within rounding",
    "paper": "the paper's (ρ₂ ≤ 0.3 %)",
    "near": "near the paper's (ρ₂ ≤ 1 %)",
    "beyond": "beyond the paper's (ρ₂ > 1 %)",
}


def _outside(known: Mapping[str, float], chart: MeasuredMap, accelerated: bool) -> str:
    """Return which trait the map does not cover, in words; "" if it covers all that the rule looks at."""
    words = {
        "drift": ("the drift", _percent),
        "ratio": ("the LoRA over the drift", lambda value: f"{value:.2g}"),
        "head_drift": ("the drift's share in the head", _percent),
    }
    for name, value in known.items():
        if accelerated and name == "head_drift":
            continue
        low, high = chart.span(name)
        least, most = (low - BESIDE, high + BESIDE) if name == "head_drift" else (low / BEYOND, high * BEYOND)
        if not least <= value <= most:
            what, say = words[name]
            return f"{what} is {say(value)}, outside of what was measured ({say(low)} to {say(high)})"
    return ""


def _reason(verdict: str, traits: Traits, head: float, chart: MeasuredMap) -> str:
    thresholds = Thresholds(**chart.thresholds)
    share = f"{_percent(head)} of the drift sits in the first tenth of the source's directions"
    if traits.accelerated:
        return "beside an accelerator casa and undo were worse than the LoRA as it is in all measured pairs"
    if verdict == CASA:
        good, pairs = chart.as_good_as_best(CASA, beyond=thresholds.casa)
        return (
            f"{share}, and beyond {_percent(thresholds.casa)} CASA was as good as the best rule in {good} of {pairs} "
            "measured pairs"
        )
    if verdict == SAFE:
        return (
            f"{share}; up to {_percent(thresholds.unsure)} CASA was on the mean no better than a quarter of "
            "undo, and at times much worse"
        )
    return (
        f"{share}, and between {_percent(thresholds.unsure)} and {_percent(thresholds.casa)} measured pairs went "
        "either way; without samples a quarter of undo risks least"
    )


def _percent(share: float) -> str:
    return f"{100 * share:.2g} %"
