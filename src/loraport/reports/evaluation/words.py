"""Say what an evaluation found, in sentences that follow the intervals, whichever way they fall."""

from __future__ import annotations

import math
from collections.abc import Sequence

from loraport.evaluation.comparison import Difference
from loraport.evaluation.controls import StyleControl
from loraport.evaluation.grid import SOURCE, TARGET
from loraport.evaluation.metrics.metric import Metric
from loraport.evaluation.results import GridResult
from loraport.sampling.statistics import Interval

NO_CONTROLS = (
    "There are no clips of the source and of the target without a LoRA, so nobody can tell whether a style was moved "
    "or the distillation undone: a score against source + LoRA rewards both. `loraport compare --without-lora` "
    "makes them."
)
UNCLEAR = 10
"""Percent of the LoRA's own effect that the source without a LoRA shows, from which on the two are not told apart."""
WHY_CONTROLS = (
    "A style score against source + LoRA also rewards undoing the distillation, which moves every clip towards the "
    "source, whatever its style. What the source without any LoRA gains over the target without one is what undoing "
    "alone is worth; a gain that is not surely larger does not show that a style was moved."
)


def findings(result: GridResult) -> list[str]:
    """Return what was found in a grid: what surely differs from the baseline, and what a gain in style is worth."""
    sentences = []
    for column in result.grid.measured:
        own = [one for one in result.differences if one.column == column.name]
        if own and column.name not in (SOURCE, TARGET):
            sentences.append(_difference_words(result, own))
    return [*sentences, *control_words(result), *_effect_words(result)]


def _difference_words(result: GridResult, own: Sequence[Difference]) -> str:
    titles = {metric.name: metric for metric in result.metrics}
    parts = []
    for verdict in ("better", "worse"):
        named = [one for one in own if one.verdict == verdict]
        if named:
            listed = ", ".join(
                f"{_within(titles[one.metric].title)} ({change(titles[one.metric], one.interval)})" for one in named
            )
            parts.append(f"surely {verdict} in {listed}")
    judged = [one for one in own if titles[one.metric].better is not None]
    rest = len(judged) - sum(bool(one.verdict) for one in judged)
    if rest:
        parts.append(f"no sure difference in {rest} of {len(judged)} metrics")
    first = own[0]
    count = f"{first.clips} {'clip' if first.clips == 1 else 'clips'}"
    prompts = f"{first.prompts} {'prompt' if first.prompts == 1 else 'prompts'}"
    return f"{first.column} against {first.baseline}, {count} of {prompts}: {'; '.join(parts)}."


def control_words(result: GridResult) -> list[str]:
    """Return what gains in style are worth, beside what undoing the distillation alone gains."""
    styles = [metric for metric in result.metrics if metric.style]
    if not styles or not result.differences:
        return []
    known = [one for one in result.controls if one.undoing is not None]
    if not known:
        return [NO_CONTROLS] if result.controls else []
    return [sentence for metric in styles for sentence in _control_sentences(metric, known)]


def _control_sentences(metric: Metric, controls: Sequence[StyleControl]) -> list[str]:
    """Return a sentence for the gains that are more than undoing alone is worth, and one for those that are not."""
    gains = [one for one in controls if one.metric == metric.name and one.gain.sign > 0]
    sentences = []
    for surely_more in (True, False):
        named = [one for one in gains if (one.beyond is not None and one.beyond.sign > 0) == surely_more]
        if not named or named[0].undoing is None:
            continue
        listed = _listed([f"{one.column} ({change(metric, one.gain)})" for one in named])
        outcome = "surely more than" if surely_more else "not surely more than what"
        ending = " would give" if surely_more else " gives: it does not show that the style itself was moved"
        sentences.append(
            f"What {listed} {'gains' if len(named) == 1 else 'gain'} in {_within(metric.title)} is {outcome} undoing "
            f"the distillation without any LoRA ({change(metric, named[0].undoing)}){ending}."
        )
    return sentences


def _listed(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def _effect_words(result: GridResult) -> list[str]:
    titles = {metric.name: metric for metric in result.metrics}
    sentences = []
    for name in dict.fromkeys(effect.metric for effect in result.effects):
        shown = [one for one in result.effects if one.metric == name and one.column != result.grid.reference]
        listed = ", ".join(f"{one.column} {interval_words(one.interval, 0, '%')}" for one in shown)
        sentences.append(
            f"Of the LoRA's own effect on the source, by {_within(titles[name].title)}'s features: {listed}."
        )
        sentences += [
            f"In {_within(titles[name].title)} the LoRA and the distillation are not told apart: the source without "
            f"any LoRA shows {interval_words(one.interval, 0, '%')} of the LoRA's effect. Do not judge this LoRA by it."
            for one in shown
            if one.column == SOURCE and one.interval.sign and abs(one.interval.value) > UNCLEAR
        ]
    return sentences


def change(metric: Metric, interval: Interval) -> str:
    """Return a difference with its interval, signed, in the metric's unit."""
    unit = "points" if metric.unit == "%" else metric.unit
    return interval_words(interval, metric.digits, unit, signed=True)


def interval_words(interval: Interval, digits: int, unit: str, *, signed: bool = False) -> str:
    """Return `+1.2 [0.3, 2.1] dB`; without ends where one clip alone leaves them open."""
    value = number(interval.value, digits, signed=signed)
    unit = f" {unit}" if unit else ""
    if not (math.isfinite(interval.low) and math.isfinite(interval.high)):
        return f"{value}{unit}, of one draw alone"
    return f"{value} [{number(interval.low, digits)}, {number(interval.high, digits)}]{unit}"


def number(value: float, digits: int, *, signed: bool = False) -> str:
    """Return a number with so many digits and a true minus; what rounds to zero has no sign."""
    text = f"{value:+.{digits}f}" if signed else f"{value:.{digits}f}"
    if float(text) == 0:
        text = text.lstrip("+-")
    return text.replace("-", "−")


def _within(title: str) -> str:
    """Return a title as it stands within a sentence: names in capitals stay."""
    return title if title[:2].isupper() else title[:1].lower() + title[1:]
