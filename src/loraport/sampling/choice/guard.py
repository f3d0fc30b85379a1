"""The guard: keep the candidate with the lowest end error if it surely beats direct reuse, else direct reuse."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from loraport.sampling.score import Score

DIRECT = "direct"
FEWEST = 8
"""Clips below which errors say too little of their own spread."""
AUTO_METHODS = (DIRECT, "direct:0.85", "direct:1.15", "direct:1.3", "core", "casa")
"""What `choose` tries where no candidate is named."""


@dataclass(frozen=True)
class Verdict:
    """Which candidate is kept, and why."""

    kept: str
    reason: str
    scores: tuple[Score, ...]
    clips: int

    def as_json(self) -> dict[str, Any]:
        """Return the `guard` object of the JSON output and of the file's metadata."""
        rows = [row.as_json() for row in self.scores]
        return {"kept": self.kept, "reason": self.reason, "clips": self.clips, "scores": rows}


def decide(scores: Sequence[Score], clips: int) -> Verdict:
    """Keep the candidate of the lowest error where its paired interval against direct lies below zero, else direct.

    The two-sided 95 % intervals hold for all candidates together. Where none is really better, one passes by luck with
    about half of the other 5 %, 1 in 40, since luck goes either way; up to 1 in 20 where one candidate gains on just
    those clips on which another loses. Of fewer than FEWEST clips nothing is called sure.
    """
    rivals = [row for row in scores if row.label != DIRECT]
    sure = [row for row in rivals if row.surely_better and clips >= FEWEST]
    if sure:
        best = min(sure, key=lambda row: row.error.value)
        return Verdict(best.label, _gain(best), tuple(scores), clips)
    if not rivals:
        return Verdict(DIRECT, "there was no other candidate", tuple(scores), clips)
    nearest = min(rivals, key=lambda row: row.error.value)
    few = f" (nothing is called sure of fewer than {FEWEST} clips)" if clips < FEWEST else ""
    reason = (
        f"no candidate has a surely lower end error than direct reuse{few}; the nearest, {nearest.label}: "
        f"{_gain(nearest)}"
    )
    return Verdict(DIRECT, reason, tuple(scores), clips)


def _gain(row: Score) -> str:
    if row.of_direct is None:
        return "direct reuse has no error at all"
    share = row.of_direct
    return (
        f"{100 * share.value:.0f} % of direct reuse's end error ({100 * share.low:.0f} to {100 * share.high:.0f}), "
        f"lower in {row.better} of {row.better + row.worse} clips"
    )
