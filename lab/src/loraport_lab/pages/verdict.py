"""The demo's numbers in plain sentences, worked out from paired differences and said whichever way they fall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from loraport.sampling.statistics import Interval, mean_interval
from loraport_lab.demo import ColumnResult, DemoResult, Role


@dataclass(frozen=True)
class Standing:
    """How a column stands against the LoRA as it is, clip by clip."""

    label: str
    fidelity: Interval
    effect: Interval
    effect_counts: int
    """The sign of the effect's change as far as it matters: up to what base + LoRA shows, see `standing`."""

    @property
    def gains(self) -> list[str]:
        """Return what is surely better."""
        return self._named(1)

    @property
    def losses(self) -> list[str]:
        """Return what is surely worse."""
        return self._named(-1)

    @property
    def helps(self) -> bool:
        """Return whether something is surely better and nothing surely worse."""
        return bool(self.gains) and not self.losses

    @property
    def words(self) -> str:
        """Return both changes, with their intervals."""
        return f"{signed(self.fidelity, 2)} dB fidelity and {signed(self.effect, 1)} points of effect"

    @property
    def trade(self) -> str:
        """Return what it does where it gains one thing and loses the other."""
        return f"gains {' and '.join(self.gains)} and pays with {' and '.join(self.losses)}"

    def _named(self, sign: int) -> list[str]:
        return [name for name, own in (("fidelity", self.fidelity.sign), ("effect", self.effect_counts)) if own == sign]


def column_of(demo: DemoResult, role: Role) -> ColumnResult | None:
    """Return the first column with this role."""
    return next((column for column in demo.columns if column.role == role), None)


def compare(demo: DemoResult, column: ColumnResult, other: ColumnResult, key: str) -> Interval:
    """Return how much higher the column's values are than the other's, clip by clip."""
    return mean_interval(column.values[key] - other.values[key], demo.prompts)


def mean(values: Tensor) -> float:
    """Return the mean over clips."""
    return float(values.double().mean())


def standing(demo: DemoResult, column: ColumnResult, direct: ColumnResult, reference: ColumnResult) -> Standing:
    """Return how `column` stands against `direct`.

    More effect than base + LoRA has is no aim. So an effect gained counts where direct reuse surely has less than base
    + LoRA, and an effect lost where the column surely ends below base + LoRA.
    """
    effect = compare(demo, column, direct, "effect")
    lacking = direct if effect.sign > 0 else column
    counts = effect.sign if compare(demo, lacking, reference, "effect").sign < 0 else 0
    label = "a LoRA trained on the student" if column.role == "oracle" else column.label
    return Standing(label, compare(demo, column, direct, "psnr"), effect, counts)


def verdict(demo: DemoResult) -> list[str]:
    """Return the findings; the first is the verdict on the method, in one sentence."""
    reference, direct = column_of(demo, "reference"), column_of(demo, "direct")
    if reference is None or direct is None:
        return []
    transfer, beside, oracle = (column_of(demo, role) for role in ("transfer", "beside", "oracle"))
    sentences: list[str] = []
    if transfer is not None:
        sentences.append(_judged(demo, transfer, direct, reference))
    if transfer is not None and beside is not None:
        rival = standing(demo, beside, transfer, reference)
        sentences.append(f"{beside.label} against {transfer.label}: {rival.words}.")
    sentences.append(_loss(demo, direct, reference))
    if oracle is not None:
        best = transfer or direct
        headroom = standing(demo, oracle, best, reference)
        sentences.append(
            "A LoRA trained on the student itself, with data and time, shows what is possible: "
            f"{headroom.words} against {'the LoRA as it is' if best is direct else best.label}."
        )
    return sentences


def _judged(demo: DemoResult, transfer: ColumnResult, direct: ColumnResult, reference: ColumnResult) -> str:
    """Say whether the method helps, and if it does not, what does."""
    own = standing(demo, transfer, direct, reference)
    uncounted = own.effect.sign != own.effect_counts
    note = "± is the 95 % interval" + ("; effect counts up to what base + LoRA shows" if uncounted else "")
    numbers = f"{own.words} against the LoRA as it is ({note})"
    if own.helps:
        return f"{own.label} helps here: {numbers}."
    if own.gains:
        opening = f"{own.label} {own.trade} here"
    elif own.losses:
        opening = f"{own.label} does not help here, it does harm"
    else:
        opening = f"{own.label} makes no sure difference here" + (" that counts" if uncounted else "")
    others = [column_of(demo, role) for role in ("beside", "oracle")]
    return f"{opening}: {numbers}; {_what_helps([standing(demo, one, direct, reference) for one in others if one])}."


def _what_helps(others: Sequence[Standing]) -> str:
    """Name the first that helps, and what those before it do by halves."""
    by_halves: list[str] = []
    for one in others:
        if one.helps:
            return ", while ".join([*by_halves, f"{one.label} helps: {one.words}"])
        if one.gains:
            by_halves.append(f"{one.label} {one.trade}")
    return ", and ".join([*by_halves, "no column here helps"])


def _loss(demo: DemoResult, direct: ColumnResult, reference: ColumnResult) -> str:
    change = compare(demo, direct, reference, "effect")
    whole, left = mean(reference.values["effect"]), mean(direct.values["effect"])
    if change.sign < 0:
        return (
            f"Putting the LoRA on the distilled student unchanged loses effect: {left:.0f} % of {demo.style} is left, "
            f"where the base shows {whole:.0f} %."
        )
    return (
        "Putting the LoRA on the distilled student unchanged shows no loss of effect beyond chance here: "
        f"{left:.0f} % of {demo.style}, where the base shows {whole:.0f} % (a change of {signed(change, 1)} points)."
    )


def signed(value: Interval, digits: int) -> str:
    """Return `+1.2 ± 0.4`; of a single clip the interval is not known, and left out."""
    number = f"{round(value.value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: nothing is not below nothing
    return f"{number} ± {reach:.{digits}f}" if math.isfinite(reach := value.high - value.value) else number
