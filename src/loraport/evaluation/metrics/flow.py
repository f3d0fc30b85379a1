"""Motion between two frames by block matching: for each block the shift after which the first looks like the second.

Exhaustive search is slower than what OpenCV has, but it has no settings that depend on the clip, is exact for whole
shifts, and adds no dependency.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

BLOCK, REACH = 8, 8
"""Pixels of a block's side, and how far it is looked for in each direction."""
_REST = 1e-3
"""What each pixel of a shift must gain at least, in shares of full scale: a plain wall does not move."""
_GREY_STEP = 1 / 255


def block_motion(first: Float[Tensor, "h w"], second: Float[Tensor, "h w"]) -> Float[Tensor, "r c 2"]:
    """Return the shift (down, right) in pixels of each whole block of `first`; brightness in [0, 1].

    A frame smaller than a block is one block.
    """
    block = min(BLOCK, *first.shape)
    rows, columns = first.shape[0] // block, first.shape[1] // block
    first = first[: rows * block, : columns * block]
    offsets = torch.arange(-REACH, REACH + 1)
    padded = functional.pad(second[None, None], (REACH,) * 4, mode="replicate")[0, 0]
    errors = torch.empty(len(offsets), len(offsets), rows, columns)
    for down in range(len(offsets)):
        # all shifts to the side at once: windows of the strip of this shift down
        windows = padded[down : down + rows * block].unfold(1, columns * block, 1)[:, : len(offsets)]
        error = (windows.transpose(0, 1) - first).abs()
        errors[down] = error.reshape(-1, rows, block, columns, block).mean(dim=(2, 4))
    far = (offsets[:, None] ** 2 + offsets**2).sqrt()
    return _minima(errors, errors + _REST * far[:, :, None, None])


def _minima(errors: Float[Tensor, "d d r c"], costs: Float[Tensor, "d d r c"]) -> Float[Tensor, "r c 2"]:
    """Return the shift at which each block costs least; where no whole shift fits, to a fraction of a pixel.

    The fraction is that of two straight lines of one slope through the errors beside the least, as absolute
    differences rise from a match.
    """
    width, flat = len(errors), errors.flatten(0, 1)
    best = costs.flatten(0, 1).argmin(0)
    places = torch.stack([best // width, best % width])

    def at(place: Tensor) -> Tensor:
        return flat.gather(0, (place[0] * width + place[1])[None])[0]

    here, shifts = at(places), []
    for axis in range(2):
        step = torch.tensor([axis == 0, axis == 1]).long()[:, None, None]
        before, after = (at((places + sign * step).clamp(0, width - 1)) for sign in (-1, 1))
        rise = (torch.maximum(before, after) - here).clamp_min(1e-9)
        inside = (places[axis] > 0) & (places[axis] < width - 1) & (here > _GREY_STEP)
        fraction = torch.where(inside, (before - after) / (2 * rise), 0.0).clamp(-0.5, 0.5)
        shifts.append(places[axis] - REACH + fraction)
    return torch.stack(shifts, dim=-1)
