"""Passes through the networks, counted as they are made, and told to whoever watches."""

from __future__ import annotations

from collections.abc import Callable

from loraport.errors import SettingsError

Watch = Callable[[str, int, int], None]
"""Gets (what is being done, passes done, passes planned)."""


class PassCounter:
    """Counts passes; `planned` is what the work is expected to take, `most` what it may take."""

    def __init__(self, planned: int, watch: Watch | None = None, most: int | None = None) -> None:
        if most is not None and planned > most:
            raise SettingsError(
                f"this takes about {planned} passes, more than the {most} of --budget; take fewer --clips, "
                "--no-readout, or --gains type"
            )
        self.planned, self.watch = planned, watch
        self.source = self.target = 0
        self.progress = 0

    def count(self, what: str, *, source: int = 0, target: int = 0, recalled: int = 0) -> None:
        """Passes that were made; `recalled` ones were found in the store and only move the bar."""
        self.source += source
        self.target += target
        self.progress += source + target + recalled
        if self.watch is not None:
            self.watch(what, min(self.progress, self.planned), self.planned)

    def as_json(self) -> dict[str, int]:
        """Passes made."""
        return {"source": self.source, "target": self.target}
