"""Keys of a LoRA that are no factors, in the spelling of another dialect: where each goes, or why it cannot."""

from __future__ import annotations

from collections.abc import Container

from loraport.weights.dialects import Dialect, LoraKey
from loraport.weights.lora import BIASES_OF_B, Lora
from loraport.weights.names import is_known


def respelled(like: Lora, dialect: Dialect, layers: Container[str]) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """(key -> key in the output, [(key, reason)]) of a LoRA's extras; `layers` are those written with factors.

    Text encoders keep their keys everywhere, and so does everything where the dialect is the input's own.
    """
    kept: dict[str, str] = {}
    lost: list[tuple[str, str]] = []
    for key in like.extras:
        parsed = like.parse(key)
        if parsed.text_encoder or dialect == like.dialect:
            kept[key] = key
            continue
        suffix, reason = _suffix(parsed, dialect, layers)
        if not reason and not (parsed.whole and dialect.place(parsed.layer).whole):
            reason = "its rows stand elsewhere in this format, where only factors are moved"
        if reason:
            lost.append((key, reason))
        else:
            kept[key] = dialect.key(parsed.layer, suffix)
    return kept, lost


def _suffix(key: LoraKey, dialect: Dialect, layers: Container[str]) -> tuple[str, str]:
    """(the ending in this dialect, "") or ("", the reason why there is none)."""
    if key.part == "":
        return "", "an unknown ending, which has no counterpart in another format"
    if key.unresolved and not dialect.flat:
        return "", "its layer is known by a flattened name only, which this format cannot hold"
    is_bias = key.part == ".diff_b" or key.part in BIASES_OF_B
    if dialect.prefix != "diffusion_model." and not dialect.flat:
        if is_bias and key.layer in layers and dialect.pair[1].endswith(".weight"):
            return dialect.pair[1].removesuffix(".weight") + ".bias", ""
        return "", "the loaders of this format read factors only"
    if is_bias:
        return ".diff_b", ""
    if dialect.flat and not is_known(key.layer):
        return "", "the loaders of this format do not know the name"
    return key.part, ""
