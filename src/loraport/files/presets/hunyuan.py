"""HunyuanVideo-1.5 and its distilled versions, as published models."""

from __future__ import annotations

from loraport.files.presets.preset import Preset

_CFG = "distilled: names and shapes of the base; fp32 by the repository's size"
_HV_LISTING = "the listing of the folder (the README names it)"


def _hunyuan(name: str, version: str, base: str | None = None) -> Preset:
    label = f"hunyuanvideo-1.5-{name}"
    parent = f"hunyuanvideo-1.5-{base}" if base else None
    inside = f"transformer/{version}"
    notes = _CFG if base else "fp32 by the repository's size"
    return Preset(
        label, "hunyuanvideo-1.5", "tencent/HunyuanVideo-1.5", inside, parent, notes, _HV_LISTING, seen="66b1147"
    )


HUNYUAN_MODELS: tuple[Preset, ...] = (
    _hunyuan("480p-t2v", "480p_t2v"),
    _hunyuan("480p-i2v", "480p_i2v"),
    _hunyuan("720p-t2v", "720p_t2v"),
    _hunyuan("720p-i2v", "720p_i2v"),
    _hunyuan("480p-t2v-distilled", "480p_t2v_distilled", "480p-t2v"),
    _hunyuan("480p-i2v-distilled", "480p_i2v_distilled", "480p-i2v"),
    _hunyuan("480p-i2v-step-distilled", "480p_i2v_step_distilled", "480p-i2v"),
    _hunyuan("720p-i2v-distilled", "720p_i2v_distilled", "720p-i2v"),
)
