"""Say what a diagnosis saw, for people: in the terminal and on its page."""

from __future__ import annotations

from loraport.diagnosis.result import Diagnosis
from loraport.diagnosis.rule.advice import REGIME_WORDS
from loraport.diagnosis.rule.measured_map import MeasuredCell

MINUS = "\N{MINUS SIGN}"
SHIPPED = "here"
"""Where the map says that the program's own family was measured."""


def diagnosis_words(told: Diagnosis) -> dict[str, str]:
    """Return what was seen of the LoRA, the pair and the drift."""
    keys, traits = told.keys, told.traits
    fits = f"{keys.matched} of the LoRA's {keys.total} keys, {keys.matched_layers} of {keys.layers} layers"
    words = {"fits": fits, "pair": "" if told.relation is None else told.relation.words}
    if traits is None:
        return {name: text for name, text in words.items() if text}
    looked = "all layers" if len(told.looks) == keys.matched_layers else f"{len(told.looks)} layers"
    above = "above" if traits.drift else "within twice"
    words["drift"] = (
        f"{share(traits.raw_drift)} of the weights, {above} what rounding makes ({share(traits.floor)}); means over "
        f"{looked}"
    )
    times = f", {traits.ratio:.2g} times the drift" if traits.drift else ""
    words["LoRA"] = f"{share(traits.lora)} of the weights{times}"
    if traits.head_drift is not None:
        words["head"] = (
            f"{share(traits.head_drift)} of the drift and {share(told.mean('head_lora'))} of the LoRA in the first "
            f"tenth of the source's directions; cosine of the two {signed(traits.cosine or 0.0, 3)}"
        )
        rho2 = "" if traits.rho2 is None else f"ρ₂ {share(traits.rho2)}: "
        words["regime"] = f"{rho2}{REGIME_WORDS[told.advice.regime]}"
    if told.advice.nearest:
        words["nearest"] = "\n".join(f"{place(cell)}: {worth(cell)}" for cell in told.advice.nearest)
    kept = [f"{share(value)} of {name}'s" for name, value in told.kept.items() if value is not None]
    if kept:
        words["kept"] = f"about {' and '.join(kept)} correction at rank {told.rank}, the default"
    if told.estimate is not None and told.method is not None:
        seconds, size = told.estimate["seconds"] or 0, told.estimate["output_bytes"] or 0
        words["transfer"] = f"by {told.method}: about {duration(seconds)}, a file of {size / 1e6:.2g} MB"
    return {**words, "took": f"{told.seconds:.1f} s"}


def duration(seconds: float) -> str:
    """Return a time as people say it."""
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def place(cell: MeasuredCell) -> str:
    """Return what a measured cell is called."""
    where = "" if cell.where == SHIPPED else f", {cell.where}"
    return f"{cell.name} ({cell.width} wide{where})"


def worth(cell: MeasuredCell) -> str:
    """Return what the rules were worth in a measured cell."""
    others = ", ".join(f"{name} {signed(gain, 2)}" for name, gain in cell.gains.items() if name != "direct")
    return f"{others} dB"


def signed(value: float, digits: int) -> str:
    """Return a number with its sign."""
    return f"{value:+.{digits}f}".replace("-", MINUS)


def share(value: float | None) -> str:
    """Return a share in percent, two figures; `none` for what is not known."""
    if value is None:
        return "none"
    return f"{100 * value:.0f} %" if value >= 0.1 else f"{100 * value:.2g} %"
