"""All families: a table of layer names each, from which every direction between spellings is derived.

The converters of diffusers are not used: they are private, go one way, and need the whole file and the package. Tests
compare these tables with them.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraport.files.names.hunyuan import HUNYUAN
from loraport.files.names.hunyuan15 import HUNYUAN_15
from loraport.files.names.table import NAMINGS, Family, Naming, Piece, RowSlice, flattened
from loraport.files.names.unet import SD15, SDXL
from loraport.files.names.wan import WAN

__all__ = [
    "FAMILIES",
    "HUNYUAN",
    "HUNYUAN_15",
    "NAMINGS",
    "SD15",
    "SDXL",
    "WAN",
    "Family",
    "Naming",
    "Piece",
    "RowSlice",
    "flattened",
]

FAMILIES: Mapping[str, Family] = {family.name: family for family in (WAN, HUNYUAN_15, HUNYUAN, SD15, SDXL)}
