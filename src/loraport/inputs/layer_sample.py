"""Samples of layers, spread evenly over what layers do and how deep they lie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction

from loraport.files.names.blocks import layer_depth, layer_kind

WORK = 2e11
"""Sum of out · in · min(out, in) over the layers that are looked at where not all need be: 10 s on two cores, 30 layers
of Wan 1.3B."""
LEAST_LAYERS = 12


def affordable_layers(shapes: Mapping[str, tuple[int, int]]) -> tuple[str, ...]:
    """Return as many layers as can be looked at quickly, spread as `sample_layers` does; all of a small model."""
    mean = sum(out * inn * min(out, inn) for out, inn in shapes.values()) / max(1, len(shapes))
    return sample_layers(list(shapes), max(LEAST_LAYERS, int(WORK / max(1.0, mean))))


def sample_layers(names: Sequence[str], count: int) -> tuple[str, ...]:
    """Return at most `count` layers, the same ones every time: evenly over kinds, and in each kind evenly over depth.

    Every kind gets its turn before any gets a second; the kinds are shifted against each other, so that few layers
    still see many depths. The answer keeps the order of the names.
    """
    kinds: dict[str, list[str]] = {}
    for name in sorted(names, key=lambda name: (layer_depth(name) is None, layer_depth(name) or 0)):
        kinds.setdefault(layer_kind(name), []).append(name)
    if 0 < count < len(kinds):
        spread = [list(kinds)[(2 * i + 1) * len(kinds) // (2 * count)] for i in range(count)]
        kinds = {kind: kinds[kind] for kind in spread}
    quota = dict.fromkeys(kinds, 0)
    left = min(count, len(names))
    while left:
        for kind, members in kinds.items():
            if left and quota[kind] < len(members):
                quota[kind] += 1
                left -= 1
    chosen = set()
    for number, (kind, members) in enumerate(kinds.items()):
        shift = Fraction(2 * number + 1, 2 * len(kinds))
        chosen |= {members[int((i + shift) * len(members) / quota[kind])] for i in range(quota[kind])}
    return tuple(name for name in names if name in chosen)
