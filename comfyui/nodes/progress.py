"""loraport's reports in ComfyUI: the bar under the node, and the button that interrupts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class NodeProgress:
    """Moves a node's bar and keeps the notes; every report is a moment at which the work may be interrupted."""

    bar: Callable[[int, int], None]
    """Gets how much of how much is done."""
    check: Callable[[], None]
    """Raises what ComfyUI ends a node by, where the user has interrupted it."""
    make_room: Callable[[str], None]
    """Frees memory on a device, before work that needs it."""
    say: Callable[[str], None]
    """Gets lines for the console in which ComfyUI runs."""
    notes: list[str] = field(default_factory=list)

    def step(self, text: str, done: int, total: int) -> None:
        """Say which of several longer steps begins."""
        self.check()
        self.say(f"loraport: [{done + 1}/{total}] {text}")

    def advance(self, text: str, done: int, total: int, part: str = "") -> None:
        """Move the bar."""
        self.check()
        self.bar(done, total)

    def note(self, text: str) -> None:
        """Keep something that the user should read."""
        self.check()
        if text not in self.notes:
            self.notes.append(text)
            self.say(f"loraport: note: {text}")
