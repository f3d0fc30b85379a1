"""Which card has which layers: by what they take and by what cards can keep."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from loraport.workers.share import longest_first


@dataclass
class Owner:
    """A card's share."""

    room: float
    """Bytes of layers that it can keep."""
    seconds: float = 0.0
    layers: set[str] = field(default_factory=set)


class Owners:
    """Gives layers to cards, the longest first, each to the card with the least work of those that can keep it.

    A card that cannot keep its share reads it again in every wave; so a layer goes there only where no card has room.
    """

    def __init__(self, rooms: Mapping[int, float]) -> None:
        self.cards = {card: Owner(room) for card, room in rooms.items()}
        self._of: dict[str, int] = {}

    def of(self, layer: str) -> int:
        """Return the card of a layer that was given out."""
        return self._of[layer]

    def give(self, seconds: Mapping[str, float], sizes: Mapping[str, float]) -> None:
        """Give out the layers that nobody has. `seconds`, `sizes`: of each, at least of these."""
        for layer in longest_first({name: took for name, took in seconds.items() if name not in self._of}):
            size = sizes[layer]
            card = min(
                self.cards, key=lambda card: (self.cards[card].room < size, self.cards[card].seconds, card)
            )  # fmt: skip
            owner = self.cards[card]
            owner.layers.add(layer)
            owner.seconds += seconds[layer]
            owner.room -= size
            self._of[layer] = card

    def lose(self, card: int) -> Iterable[str]:
        """Forget a card, and return its layers, which nobody has now."""
        gone = self.cards.pop(card)
        for layer in gone.layers:
            del self._of[layer]
        return gone.layers
