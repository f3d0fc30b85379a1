"""The demo's numbers in plain sentences, worked out from paired differences and said whichever way they fall."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from loraport_lab.demo import ColumnResult, DemoResult, Role

NOTICED = 2.0  # differences smaller than this many standard errors are called no difference


@dataclass(frozen=True)
class Estimate:
    """A mean over clips and its standard error."""

    mean: float
    error: float

    @property
    def sign(self) -> Literal[-1, 0, 1]:
        """The direction, 0 where it cannot be told from chance."""
        if abs(self.mean) <= NOTICED * self.error:
            return 0
        return 1 if self.mean > 0 else -1


def estimate(values: Tensor) -> Estimate:
    """Return mean and standard error over clips; of a single clip the error is unknown and counts as infinite."""
    error = float(values.std() / len(values) ** 0.5) if len(values) > 1 else float("inf")
    return Estimate(float(values.mean()), error)


def column_of(demo: DemoResult, role: Role) -> ColumnResult | None:
    """Return the first column with this role."""
    return next((column for column in demo.columns if column.role == role), None)


def compare(column: ColumnResult, other: ColumnResult, key: str) -> Estimate:
    """Return how much higher the column's values are than the other's, clip by clip."""
    return estimate(column.values[key] - other.values[key])


_COMPARED: tuple[Role, ...] = ("reference", "direct", "transfer")


def verdict(demo: DemoResult) -> list[str]:
    """Return the findings, the most important first."""
    reference, direct, transfer = (column_of(demo, role) for role in _COMPARED)
    sentences: list[str] = []
    if transfer is not None and direct is not None:
        sentences.append(_contest(transfer, direct))
    if direct is not None and reference is not None:
        sentences.append(_loss(direct, reference, demo.style))
    oracle = column_of(demo, "oracle")
    best = transfer or direct
    if oracle is not None and best is not None:
        sentences.append(_headroom(oracle, best))
    return sentences


def _contest(transfer: ColumnResult, direct: ColumnResult) -> str:
    fidelity, effect = compare(transfer, direct, "psnr"), compare(transfer, direct, "effect")
    signs = {fidelity.sign, effect.sign}
    if signs == {0}:
        headline = f"{transfer.label} and {direct.label} cannot be told apart here"
    elif signs <= {0, 1}:
        headline = f"{transfer.label} is ahead of {direct.label} here"
    elif signs <= {0, -1}:
        headline = f"{transfer.label} is below {direct.label} here: on this pair it does harm"
    else:
        gains, costs = ("effect", "fidelity") if effect.sign > 0 else ("fidelity", "effect")
        headline = f"{transfer.label} gains {gains} over {direct.label} and pays with {costs}"
    return f"{headline}: {_signed(fidelity, 'dB')} fidelity, {_signed(effect, 'points')} effect."


def _loss(direct: ColumnResult, reference: ColumnResult, style: str) -> str:
    change = compare(direct, reference, "effect")
    whole, left = estimate(reference.values["effect"]), estimate(direct.values["effect"])
    if change.sign < 0:
        return (
            f"Putting the LoRA on the distilled student unchanged loses effect: {left.mean:.0f} % of {style} is left, "
            f"where the base shows {whole.mean:.0f} %."
        )
    return (
        "Putting the LoRA on the distilled student unchanged shows no loss of effect beyond chance here: "
        f"{left.mean:.0f} % of {style}, where the base shows {whole.mean:.0f} % "
        f"(a change of {_signed(change, 'points')})."
    )


def _headroom(oracle: ColumnResult, best: ColumnResult) -> str:
    fidelity, effect = compare(oracle, best, "psnr"), compare(oracle, best, "effect")
    return (
        f"A LoRA trained on the student itself, with data and time, shows what is possible: against "
        f"{best.label} {_signed(fidelity, 'dB')} fidelity, {_signed(effect, 'points')} effect."
    )


def _signed(value: Estimate, unit: str) -> str:
    number = f"{value.mean:+.1f}".replace("-", "−")
    error = f" ± {value.error:.1f}" if value.error != float("inf") else ""
    return f"{number}{error} {unit}"
