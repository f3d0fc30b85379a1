"""Passes through the networks, counted as they are made, and reported as progress."""

from __future__ import annotations

from loraport.errors import SettingsError
from loraport.progress import NO_PROGRESS, Progress


class PassCounter:
    """Counts passes; `planned` is how many are expected, `most` how many are allowed."""

    def __init__(self, planned: int, progress: Progress = NO_PROGRESS, most: int | None = None) -> None:
        if most is not None and planned > most:
            raise SettingsError(
                f"this takes about {planned} passes, more than the {most} of --budget; take fewer --clips, "
                "--no-readout, or --gains type"
            )
        self.planned, self.progress = planned, progress
        self.source = self.target = 0
        self.done = 0

    def count(self, what: str, *, source: int = 0, target: int = 0, recalled: int = 0) -> None:
        """Count passes that were made; `recalled` ones were found in the store and only move the bar."""
        self.source += source
        self.target += target
        self.done += source + target + recalled
        self.progress.advance(what, min(self.done, self.planned), self.planned)

    def as_json(self) -> dict[str, int]:
        """Return the passes made of each network."""
        return {"source": self.source, "target": self.target}
