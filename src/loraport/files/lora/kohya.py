"""Complete a kohya file of Wan for diffusers, which wants every layer of every block from 0 on, and no other.

Its converter takes the names of all ten layers out of the file block by block and raises KeyError for the first that is
missing, ValueError for what is left (diffusers 0.42, `_convert_musubi_wan_lora_to_diffusers`). ComfyUI and
musubi-tuner take any part, and layers of zeros cost them nothing but room. So files asked for as kohya are filled up.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from loraport.files.names.blocks import kind_in_blocks, layer_depth

if TYPE_CHECKING:
    from loraport.spectral.low_rank import LowRank

KOHYA_BLOCK = (*(f"{part}_attn.{layer}" for part in ("self", "cross") for layer in "qkvo"), "ffn.0", "ffn.2")
"""The ten layers of a block."""

FFN_SIZES = {1536: 8960, 5120: 13824, 3072: 14336}
"""Width -> inner width of the published sizes, for files that have no layer to tell it."""


IMAGE = ("cross_attn.k_img", "cross_attn.v_img")
"""In image-to-video files of Wan 2.1: both of them, in every block, or neither."""


def missing_layers(layers: Iterable[str]) -> list[str]:
    """Return the layers that diffusers would miss; none for a file without layers in blocks."""
    present = set(layers)
    numbers = [layer_depth(name) or 0 for name in present if kind_in_blocks(name)]
    block = (*KOHYA_BLOCK, *IMAGE) if _of_images(present) else KOHYA_BLOCK
    wanted = (f"blocks.{number}.{layer}" for number in range(max(numbers, default=-1) + 1) for layer in block)
    return [name for name in wanted if name not in present]


def outside_layers(layers: Iterable[str]) -> list[str]:
    """Return the layers that diffusers has no place for."""
    names = list(layers)
    allowed = (*KOHYA_BLOCK, *IMAGE) if _of_images(names) else KOHYA_BLOCK
    return [name for name in names if not kind_in_blocks(name) or kind_in_blocks(name) not in allowed]


def is_complete(layers: Iterable[str]) -> bool:
    """Return whether diffusers takes a file with these layers."""
    names = list(layers)
    return not missing_layers(names) and not outside_layers(names)


def _of_images(names: Iterable[str]) -> bool:
    inside = {kind_in_blocks(name) for name in names}
    return inside.issuperset(IMAGE)


def with_missing_layers(layers: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Return the layers, and zeros of rank 1 for those that diffusers would miss.

    Unchanged if the size of a missing layer cannot be inferred from other layers or a published model, or if diffusers
    would refuse the file even so.
    """
    missing = [] if outside_layers(layers) else missing_layers(layers)
    shapes = _shapes(layers)
    if any(kind_in_blocks(name) not in shapes for name in missing):
        return dict(layers)
    return dict(layers) | {name: _zeros(*shapes[kind_in_blocks(name)]) for name in missing}


def _shapes(layers: Mapping[str, LowRank]) -> dict[str, tuple[int, int]]:
    """Return layer inside a block -> its size, as another block or the width implies."""
    known = {inside: low.shape for name, low in layers.items() if (inside := kind_in_blocks(name))}
    down = known["ffn.2"][::-1] if "ffn.2" in known else None
    ffn = known.get("ffn.0", down)
    width = ffn[1] if ffn else next((shape[1] for shape in known.values()), 0)
    inner = ffn[0] if ffn else FFN_SIZES.get(width)
    guessed = dict.fromkeys((*KOHYA_BLOCK[:8], *IMAGE), (width, width))
    if inner:
        guessed |= {"ffn.0": (inner, width), "ffn.2": (width, inner)}
    return guessed | known


def _zeros(out: int, inn: int) -> LowRank:
    import torch

    from loraport.spectral.low_rank import LowRank

    return LowRank(torch.zeros(out, 1), torch.zeros(1, inn))
