"""All families: a table of layer names each, from which every direction between spellings is derived.

The converters of diffusers are not used: they are private, go one way, and need the whole file and the package. Tests
compare these tables with them.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraport.files.names.tables.family import (
    LAYOUTS,
    NAMINGS,
    Family,
    Layout,
    Naming,
    Piece,
    RowSlice,
    flattened,
    halves_swapped,
)
from loraport.files.names.tables.flux import FLUX_1
from loraport.files.names.tables.flux2 import FLUX_2
from loraport.files.names.tables.hunyuan import HUNYUAN
from loraport.files.names.tables.hunyuan15 import HUNYUAN_15
from loraport.files.names.tables.krea2 import KREA_2
from loraport.files.names.tables.ltx2 import LTX_2
from loraport.files.names.tables.minimax_h3 import MINIMAX_H3
from loraport.files.names.tables.qwen_image import QWEN_IMAGE, QWEN_IMAGE_21
from loraport.files.names.tables.unet import LINEAR_PROJECTIONS, PROJECTIONS, SD15, SDXL
from loraport.files.names.tables.wan import WAN
from loraport.files.names.tables.z_image import Z_IMAGE

__all__ = [
    "FAMILIES",
    "FLUX_1",
    "FLUX_2",
    "HUNYUAN",
    "HUNYUAN_15",
    "KREA_2",
    "LAYOUTS",
    "LINEAR_PROJECTIONS",
    "LTX_2",
    "MINIMAX_H3",
    "NAMINGS",
    "PROJECTIONS",
    "QWEN_IMAGE",
    "QWEN_IMAGE_21",
    "SD15",
    "SDXL",
    "WAN",
    "Z_IMAGE",
    "Family",
    "Layout",
    "Naming",
    "Piece",
    "RowSlice",
    "flattened",
    "halves_swapped",
]

FAMILIES: Mapping[str, Family] = {
    family.name: family
    for family in (
        *(WAN, HUNYUAN_15, FLUX_1, HUNYUAN, FLUX_2, SD15, SDXL),
        *(KREA_2, MINIMAX_H3, QWEN_IMAGE, QWEN_IMAGE_21, Z_IMAGE, LTX_2),
    )
}
