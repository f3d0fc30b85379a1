"""What a layer's name says of its place in the network: the block it is in, how deep that lies, what the layer does."""

from __future__ import annotations

import re

_FIRST_NUMBER = re.compile(r"\.(\d+)\.")
_NUMBERED = re.compile(r"(?<![^.])(\w*blocks|layers|\w+_refiner|resnets|attentions|downsamplers|upsamplers)\.\d+")
"""Lists of modules that a model of another depth has more or fewer of; U-Nets nest them."""


def layer_depth(name: str) -> int | None:
    """Return the first number in a name, its block: 3 of `blocks.3.self_attn.q`; None outside of blocks."""
    number = _FIRST_NUMBER.search(name)
    return int(number[1]) if number else None


def layer_kind(name: str) -> str:
    """Return the name inside its block: `self_attn.q` of `blocks.3.self_attn.q`; outside of blocks all of it."""
    number = _FIRST_NUMBER.search(name)
    return name[number.end() :] if number else name


def layer_role(name: str) -> str:
    """Return the name without the numbers of its blocks, `blocks.*.ffn.0`: what it does, wherever it stands."""
    return _NUMBERED.sub(r"\1.*", name)


def layer_type(name: str) -> str:
    """Return the role as gains are stored by it: `blocks.ffn.0` of `blocks.3.ffn.0`."""
    return layer_role(name).replace(".*", "")


def layer_block(name: str) -> str:
    """Return the innermost block that a layer is in: `blocks.3` of `blocks.3.ffn.0`; "" outside of blocks."""
    *_, last = [None, *_NUMBERED.finditer(name)]
    return "" if last is None else name[: last.end()]


def kind_in_blocks(name: str) -> str:
    """Return `ffn.0` of `blocks.3.ffn.0`; "" for a layer that is in none of the numbered modules of `blocks`."""
    return layer_kind(name) if re.match(r"blocks\.\d+\.", name) else ""


def short_name(name: str) -> str:
    """Return a name as figures label it: `3.ffn.0` for `blocks.3.ffn.0`."""
    return name.removeprefix("blocks.")
