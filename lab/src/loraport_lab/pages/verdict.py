"""The demo's numbers in plain sentences, worked out from paired differences and said whichever way they fall."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from loraport.sampling.statistics import Interval, mean_interval
from loraport_lab.demo import ColumnResult, DemoResult, Role

_NAMES: dict[Role, str] = {"direct": "the LoRA as it is", "oracle": "a LoRA trained on the student"}
"""In the middle of a sentence; other columns go by their labels."""
_COUNTS = "effect counts up to what base + LoRA shows"


@dataclass(frozen=True)
class Verdict:
    """The findings in sentences: those that stand beside the chart, the first of them on the method, and the rest."""

    first: tuple[str, ...]
    more: tuple[str, ...]


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
    def uncounted(self) -> bool:
        """Return whether the effect surely changes in a way that does not matter."""
        return self.effect.sign != self.effect_counts

    @property
    def does(self) -> str:
        """Return what it does, the same words for every column: `casa helps`, `casa does harm`."""
        if self.gains and self.losses:
            return f"gains {' and '.join(self.gains)} and pays with {' and '.join(self.losses)}"
        if self.gains or self.losses:
            return "helps" if self.gains else "does harm"
        return "makes no sure difference" + (" that counts" if self.uncounted else "")

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
    return Standing(_NAMES.get(column.role, column.label), compare(demo, column, direct, "psnr"), effect, counts)


def verdict(demo: DemoResult) -> Verdict:
    """Return the findings."""
    reference, direct = column_of(demo, "reference"), column_of(demo, "direct")
    if reference is None or direct is None:
        return Verdict((), ())
    transfer, beside, oracle = (column_of(demo, role) for role in ("transfer", "beside", "oracle"))
    first, more = [], []
    if transfer is not None:
        first.append(_judged(demo, transfer, direct, reference))
    first += [*_best(demo, direct, reference), _effect(demo, direct, reference)]
    if transfer is not None and beside is not None:
        rival = standing(demo, beside, transfer, reference)
        more.append(f"{beside.label} against {transfer.label}: {rival.words}.")
    if oracle is not None:
        best = transfer or direct
        headroom = standing(demo, oracle, best, reference)
        more.append(
            "A LoRA trained on the student itself, with data and time, shows what is possible: "
            f"{headroom.words} against {_NAMES.get(best.role, best.label)}."
        )
    return Verdict(tuple(first), tuple(more))


def _judged(demo: DemoResult, transfer: ColumnResult, direct: ColumnResult, reference: ColumnResult) -> str:
    """Say whether the method helps, and if it does not, what does."""
    own = standing(demo, transfer, direct, reference)
    note = f"± is the 95 % interval{f'; {_COUNTS}' if own.uncounted else ''}"
    sentence = f"{own.label} {own.does} here: {own.words} against {_NAMES['direct']} ({note})"
    if own.helps:
        return f"{sentence}."
    others = [column_of(demo, role) for role in ("beside", "oracle")]
    return f"{sentence}; {_what_helps([standing(demo, one, direct, reference) for one in others if one])}."


def _what_helps(others: Sequence[Standing]) -> str:
    """Name the first that helps, and what those before it do by halves."""
    by_halves: list[str] = []
    for one in others:
        if one.helps:
            return ", while ".join([*by_halves, f"{one.label} helps"])
        if one.gains:
            by_halves.append(f"{one.label} {one.does}")
    return ", and ".join([*by_halves, "no column here helps"])


def _best(demo: DemoResult, direct: ColumnResult, reference: ColumnResult) -> list[str]:
    """Say what the column of the highest fidelity gains and what it costs; nothing more of the method in question."""
    columns = [direct, *(one for one in demo.columns if one.role in ("transfer", "beside", "oracle"))]
    best = max(columns, key=lambda column: mean(column.values["psnr"]))
    if best is direct:
        return [f"No column here has more fidelity than {_NAMES['direct']}."]
    if best.role == "transfer":
        return []
    own = standing(demo, best, direct, reference)
    name = own.label[0].upper() + own.label[1:] if best.role in _NAMES else own.label
    note = f" ({_COUNTS})" if own.uncounted else ""
    return [f"{name} has the highest fidelity; it {own.does}: {own.words} against {_NAMES['direct']}{note}."]


def _effect(demo: DemoResult, direct: ColumnResult, reference: ColumnResult) -> str:
    """Say whether there is effect to repair at all."""
    change = compare(demo, direct, reference, "effect")
    numbers = (
        f"{mean(direct.values['effect']):.0f} % of {demo.style}, the base {mean(reference.values['effect']):.0f} %"
    )
    found, repair = {
        -1: ("loses effect", "there is effect to repair, and not fidelity alone"),
        0: ("loses no effect beyond chance", "what there is to repair is fidelity"),
        1: ("shows more effect than on the base", "what there is to repair is fidelity"),
    }[change.sign]
    return f"Unchanged on the student the LoRA {found} ({numbers}; {signed(change, 1)} points), so {repair}."


def signed(value: Interval, digits: int) -> str:
    """Return `+1.2 ± 0.4`; of a single clip the interval is not known, and left out."""
    number = f"{round(value.value, digits) + 0.0:+.{digits}f}".replace("-", "−")  # + 0.0: nothing is not below nothing
    return f"{number} ± {reach:.{digits}f}" if math.isfinite(reach := value.high - value.value) else number
