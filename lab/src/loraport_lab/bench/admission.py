"""Which cells can tell methods apart: the conditions are fixed before any method is looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from loraport.sampling.statistics import standard_error

FAR = 3.0
"""Standard errors of the paired difference by which the oracle has to lead."""
SURE = 2.0
"""The same for direct reuse over undoing all drift, and over the base in as many steps."""
COMPARED = ("oracle", "direct", "full undo", "base, same steps")


@dataclass(frozen=True)
class Admission:
    """The three conditions, each as a difference in dB over its standard error; positive where it holds."""

    oracle_over_direct: float
    direct_over_undo: float
    direct_over_base: float

    @property
    def discriminating(self) -> bool:
        """Direct reuse is surely worse than the oracle, and surely better than undoing all drift and than the base."""
        return self.oracle_over_direct >= FAR and self.direct_over_undo >= SURE and self.direct_over_base >= SURE

    @property
    def reason(self) -> str:
        """Why a cell cannot discriminate; empty where it can."""
        failed = [
            text
            for failed, text in (
                (self.oracle_over_direct < FAR, "direct reuse is as good as the adapter trained on the student"),
                (self.direct_over_undo < SURE, "undoing the whole drift is not surely worse than direct reuse"),
                (self.direct_over_base < SURE, "the base in as many steps is not surely worse than direct reuse"),
            )
            if failed
        ]
        return "; ".join(failed)


def admit(fidelity: Mapping[str, Tensor], prompts: Sequence[str]) -> Admission:
    """Return the conditions on fidelity (row -> PSNR of each clip [clips]), paired over clips used for nothing else."""

    def lead(better: str, worse: str) -> float:
        gain = fidelity[better] - fidelity[worse]
        return float(gain.mean()) / max(standard_error(gain, prompts), 1e-12)

    return Admission(lead("oracle", "direct"), lead("direct", "full undo"), lead("direct", "base, same steps"))
