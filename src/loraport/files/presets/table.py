"""All presets by name: models, and accelerators that are loaded beside them.

Ids and file names come from the projects' own READMEs and documentation and from the Hub's public listings. No weights
were downloaded for these tables: `unverified` says what to look at when they are. Where `seen` is None, the listing
itself was not seen. Little is pinned to a commit, since full commit ids were not to be had; `org/repo@COMMIT` pins
one.
"""

from __future__ import annotations

from collections.abc import Mapping

from loraport.files.presets.flux import FLUX_ACCELERATORS, FLUX_MODELS
from loraport.files.presets.hunyuan import HUNYUAN_MODELS
from loraport.files.presets.images import IMAGE_ACCELERATORS, IMAGE_MODELS
from loraport.files.presets.ltx import LTX_ACCELERATORS, LTX_MODELS
from loraport.files.presets.minimax_h3 import MINIMAX_H3_ACCELERATORS, MINIMAX_H3_MODELS
from loraport.files.presets.preset import AcceleratorPreset, Preset
from loraport.files.presets.unet import UNET_ACCELERATORS, UNET_MODELS
from loraport.files.presets.wan import WAN_MODELS
from loraport.files.presets.wan_accelerators import WAN_ACCELERATORS

PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for models in (WAN_MODELS, HUNYUAN_MODELS, UNET_MODELS, FLUX_MODELS, LTX_MODELS, IMAGE_MODELS, MINIMAX_H3_MODELS)
    for preset in models
}
"""The models. A family's rows stand in a module of its own."""

ACCELERATORS: Mapping[str, AcceleratorPreset] = {
    one.name: one
    for rows in (
        WAN_ACCELERATORS,
        UNET_ACCELERATORS,
        MINIMAX_H3_ACCELERATORS,
        FLUX_ACCELERATORS,
        LTX_ACCELERATORS,
        IMAGE_ACCELERATORS,
    )
    for one in rows
}
"""The accelerators, by name."""
