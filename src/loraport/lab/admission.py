"""Which cells can tell methods apart: the conditions are fixed before any method is looked at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from loraport.lab.evaluate import Measured
from loraport.lab.statistics import standard_error

FAR = 3.0  # standard errors of the paired difference


@dataclass(frozen=True)
class Admission:
    """The three conditions, each as a difference in dB over its standard error; positive where it holds."""

    oracle_over_direct: float
    direct_over_undo: float
    direct_over_base: float

    @property
    def discriminating(self) -> bool:
        """Direct reuse is worse than the oracle by 3 standard errors and better than undoing all drift and the base."""
        return self.oracle_over_direct >= FAR and self.direct_over_undo > 0 and self.direct_over_base > 0

    @property
    def reason(self) -> str:
        """Why a cell cannot discriminate; empty where it can."""
        failed = [
            text
            for failed, text in (
                (self.oracle_over_direct < FAR, "direct reuse is as good as the adapter trained on the student"),
                (self.direct_over_undo <= 0, "undoing the whole drift is no worse than direct reuse"),
                (self.direct_over_base <= 0, "the base in as many steps is no worse than direct reuse"),
            )
            if failed
        ]
        return "; ".join(failed)


def admit(rows: Mapping[str, Measured]) -> Admission:
    """The conditions on fidelity (PSNR), paired over clips."""

    def lead(better: str, worse: str) -> float:
        gain = rows[better].values["psnr"] - rows[worse].values["psnr"]
        return float(gain.mean()) / max(standard_error(gain), 1e-12)

    return Admission(lead("oracle", "direct"), lead("direct", "full undo"), lead("direct", "base, same steps"))
