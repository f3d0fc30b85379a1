"""The embedded family under the prefix `toy:`, as loraport's entry points of the group `loraport.pairs` ask for it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from loraport_lab.family.family import embedded_place

if TYPE_CHECKING:
    from loraport_lab.family.pair import EmbeddedPair


class EmbeddedFamily:
    """See `loraport.sampling.providers.PairProvider`."""

    def locate(self, name: str) -> str:
        return embedded_place(name)

    def owns(self, source: Path) -> bool:
        from loraport_lab.family.pair import is_embedded

        return is_embedded(source)

    def open(self, source: Path, target: Path) -> EmbeddedPair:
        from loraport_lab.family.pair import open_embedded

        return open_embedded(source, target)


TOY = EmbeddedFamily()
