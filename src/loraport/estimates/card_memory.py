"""How much of a card's memory layers take, how much of it is free, and so how many layers are in work at once.

Peaks of all that PyTorch allocates for one layer, counted on a processor that took the card's way through selections
and sums (square layers and tall ones of 2.7 to 1, a cold cache, `casa`, which takes most of the methods), and what is
copied to a card beside that. A decomposition's own workspace is counted as LAPACK's, which cuSOLVER's resembles.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from loraport.estimates.layer_cost import Growth
from loraport.parallel.at_once import AT_MOST
from loraport.spectral.kernels import EXACT_UP_TO

ROOM = 0.8
"""Share of a card's free memory that is planned for: a stream keeps what it has used once, in pieces."""
WITHOUT_BASIS = 0.6
"""Share of it that a layer takes by methods without bases."""

_EXACT = Growth(6e7, of_mn=25, of_nn=60)
_LARGE = Growth(6e7, of_mn=25, of_nn=42)
"""Bytes of a layer in work, entries compared in double and in single precision; each stream has its own workspaces."""
_KEPT = Growth(of_mn=12, of_nn=12)
"""Bytes of a layer that waits for the next LoRA: weight, drift, left directions; right directions and routing."""


def bytes_in_work(shape: tuple[int, int]) -> int:
    """Return the most bytes that a layer takes of a card while it is worked on."""
    return int((_EXACT if min(shape) <= EXACT_UP_TO else _LARGE).at(shape))


def bytes_kept(shape: tuple[int, int]) -> int:
    """Return the bytes that a layer takes while it stays in memory for further LoRAs."""
    return int(_KEPT.at(shape))


def room_on_card(device: torch.device) -> int:
    """Return how many bytes this process plans for on a card: of what is free, and what it keeps unused."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(ROOM * (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)))


def layers_at_a_time(device: torch.device, shapes: Iterable[tuple[int, int]], *, basis: bool = True) -> int:
    """Return how many layers are in work at once: as many as there are threads for, or as the card has room for.

    On a card as many of the largest ones; one is in any case.
    """
    if device.type != "cuda":
        return max(1, min(AT_MOST["cpu"], torch.get_num_threads()))
    return fitting(room_on_card(device), shapes, basis=basis)


def fitting(room: float, shapes: Iterable[tuple[int, int]], *, basis: bool = True) -> int:
    """Return how many of the largest layers fit into so many bytes of a card at once; one is tried in any case."""
    sizes = sorted((bytes_in_work(shape) * (1 if basis else WITHOUT_BASIS) for shape in shapes), reverse=True)
    count = 1
    while count < min(AT_MOST["cuda"], len(sizes)) and sum(sizes[: count + 1]) <= room:
        count += 1
    return count
