"""What a coordinator knows of cards and of their work."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from loraport.workers.models import OpenWave
from loraport.workers.on_ray.card import CardFacts


@dataclass(eq=False)
class Call:
    """One layer for some jobs of a wave."""

    wave: int
    layer: str
    jobs: tuple[int, ...]
    deaths: int = 0


@dataclass
class Member:
    """A card that works, and what it has to do."""

    actor: Any
    facts: CardFacts
    todo: deque[Call] = field(default_factory=deque)
    calls: int = 0
    doubtful: list[Call] = field(default_factory=list)
    """Calls in which it fell silent: until it answers, nobody knows whether its process died or its machine."""
    silent_since: float | None = None


@dataclass
class OpenedWave:
    """A wave in work."""

    opened: OpenWave
    left: dict[int, set[str]]
    """Job -> the layers that are missing."""
    references: dict[str, Any]
